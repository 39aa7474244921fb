"""The unrolled algorithm as a differentiable function, and the strategies for its backward pass.

Source: Brauer and Lorenz (EUSIPCO 2023), Algorithm 2, the lemma on the gradient, "Truncated backpropagation".
A strategy says what to keep of the forward pass and how to get the gradient from it. The forward pass is the
same L iterations of Algorithm 1 for all of them; a new mode of backpropagation is one more class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import Iterate, Masks, chambolle_pock, largest_entry, magnitude
from pdunroll.core.engine import Engine, Tape, engine_for, flush_denormals, memory
from pdunroll.core.problem import PRIMAL_MASKS
from pdunroll.errors import InputError, require_choice, require_integer

ROWS = 1024  # frames times iterations whose outer products are summed by one matrix product


@dataclass(frozen=True, kw_only=True)
class Backprop(ABC):
    """How grad_K loss(y^L) is computed.

    `primal_mask` chooses the Jacobian of the primal prox: "active_set" (the paper's formula) or "released" (what
    the authors' released code does); see `pdunroll.core.problem`.
    """

    primal_mask: str = "active_set"

    def __post_init__(self) -> None:
        require_choice("primal_mask", self.primal_mask, tuple(PRIMAL_MASKS))

    @abstractmethod
    def forward(self, engine: Engine, K: Tensor, x: Tensor, iterations: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run Algorithm 1; return y^L (B, n) and the tensors that `gradient` will need."""

    def restore(self, engine: Engine, K: Tensor, x: Tensor, iterations: int) -> Tensor:
        """Return y^L alone, when no gradient is wanted."""
        return self.forward(engine, K, x, iterations)[0]

    @abstractmethod
    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return grad_K of the loss, (m, n), from `kept` and `grad` = grad_y of the loss at y^L, (B, n)."""


@dataclass(frozen=True, kw_only=True)
class Full(Backprop):
    """The exact gradient of the L-th iterate (with "active_set"): Algorithm 2 over all iterations.

    grad_K = sum_{l=1}^{L}  sigma delta_D^l (ybar^{l-1})^T - tau psi^l (delta_P^l)^T            (the lemma)

    Keeps psi, ybar and both masks, 5 L (m + n) bytes a frame in float32; with `checkpoint_every` = s only every s-th
    iterate and s iterations, which are run a second time for the backward pass: s = sqrt(L) keeps the least.
    """

    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_every is not None:
            require_integer("checkpoint_every", self.checkpoint_every, 1)

    def restore(self, engine, K, x, iterations):
        return engine.iterate(K, x, iterations).primal

    def forward(self, engine, K, x, iterations):
        every, start = self.checkpoint_every, engine.algorithm.start(K, x)
        if every is None:
            tape, last = self._record(engine, K, x, iterations, start)
            return last.primal, (x, tape.dual, tape.extrapolated, *tape.masks)
        checkpoints = [start]
        for first in range(0, iterations, every):
            last = engine.iterate(K, x, min(every, iterations - first), checkpoints[-1])
            checkpoints.append(last)
        return last.primal, (x, *(tensor for iterate in checkpoints[:-1] for tensor in iterate))

    def _record(self, engine: Engine, K: Tensor, x: Tensor, count: int, start: Iterate) -> tuple[Tape, Iterate]:
        mask = PRIMAL_MASKS[self.primal_mask](engine.algorithm.problem.radius)
        return engine.record(K, x, count, mask, start)

    def _tapes(self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], iterations: int) -> Iterator[Tape]:
        """Yield all iterations, the last ones first."""
        x, *tensors = kept
        if self.checkpoint_every is None:
            dual, extrapolated, *masks = tensors
            yield Tape(dual, extrapolated, Masks(*masks))
            return
        for number in reversed(range(len(tensors) // 5)):
            count = min(self.checkpoint_every, iterations - number * self.checkpoint_every)
            yield self._record(engine, K, x, count, Iterate(*tensors[5 * number : 5 * number + 5]))[0]

    def gradient(self, engine, K, kept, iterations, grad):
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

    `iterations` is b; it may be smaller or larger than L. With primal_mask = "released" it is min(L, b), as in
    the authors' code. Keeps the last iterate only, whatever L, and takes ONE pair of outer products at the end.
    """

    iterations: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("backprop.iterations (b)", self.iterations, 1)

    def forward(self, engine, K, x, iterations):
        last = engine.iterate(K, x, iterations)
        mask = PRIMAL_MASKS[self.primal_mask](engine.algorithm.problem.radius)
        return last.primal, (last.dual, last.primal, *engine.algorithm.masks(last, x, mask))

    def gradient(self, engine, K, kept, iterations, grad):
        b = min(iterations, self.iterations) if self.primal_mask == "released" else self.iterations
        return next(self.gradients(engine, K, kept, [b], grad))

    def gradients(
        self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], counts: Iterable[int], grad: Tensor
    ) -> Iterator[Tensor]:
        """Yield the gradient for each b of `counts`, which ascend, from one run of Algorithm 2."""
        dual, primal, *masks = kept
        delta_primal, delta_dual = torch.zeros_like(primal), torch.zeros_like(dual)  # the sums
        adjoint, done = engine.algorithm.adjoint_start(K, grad), 0
        for b in counts:
            adjoint = engine.backward_sums(K, Masks(*masks), b - done, adjoint, (delta_primal, delta_dual))
            done = b
            total = torch.zeros_like(K, memory_format=torch.contiguous_format)
            engine.add_outer(total, engine.algorithm.sigma, delta_dual, primal)
            engine.add_outer(total, -engine.algorithm.tau, dual, delta_primal)
            yield total


class _Unrolled(torch.autograd.Function):
    """Hands a strategy's gradient to autograd."""

    @staticmethod
    def forward(ctx, operator, observation, engine, iterations, backprop):
        primal, kept = backprop.forward(engine, operator, observation, iterations)
        ctx.save_for_backward(operator, *kept)
        ctx.settings = engine, iterations, backprop
        return primal

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
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
) -> Tensor:
    """A^L(K, x): the L-th Chambolle-Pock iterate, differentiable with respect to the operator.

    Args:
        operator: K, (m, n), float32 or float64, on any device.
        observation: x, (B, n), of the same dtype and device; one frame a row.
        radius: half a quantization step, > 0.
        iterations: L >= 1.
        backprop: the backward pass, a `Full` (default) or `Truncated` (or your own `Backprop`).
        step_ratio: sigma = step_ratio * 0.99 / ||K|| and tau = 0.99 / (step_ratio * ||K||). Both are
            constants in the gradient.
        extrapolation: theta in [0, 1].
        step_norm: which norm ||K|| is: "frobenius", as in the published experiments, or "spectral", which gives the
            largest steps that the theory allows.

    Returns:
        y^L, (B, n).

    Raises:
        InputError: (a ValueError) for shapes, dtypes or settings out of range.
    """
    settings = {
        "radius": radius, "step_ratio": step_ratio, "extrapolation": extrapolation, "step_norm": step_norm
    }  # fmt: skip
    run = _outside_of_graphs if torch.compiler.is_compiling() else _unroll
    return run(operator, observation, iterations, Full() if backprop is None else backprop, settings)


def _unroll(
    operator: Tensor, observation: Tensor, iterations: int, backprop: Backprop, settings: dict[str, Any]
) -> Tensor:
    check(operator, observation, iterations, backprop)
    algorithm = chambolle_pock(operator, **settings)
    if not SAFE[0] < algorithm.sigma * algorithm.tau < SAFE[1]:  # the same iterates with a scaled K, without underflow
        operator = operator / magnitude(operator)
        algorithm = chambolle_pock(operator, **settings)
    engine = engine_for(algorithm, operator)
    with flush_denormals():
        if not (operator.requires_grad and torch.is_grad_enabled()):
            return backprop.restore(engine, operator, observation, iterations)
        return _Unrolled.apply(operator, observation, engine, iterations, backprop)


_outside_of_graphs = torch._disable_dynamo(_unroll)  # torch.compile breaks its graph here

SAFE = 2.0**-80, 2.0**80  # of sigma tau = 0.99^2 / ||K||^2: the products with K stay in the range of float32


def check(operator: Tensor, observation: Tensor, iterations: int, backprop: Backprop) -> None:
    """Raise `InputError` for what `unroll` can't take."""
    if not isinstance(operator, Tensor) or not isinstance(observation, Tensor):
        raise InputError(
            f"operator and observation must be tensors, got {type(operator).__name__} and {type(observation).__name__}"
        )
    if operator.layout != torch.strided or observation.layout != torch.strided:
        raise InputError("operator and observation must be dense tensors; call to_dense() first")
    if operator.ndim != 2 or observation.ndim != 2 or operator.shape[1] != observation.shape[1]:
        shapes = f"{tuple(operator.shape)} and {tuple(observation.shape)}"
        raise InputError(f"operator and observation must have shapes (m, n) and (B, n), got {shapes}")
    if operator.dtype != observation.dtype or operator.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"operator and observation must both be float32 or float64, got {operator.dtype} and {observation.dtype}"
        )
    if observation.requires_grad:
        raise InputError("observation requires a gradient, which is not defined here; detach it")
    if observation.numel() and not math.isfinite(largest_entry(observation)):
        raise InputError("observation holds NaN or infinite samples; replace them")
    require_integer("iterations (L)", iterations, 1)
    if not isinstance(backprop, Backprop):
        raise InputError(
            f"backprop must be a strategy such as pdunroll.Full() or pdunroll.Truncated(), got {backprop!r}"
        )
