"""Training of the operator K: the LightningModule, its data, and the bookkeeping of one training.

A pass over the training frames is an epoch of the protocol. Lightning is given shorter "epochs", from one validation
to the next, so that each checkpoint lies on a border where a killed training goes on bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from pdunroll.core.chambolle_pock import largest_entry, spectral_norm
from pdunroll.errors import DivergenceError, InputError
from pdunroll.files import atomic, write_table
from pdunroll.speech.frames import Frames
from pdunroll.training.network import UnrolledNetwork
from pdunroll.training.options import Optimization

log = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
HISTORY = "training.csv"
LARGEST = 1e8  # entry of K; the largest must exceed 1 / LARGEST, too: beyond, float32 and Adam's epsilon give out
TOLERATED = 1.5  # times the validation MSE at the start


class Batches:
    """Batches (y, x) sliced from tensors in memory, in a given order. Cheaper per step than a DataLoader."""

    def __init__(self, truth: Tensor, observation: Tensor, order: Tensor, batch_size: int) -> None:
        self.truth, self.observation = truth, observation  # (frames, n) each
        self.chunks = order.split(batch_size)

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.truth[chunk], self.observation[chunk]) for chunk in self.chunks)


def shuffled(population: int, buffer: int | None, seed: int) -> Tensor:
    """The numbers 0 .. population - 1 in random order (all if `buffer` is None).

    With a buffer, in the manner of a stream: `buffer` items are held, one of them is drawn, the next of the stream
    takes its place. An item then appears at most about `buffer` places early, and neighbours stay near each other.
    """
    generator = torch.Generator().manual_seed(seed)
    if buffer is None or buffer >= population:
        return torch.randperm(population, generator=generator)
    held, order = list(range(buffer)), []
    for item, place in enumerate(torch.randint(buffer, (population - buffer,), generator=generator).tolist(), buffer):
        order.append(held[place])
        held[place] = item
    rest = torch.tensor(held)[torch.randperm(buffer, generator=generator)]
    return torch.cat([torch.tensor(order), rest])


class FrameData(pl.LightningDataModule):
    """Training and validation frames; the order of pass p depends on the seed and p only."""

    def __init__(self, train: Frames, validation: Frames, optimization: Optimization, seed: int) -> None:
        super().__init__()
        self.optimization, self.seed = optimization, seed
        self.truth, self.observation = torch.from_numpy(train.truth), torch.from_numpy(train.observation)
        frames = min(len(train.truth), optimization.train_frames or len(train.truth))
        self.frames_per_pass = frames
        self.steps_per_pass = math.ceil(frames / optimization.batch_size)
        self.validations_per_pass = min(optimization.validations_per_epoch, self.steps_per_pass)
        chosen = shuffled(len(validation.truth), None, seed=0)[: optimization.validation_frames]
        self.validation = Batches(
            torch.from_numpy(validation.truth), torch.from_numpy(validation.observation), chosen, batch_size=1024
        )

    def train_dataloader(self) -> Batches:
        """The stretch of steps up to the next validation; Lightning asks anew for each (see `fit`)."""
        number, part = divmod(self.trainer.current_epoch, self.validations_per_pass)
        order = shuffled(len(self.truth), self.optimization.shuffle_buffer, seed=(self.seed << 20) + number)
        order = order[: self.frames_per_pass]
        first, last = (p * self.steps_per_pass // self.validations_per_pass for p in (part, part + 1))
        size = self.optimization.batch_size
        return Batches(self.truth, self.observation, order[first * size : last * size], size)

    def val_dataloader(self) -> Batches:
        return self.validation


class UnrolledTraining(pl.LightningModule):
    """Adam on half the squared error, summed over the batch; keeps the K with the best validation error.

    The scale of the loss is that of the authors' code: Adam divides it out but for its epsilon, which a mean over
    the samples would come close to. Reported errors are means over frames and samples.
    """

    first_mse: Tensor  # before the first step
    best_operator: Tensor
    best_mse: Tensor
    best_step: Tensor

    def __init__(
        self, network: UnrolledNetwork, optimization: Optimization, total_steps: int, total_frames: int
    ) -> None:
        super().__init__()
        self.network, self.optimization = network, optimization
        self.decay = total_steps if optimization.decay_counts == "steps" else total_frames
        self.register_buffer("first_mse", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("best_operator", network.operator.detach().clone())
        self.register_buffer("best_mse", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("best_step", torch.tensor(0))
        self.validation_mse = math.inf
        self.sums: Counter[str] = Counter()  # since the last validation
        self.automatic_optimization = False  # the step below, with its checks in their places, and a tenth of a ms less

    def configure_optimizers(self) -> Any:
        first, last = self.optimization.learning_rate, self.optimization.final_learning_rate
        epsilon = self.optimization.adam_epsilon
        optimizer = torch.optim.Adam(self.network.parameters(), lr=first, eps=epsilon, fused=True)

        def factor(step: int) -> float:
            return 1 + (last / first - 1) * min(step / self.decay, 1)

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        truth, observation = batch
        operator, optimizer = self.network.operator, self.optimizers()
        if not 1 / LARGEST < (size := largest_entry(operator)) < LARGEST:
            raise self._diverged(f"largest entry of K {size:.3g}")
        try:
            loss = 0.5 * (self.network(observation) - truth).square().sum()
        except InputError as error:
            raise self._overflowed(error) from None
        if not math.isfinite(value := loss.item()):
            raise self._diverged(f"loss {value}")
        optimizer.zero_grad()
        loss.backward()
        if not math.isfinite(norm := float(operator.grad.norm())):
            raise self._diverged(f"gradient norm {norm}")
        optimizer.step()
        self.lr_schedulers().step()
        self.sums.update(loss=value, samples=truth.numel(), gradient_norms=norm, steps=1)

    def _overflowed(self, error: InputError) -> InputError:
        """The error itself before the first step, where no learning rate can be at fault."""
        return error if self.global_step == 0 else self._diverged(str(error))

    def _diverged(self, symptom: str) -> DivergenceError:
        return DivergenceError(
            f"training diverged at step {self.global_step} ({symptom}); lower optimization.learning_rate, "
            f"which is {self.optimization.learning_rate:g}"
        )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        truth, observation = batch
        try:
            restored = self.network(observation)
        except InputError as error:
            raise self._overflowed(error) from None
        squares, unrestored = (float((y - truth).double().square().sum()) for y in (restored, observation))
        self.sums.update(squares=squares, unrestored=unrestored, validated=truth.numel())

    def on_validation_epoch_end(self) -> None:
        sums = self.sums
        self.validation_mse = sums["squares"] / sums["validated"]
        if self.global_step == 0:
            self.first_mse.fill_(self.validation_mse)
        # y^L stays within eta of x, whatever K is: without a sense its error is bounded, but above that of x itself
        tolerated = max(TOLERATED * self.first_mse.item(), sums["unrestored"] / sums["validated"])
        if not self.validation_mse <= tolerated:
            raise self._diverged(f"validation MSE {self.validation_mse:.3e}, {self.first_mse.item():.3e} at the start")
        if self.validation_mse < self.best_mse.item():
            self.best_mse.fill_(self.validation_mse)
            self.best_step.fill_(self.global_step)
            self.best_operator.copy_(self.network.operator.detach())

    def row(self) -> dict[str, float]:
        """What happened since the last call, and where training stands."""
        sums = self.sums
        row = {
            "step": self.global_step,
            "train_mse": 2 * sums["loss"] / sums["samples"] if sums["samples"] else math.nan,
            "validation_mse": self.validation_mse,
            "learning_rate": self.optimizers().param_groups[0]["lr"],
            "gradient_norm": sums["gradient_norms"] / sums["steps"] if sums["steps"] else math.nan,
            "operator_norm": spectral_norm(self.network.operator),
        }
        sums.clear()
        return row


class Checkpoints(TorchCheckpointIO):
    """Checkpoints that are whole or not there, and that hold no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()  # torch.save to a file hides why it failed
        torch.save(checkpoint, buffer)
        with atomic(Path(path)) as temporary:
            temporary.write_bytes(buffer.getvalue() + checksum(buffer.getvalue()))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content = Path(path).read_bytes()
        content, stored = content[:-CHECKSUM], content[-CHECKSUM:]
        if checksum(content) != stored:
            raise InputError(f"{path} is damaged (its checksum differs); remove it, and the training begins again")
        return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)


CHECKSUM = 32  # bytes at the end of a checkpoint


def checksum(content: bytes) -> bytes:
    """Return SHA-256 of a checkpoint: torch restores many a damaged file without a word."""
    return hashlib.sha256(content).digest()


class History(pl.Callback):
    """One row a validation, into the CSV table, the loggers and the console; times leave validation out."""

    def __init__(self, path: Path, title: str, total_steps: int) -> None:
        self.path, self.title, self.total_steps = path, title, total_steps
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.seconds = state_dict["rows"], state_dict["seconds"]

    def on_exception(self, trainer: pl.Trainer, module: UnrolledTraining, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            raise exception  # Lightning would make a status of its own of it

    def on_fit_start(self, trainer: pl.Trainer, module: UnrolledTraining) -> None:
        for row in self.rows:  # of a training that goes on, whose loggers are new
            self._log(trainer, row)

    def _log(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        known = {key: value for key, value in row.items() if not math.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(known, step=row["step"])

    def on_train_epoch_start(self, trainer: pl.Trainer, module: UnrolledTraining) -> None:
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, module: UnrolledTraining) -> None:
        if not trainer.sanity_checking:
            self.seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, module: UnrolledTraining) -> None:
        row = {**module.row(), "seconds": self.seconds}
        self.rows.append(row)
        write_table(self.path, self.rows)
        self._log(trainer, row)
        log.info(
            "%s  step %d of %d  validation MSE %.4e  %.1f s",
            self.title, row["step"], self.total_steps, row["validation_mse"], row["seconds"],
        )  # fmt: skip


def fit(
    network: UnrolledNetwork,
    data: FrameData,
    optimization: Optimization,
    folder: Path,
    *,
    title: str,
    accelerator: str = "cpu",
    loggers: list[Logger] | None = None,
) -> tuple[UnrolledTraining, History]:
    """Train, going on from `folder`/last.ckpt if it is there; writes that file and training.csv.

    Raises `DivergenceError` where numbers are no longer finite, and `InputError` if that file is damaged.
    """
    torch.ones(1).sqrt()  # of Adam: with several threads, a process's first can be inexact (PyTorch issue 188792)
    total_steps = optimization.epochs * data.steps_per_pass
    module = UnrolledTraining(network, optimization, total_steps, optimization.epochs * data.frames_per_pass)
    history = History(folder / HISTORY, title, total_steps)
    resume = folder / CHECKPOINT
    checkpoint = ModelCheckpoint(
        folder, filename=Path(CHECKPOINT).stem, enable_version_counter=False, save_on_train_epoch_end=True
    )
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=optimization.epochs * data.validations_per_pass,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0 if resume.is_file() else -1,  # validation before the first step
        callbacks=[history, checkpoint],
        plugins=[Checkpoints()],
        logger=loggers or False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    with warnings.catch_warnings():  # nothing in these is for the reader of our log
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.. is deprecated")
        trainer.fit(module, datamodule=data, ckpt_path=resume if resume.is_file() else None, weights_only=True)
    return module, history
