"""The unrolled algorithm as a differentiable function, and the strategies for its backward pass.

Source: Brauer and Lorenz (EUSIPCO 2023), Algorithm 2, the lemma on the gradient, "Truncated backpropagation".
A strategy says what to keep of the forward pass and how to compute the gradient from it. The forward pass is the
same L iterations of Algorithm 1 for all strategies. Each mode of backpropagation is one class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import Iterate, chambolle_pock, magnitude
from pdunroll.core.engine import Engine, Tape, engine_for, flush_denormals, memory
from pdunroll.core.problem import PRIMAL_MASKS, Masks, PrimalMask, require_problem
from pdunroll.errors import InputError, require_choice, require_integer, shown

ROWS = 1024  # frames times iterations whose outer products are summed by one matrix product


@dataclass(frozen=True, kw_only=True)
class Backprop(ABC):
    """A way to compute grad_K loss(y^L).

    Attributes:
        primal_mask: the Jacobian of the primal prox, "active_set" (the paper's formula) or "released" (that of the
            authors' released code); see `pdunroll.core.problem`.

    Raises:
        InputError: for another `primal_mask`.
    """

    primal_mask: str = "active_set"

    def __post_init__(self) -> None:
        require_choice("primal_mask", self.primal_mask, tuple(PRIMAL_MASKS))

    @abstractmethod
    def forward(self, engine: Engine, K: Tensor, x: Tensor, iterations: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run Algorithm 1 and keep what `gradient` will need.

        Args:
            engine: runs blocks of iterations; `engine.algorithm` holds the problem and the step sizes.
            K: the operator, (m, n).
            x: the observations, (B, n).
            iterations: L >= 1.

        Returns:
            y^L, (B, n), and the tensors to keep.
        """

    def restore(self, engine: Engine, K: Tensor, x: Tensor, iterations: int) -> Tensor:
        """Return y^L, (B, n), when no gradient is wanted."""
        return self.forward(engine, K, x, iterations)[0]

    @abstractmethod
    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return grad_K of the loss.

        Args:
            engine: that of `forward`.
            K: the operator, (m, n).
            kept: the tensors that `forward` has kept.
            iterations: L.
            grad: grad_y of the loss at y^L, (B, n).

        Returns:
            The gradient, (m, n), a tensor of its own.
        """

    def mask(self, engine: Engine) -> PrimalMask:
        """Return the Jacobian of the primal prox that `primal_mask` names."""
        return PRIMAL_MASKS[self.primal_mask](engine.algorithm.problem.radius)


@dataclass(frozen=True, kw_only=True)
class Full(Backprop):
    """Algorithm 2 over all iterations: with "active_set" the exact gradient of the L-th iterate.

    grad_K = sum_{l=1}^{L}  sigma delta_D^l (ybar^{l-1})^T - tau psi^l (delta_P^l)^T            (the lemma)

    It keeps psi, ybar and both masks of all iterations, 5 L (m + n) bytes a frame in float32.

    Attributes:
        checkpoint_every: if given, keep only every s-th iterate, and run the s iterations between two of them a second
            time for the backward pass; s = sqrt(L) keeps the least.

    Raises:
        InputError: for settings out of range.

    Example:
        >>> import pdunroll
        >>> pdunroll.Full(primal_mask="released", checkpoint_every=10)
        Full(primal_mask='released', checkpoint_every=10)
    """

    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_every is not None:
            require_integer("checkpoint_every", self.checkpoint_every, 1)

    def restore(self, engine: Engine, K: Tensor, x: Tensor, iterations: int) -> Tensor:
        """Return y^L, (B, n), without keeping anything."""
        return engine.iterate(K, x, iterations).primal

    def forward(self, engine: Engine, K: Tensor, x: Tensor, iterations: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return y^L, (B, n), and x with the tape of all iterations or the checkpoints."""
        every, start = self.checkpoint_every, engine.algorithm.start(K, x)
        if every is None:
            tape, last = engine.record(K, x, iterations, self.mask(engine), start)
            return last.primal, (x, tape.dual, tape.extrapolated, *tape.masks)
        checkpoints = [start]
        for first in range(0, iterations, every):
            last = engine.iterate(K, x, min(every, iterations - first), checkpoints[-1])
            checkpoints.append(last)
        return checkpoints[-1].primal, (x, *(tensor for iterate in checkpoints[:-1] for tensor in iterate))

    def _tapes(self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], iterations: int) -> Iterator[Tape]:
        """Yield the tapes of all iterations, the last ones first."""
        x, *tensors = kept
        if self.checkpoint_every is None:
            dual, extrapolated, *masks = tensors
            yield Tape(dual, extrapolated, Masks(*masks))
            return
        for number in reversed(range(len(tensors) // 5)):
            count = min(self.checkpoint_every, iterations - number * self.checkpoint_every)
            checkpoint = Iterate(*tensors[5 * number : 5 * number + 5])
            yield engine.record(K, x, count, self.mask(engine), checkpoint)[0]

    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return the sum of the lemma, (m, n), with the outer products of many iterations in one matrix product."""
        sigma, tau = engine.algorithm.sigma, engine.algorithm.tau
        (B, n), m, total = grad.shape, len(K), torch.zeros_like(K, memory_format=torch.contiguous_format)
        size = max(1, min(ROWS // max(B, 1), iterations))  # iterations in a block
        delta_primal, delta_dual = memory((size, B, n), K), memory((size, B, m), K)
        adjoint = engine.algorithm.adjoint_start(K, grad)
        for tape in self._tapes(engine, K, kept, iterations):
            for end in range(len(tape.dual), 0, -size):
                l = slice(max(0, end - size), end)
                masks = Masks(tape.masks.dual[l], tape.masks.primal[l])
                deltas = delta_primal[: len(masks.dual)], delta_dual[: len(masks.dual)]
                adjoint = engine.backward(K, masks, adjoint, *deltas)
                engine.add_outer(total, sigma, deltas[1].flatten(0, 1), tape.extrapolated[l].flatten(0, 1))
                engine.add_outer(total, -tau, tape.dual[l].flatten(0, 1), deltas[0].flatten(0, 1))
        return total


@dataclass(frozen=True, kw_only=True)
class Truncated(Backprop):
    """b backward iterations with the masks frozen at the last iterate: an approximation of the limit gradient.

    grad_K = sigma (sum delta_D) (y^L)^T - tau psi^L (sum delta_P)^T

    It keeps the last iterate only, whatever L, and takes one pair of outer products at the end.

    Attributes:
        iterations: b >= 1, which may be smaller or larger than L. With primal_mask = "released", min(L, b) backward
            iterations run, as in the authors' code.

    Raises:
        InputError: for settings out of range.

    Example:
        >>> import pdunroll
        >>> pdunroll.Truncated(iterations=30)
        Truncated(primal_mask='active_set', iterations=30)
    """

    iterations: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("backprop.iterations (b)", self.iterations, 1)

    def forward(self, engine: Engine, K: Tensor, x: Tensor, iterations: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return y^L, (B, n), and psi^L, y^L and both masks there."""
        last = engine.iterate(K, x, iterations)
        return last.primal, (last.dual, last.primal, *engine.algorithm.masks(last, x, self.mask(engine)))

    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return the gradient after b backward iterations, (m, n)."""
        b = min(iterations, self.iterations) if self.primal_mask == "released" else self.iterations
        return next(self.gradients(engine, K, kept, [b], grad))

    def gradients(
        self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], counts: Iterable[int], grad: Tensor
    ) -> Iterator[Tensor]:
        """Yield the gradient for each b of `counts`, which ascend, from one run of Algorithm 2."""
        dual, primal, *masks = kept
        sum_primal, sum_dual = torch.zeros_like(primal), torch.zeros_like(dual)  # of delta_P and delta_D
        adjoint, done = engine.algorithm.adjoint_start(K, grad), 0
        for b in counts:
            adjoint = engine.backward_sums(K, Masks(*masks), b - done, adjoint, (sum_primal, sum_dual))
            done = b
            total = torch.zeros_like(K, memory_format=torch.contiguous_format)
            engine.add_outer(total, engine.algorithm.sigma, sum_dual, primal)
            engine.add_outer(total, -engine.algorithm.tau, dual, sum_primal)
            yield total


class _Unrolled(torch.autograd.Function):
    """Hands a strategy's gradient to autograd."""

    @staticmethod
    def forward(
        ctx: Any, operator: Tensor, observation: Tensor, engine: Engine, iterations: int, backprop: Backprop
    ) -> Tensor:
        primal, kept = backprop.forward(engine, operator, observation, iterations)
        ctx.save_for_backward(operator, *kept)
        ctx.settings = engine, iterations, backprop
        return primal

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        operator, *kept = ctx.saved_tensors
        engine, iterations, backprop = ctx.settings
        with flush_denormals():
            gradient = backprop.gradient(engine, operator, tuple(kept), iterations, grad)
        return gradient, None, None, None, None


def unroll(
    operator: Tensor,
    observation: Tensor,
    *,
    radius: float,
    iterations: int,
    backprop: Backprop | None = None,
    step_ratio: float = 10.0,
    extrapolation: float = 1.0,
    step_norm: str = "frobenius",
    start: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return A^L(K, x), the L-th Chambolle-Pock iterate, differentiable with respect to the operator.

    Args:
        operator: K, (m, n), float32 or float64, on any device.
        observation: x, (B, n), of the same dtype and device; one frame a row.
        radius: half a quantization step, > 0.
        iterations: L >= 1.
        backprop: the backward pass: `Full` (default), `Truncated`, `Implicit`, or a `Backprop` of your own.
        step_ratio: sigma = step_ratio * 0.99 / ||K|| and tau = 0.99 / (step_ratio * ||K||). Both are
            constants in the gradient.
        extrapolation: theta in [0, 1].
        step_norm: the norm ||K||: "frobenius", as in the published experiments, or "spectral", which gives the
            largest steps that the theory allows.
        start: y^0 (B, n) and psi^0 (B, m), constants in the gradient; x and 0 if None.

    Returns:
        y^L, (B, n).

    Raises:
        InputError: (a ValueError) for shapes, dtypes or settings out of range.

    Example:
        >>> import pdunroll, torch
        >>> operator, x = torch.eye(2, requires_grad=True), torch.tensor([[0.5, 0.1]])
        >>> y = pdunroll.unroll(operator, x, radius=0.2, iterations=100, backprop=pdunroll.Full())
        >>> y.allclose(torch.tensor([[0.3, 0.0]]))  # the entries of x, moved towards 0 by up to 0.2
        True
        >>> y.sum().backward()
        >>> operator.grad.allclose(torch.tensor([[0.0, 0.0], [-0.3, 0.0]]))
        True
    """
    settings = {
        "radius": radius, "step_ratio": step_ratio, "extrapolation": extrapolation, "step_norm": step_norm
    }  # fmt: skip
    run = _outside_of_graphs if torch.compiler.is_compiling() else _unroll
    return run(operator, observation, iterations, Full() if backprop is None else backprop, settings, start)


def _unroll(
    operator: Tensor, observation: Tensor, iterations: int, backprop: Backprop, settings: dict[str, Any],
    start: tuple[Tensor, Tensor] | None,
) -> Tensor:  # fmt: skip
    check(operator, observation, iterations, backprop)
    algorithm = chambolle_pock(operator, **settings)
    if (
        not SAFE_STEPS[0] < algorithm.sigma * algorithm.tau < SAFE_STEPS[1]
    ):  # a scaled K gives the same iterates without underflow
        operator = operator / magnitude(operator)
        algorithm = chambolle_pock(operator, **settings)
    engine = engine_for(replace(algorithm, initial=start), operator)
    with flush_denormals():
        if not (operator.requires_grad and torch.is_grad_enabled()):
            return backprop.restore(engine, operator, observation, iterations)
        return _Unrolled.apply(operator, observation, engine, iterations, backprop)


# torch.compile breaks its graph here; torch.compiler.disable would load its compiler, which takes seconds
_outside_of_graphs = torch._disable_dynamo(_unroll)  # pyright: ignore[reportPrivateImportUsage]

SAFE_STEPS = 2.0**-80, 2.0**80  # of sigma tau = 0.99^2 / ||K||^2: products with K are then in the range of float32


def check(operator: Tensor, observation: Tensor, iterations: int, backprop: Backprop) -> None:
    """Raise `InputError` for arguments that `unroll` cannot take."""
    require_problem(operator, observation)
    if operator.dtype != observation.dtype:
        raise InputError(
            f"operator and observation must both be float32 or float64, got {operator.dtype} and {observation.dtype}"
        )
    if observation.requires_grad:
        raise InputError("observation requires a gradient, which is not defined here; detach it")
    require_integer("iterations (L)", iterations, 1)
    if not isinstance(backprop, Backprop):
        raise InputError(
            f"backprop must be a strategy such as pdunroll.Full() or pdunroll.Truncated(), got {shown(backprop)}"
        )
