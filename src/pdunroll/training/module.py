"""The LightningModule that trains the operator K."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import largest_entry, spectral_norm
from pdunroll.core.gradients import Backprop, Full
from pdunroll.errors import DivergenceError, InputError
from pdunroll.training.data import FrameData
from pdunroll.training.history import History
from pdunroll.training.network import UnrolledNetwork
from pdunroll.training.objectives import AtDepth, KeptPairs, Objective

LARGEST = 1e8  # bound of the largest entry of K, and its inverse: beyond, float32 and Adam's epsilon are unsuitable
TOLERATED = 1.5  # training has diverged at this multiple of the first validation MSE
Described = TypeVar("Described", Backprop, Objective)


class UnrolledTraining(pl.LightningModule):
    """The unrolled network, trained by Adam on half the squared error, summed over the batch.

    A batch is a pair (y, x) of true and observed frames, (B, n) each, or (y, x, lower, upper) with the bounds of the
    true samples; `forward` takes all but y. The loss is scaled as in the authors' code; Adam is invariant to the scale
    except for its epsilon, to which the gradients of a mean over the samples would be close. At each validation, or
    each epoch without one, the module logs train_mse (since the last time), validation_mse, learning_rate,
    gradient_norm and operator_norm (||K||_2); errors are means over frames and samples. `best_operator` is the K with
    the smallest validation error so far. All arguments except `optimizer` and `schedule` are hyperparameters of the
    checkpoint.

    Args:
        frame_length: n, samples.
        radius: half a quantization step; None if batches have bounds.
        iterations: L.
        backprop: the strategy or its description (see `described`); `Full()` if None.
        objective: the loss or its description; the error after L iterations if None.
        rows: m; n if None.
        step_ratio: see `pdunroll.unroll`, as for `extrapolation` and `step_norm`.
        learned_steps: whether the step sizes are learned, too; see `UnrolledNetwork`.
        steps_rate: their learning rate, relative to that of K.
        extrapolation: theta.
        step_norm: the norm of K in the step sizes.
        learning_rate: the learning rate of the first step.
        final_learning_rate: the learning rate of the last step; it falls linearly.
        adam_epsilon: the epsilon of Adam; 1e-7 in the released code.
        decay: the number of steps until the final rate; that of the Trainer if None.
        optimizer: returns the optimizer, given the parameters and lr; Adam with `adam_epsilon` if None.
        schedule: returns the scheduler of the learning rate, given the optimizer; linear decay if None.

    Examples:
        >>> import pdunroll
        >>> module = UnrolledTraining(frame_length=16, radius=1 / 16, iterations=10, backprop=pdunroll.Full())
        >>> module(torch.zeros(2, 16)).shape
        torch.Size([2, 16])
    """

    first_mse: Tensor  # before the first step
    best_operator: Tensor
    best_mse: Tensor
    best_step: Tensor
    best_steps: Tensor  # the learned step ratio and scale of `best_operator`, if they are learned

    def __init__(
        self,
        *,
        frame_length: int,
        radius: float | None,
        iterations: int,
        backprop: Backprop | dict[str, Any] | None = None,
        objective: Objective | dict[str, Any] | None = None,
        rows: int | None = None,
        step_ratio: float = 10.0,
        learned_steps: bool = False,
        steps_rate: float = 1.0,
        extrapolation: float = 1.0,
        step_norm: str = "frobenius",
        learning_rate: float = 1e-5,
        final_learning_rate: float = 1e-8,
        adam_epsilon: float = 1e-8,
        decay: int | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        strategy = rebuilt(backprop) if isinstance(backprop, dict) else backprop or Full()
        self.objective = rebuilt(objective, Objective) if isinstance(objective, dict) else objective or AtDepth()
        backprop, objective = described(strategy), described(self.objective)
        self.optimizer, self.schedule = optimizer, schedule
        self.save_hyperparameters(ignore=["optimizer", "schedule"])  # the arguments as they are now: plain data
        self.network = UnrolledNetwork(
            rows=rows or frame_length, frame_length=frame_length, radius=radius, iterations=iterations,
            backprop=strategy, step_ratio=step_ratio, learned_steps=learned_steps, extrapolation=extrapolation,
            step_norm=step_norm,
        )  # fmt: skip
        self.register_buffer("first_mse", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("best_operator", self.network.operator.detach().clone())
        self.register_buffer("best_mse", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("best_step", torch.tensor(0))
        if learned_steps:
            self.register_buffer("best_steps", torch.zeros(2))
        self.sums: Any = Counter()  # since the last validation
        self.latest: dict[str, float] = {}  # what was logged at the last validation, in float64

    def setup(self, stage: str) -> None:
        """Raise `InputError` for lower precision; allocate the pairs that the objective keeps."""
        if self.trainer.precision not in ("32-true", "64-true"):
            raise InputError(
                f"the Trainer's precision must be 32-true or 64-true, got {self.trainer.precision}: the masks compare "
                "with bounds that lower precision rounds away"
            )
        if stage == "fit" and self.objective.keeps_pairs and self.pairs is None:
            data = getattr(self.trainer, "datamodule", None)
            if not (isinstance(data, FrameData) and data.numbered):
                raise InputError(f"{type(self.objective).__name__} needs FrameData(..., numbered=True) in the Trainer")
            observation = data.train.tensors[1]
            self.register_buffer("kept_primal", observation.clone())
            self.register_buffer("kept_dual", observation.new_zeros(len(observation), len(self.network.operator)))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Allocate the pairs that a checkpoint has."""
        for name in (f"kept_{part}" for part in KeptPairs._fields):
            if name in checkpoint["state_dict"]:
                self.register_buffer(name, torch.empty_like(checkpoint["state_dict"][name]))

    @property
    def pairs(self) -> KeptPairs | None:
        """The pairs of all training frames, which are part of the checkpoint; None if the objective keeps none."""
        names = [f"kept_{part}" for part in KeptPairs._fields]
        return KeptPairs(*map(self.get_buffer, names)) if hasattr(self, names[0]) else None

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule, by default Adam with linear decay.

        Raises:
            InputError: if either does not accept its settings.
        """
        first, last = self.hparams["learning_rate"], self.hparams["final_learning_rate"]
        decay = self.hparams["decay"] or self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            return 1 + (last / first - 1) * min(step / decay, 1)

        make = self.optimizer or partial(torch.optim.Adam, eps=self.hparams["adam_epsilon"], fused=True)
        try:
            optimizer = make(self._groups(), lr=first)
            schedule = (self.schedule or partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor))(optimizer)
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer or schedule do not take their settings ({error})") from None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameters of the optimizer: K, and the step sizes with their own rate if they are learned."""
        operator, *steps = self.network.parameters()
        rate = self.hparams["learning_rate"] * self.hparams["steps_rate"]
        own = [{"params": steps, "lr": rate}] if steps else []
        return [{"params": [operator]}, *own]

    def forward(self, *observed: Tensor) -> Tensor:
        """Return y^L (B, n) for x (B, n), or for x and bounds."""
        return self.network(*observed)

    def training_step(self, batch: tuple[Tensor, ...], batch_index: int) -> Tensor:
        """Return the loss of a batch; raise `DivergenceError` if numbers are not finite or too large."""
        if not 1 / LARGEST < (size := largest_entry(self.network.operator)) < LARGEST:
            raise self._diverged(f"largest entry of K {size:.3g}")
        with self._blamed_on_the_rate():
            loss = self.objective.loss(self.network, batch, self.global_step, self.pairs)
        if not math.isfinite(value := loss.item()):
            raise self._diverged(f"loss {value}")
        self.sums.update(loss=value, samples=batch[0].numel())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sum up gradient norms; raise `DivergenceError` if one is not finite."""
        gradient = self.network.operator.grad
        assert gradient is not None
        if not math.isfinite(norm := float(gradient.norm())):
            raise self._diverged(f"gradient norm {norm}")
        self.sums.update(gradient_norms=norm, steps=1)

    @contextmanager
    def _blamed_on_the_rate(self) -> Iterator[None]:
        """Turn `InputError` into `DivergenceError`, except before the first step, which no learning rate affects."""
        try:
            yield
        except InputError as error:
            raise (error if self.global_step == 0 else self._diverged(str(error))) from None

    def _diverged(self, symptom: str) -> DivergenceError:
        return DivergenceError(
            f"training diverged at step {self.global_step} ({symptom}); lower optimization.learning_rate, "
            f"which is {self.hparams['learning_rate']:g}"
        )

    def validation_step(self, batch: tuple[Tensor, ...], batch_index: int) -> None:
        """Sum up the squared errors of a batch."""
        truth, *observed = batch
        with self._blamed_on_the_rate():
            restored = self.objective.restore(self.network, *observed)
        squares, unrestored = (_squares(y - truth) for y in (restored, observed[0]))
        self.sums.update(squares=squares, unrestored=unrestored, validated=truth.numel())

    def test_step(self, batch: tuple[Tensor, ...], batch_index: int) -> None:
        """Log the mean squared error as test_mse."""
        truth, *observed = batch
        mse = (self.network(*observed) - truth).square().mean()
        self.log("test_mse", mse, on_step=False, on_epoch=True, batch_size=len(truth))

    def predict_step(self, batch: Tensor | tuple[Tensor, ...], batch_index: int) -> Tensor:
        """Return y^L of a batch, which is x (B, n) or a batch as in training."""
        return self.network(batch) if isinstance(batch, Tensor) else self.network(*batch[1:])

    def on_validation_epoch_end(self) -> None:
        """Keep the best operator, log, and raise `DivergenceError` if the operator has become useless."""
        sums, step = self.sums, self.global_step
        mse = sums["squares"] / sums["validated"]
        whole = not self.trainer.sanity_checking or math.isinf(self.trainer.num_sanity_val_steps)
        if step == 0 and whole:
            self.first_mse.fill_(mse)
        # y^L is within eta of x for any K, so that even a useless K has a bounded error, but a larger one than x itself
        tolerated = max(TOLERATED * self.first_mse.item(), sums["unrestored"] / sums["validated"])
        if not mse <= tolerated:
            raise self._diverged(f"validation MSE {mse:.3e}, {self.first_mse.item():.3e} at the start")
        if whole and mse < self.best_mse.item():
            self.best_mse.fill_(mse)
            self.best_step.fill_(step)
            self.best_operator.copy_(self.network.operator.detach())
            if self.network.learned_steps:
                self.best_steps.copy_(torch.stack([torch.as_tensor(step) for step in self.network.steps.values()]))
        self._log(mse)

    def on_train_epoch_end(self) -> None:
        """Log the rest of an epoch without validation."""
        if self.sums["steps"]:
            self._log(math.nan)

    def _log(self, validation_mse: float) -> None:
        """Log the means since the last call and the current state; NaN is left out."""
        sums = self.sums
        self.latest = {
            "train_mse": 2 * sums["loss"] / sums["samples"] if sums["samples"] else math.nan,
            "validation_mse": validation_mse,
            "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"] if self.trainer.optimizers else math.nan,
            "gradient_norm": sums["gradient_norms"] / sums["steps"] if sums["steps"] else math.nan,
            "operator_norm": spectral_norm(self.network.operator),
        }
        sums.clear()
        known = {name: value for name, value in self.latest.items() if not math.isnan(value)}
        callbacks = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        own = any(isinstance(part, History) for part in callbacks)  # it writes to the loggers itself
        self.log_dict(known, logger=bool(self.trainer.loggers) and not own)


def _squares(errors: Tensor) -> float:
    return float(errors.double().square().sum())


def described(strategy: Backprop | Objective) -> dict[str, Any]:
    """Return a strategy or an objective as plain data: the class by its full name, with its settings.

    Examples:
        >>> import pdunroll
        >>> rebuilt(described(pdunroll.Truncated(iterations=10)))
        Truncated(primal_mask='active_set', iterations=10, damping=0.0)
    """
    settings = {part.name: getattr(strategy, part.name) for part in fields(strategy) if part.init}
    return {"_target_": _full_name(type(strategy)), **settings}


def rebuilt(description: dict[str, Any], base: type[Described] = Backprop) -> Described:
    """Return the strategy or objective that `described` described; its class must have been imported.

    Raises `InputError` if there is no such class.
    """
    kinds, waiting = {}, [base]
    while waiting:
        kind = waiting.pop()
        kinds[_full_name(kind)] = kind
        waiting += kind.__subclasses__()
    settings = dict(description)
    if (name := settings.pop("_target_", None)) not in kinds:
        raise InputError(f"no {base.__name__} {name} is known; import its module first")
    return kinds[name](**settings)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
