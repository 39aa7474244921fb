"""The unrolled algorithm as a differentiable function, and the strategies for its backward pass.

Source: Brauer and Lorenz (EUSIPCO 2023), Algorithm 2, the lemma on the gradient, "Truncated backpropagation".
A strategy says what to keep of the forward pass and how to get the gradient from it. The forward pass is the
same L iterations of Algorithm 1 for all of them; a new mode of backpropagation is one more class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from pdunroll.chambolle_pock import ChambollePock, Iterate, Masks, State, chambolle_pock
from pdunroll.errors import InputError, require_choice, require_integer
from pdunroll.problem import PRIMAL_MASKS, dual_mask


@dataclass(frozen=True, kw_only=True)
class Backprop(ABC):
    """How grad_K loss(y^L) is computed.

    `primal_mask` chooses the Jacobian of the primal prox: "active_set" (the paper's formula) or "released" (what
    the authors' released code does); see `pdunroll.problem`.
    """

    primal_mask: str = "active_set"

    def __post_init__(self) -> None:
        require_choice("primal_mask", self.primal_mask, tuple(PRIMAL_MASKS))

    @abstractmethod
    def forward(
        self, algorithm: ChambollePock, operator: Tensor, observation: Tensor, iterations: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run Algorithm 1; return y^L (B, n) and the tensors that `gradient` will need."""

    @abstractmethod
    def gradient(
        self, algorithm: ChambollePock, operator: Tensor, kept: tuple[Tensor, ...], iterations: int, grad: Tensor
    ) -> Tensor:
        """grad_K of the loss, (m, n), from `kept` and `grad` = grad_y of the loss at y^L, (B, n)."""

    def masks(self, algorithm: ChambollePock, iterate: Iterate, observation: Tensor) -> Masks:
        """Jacobians of both proximal operators at one iterate."""
        primal_mask = PRIMAL_MASKS[self.primal_mask]
        return Masks(dual_mask(iterate.z_dual), primal_mask(algorithm.problem, iterate.z_primal, observation))


class Record(NamedTuple):
    """What a stretch of iterations l = first + 1 .. last leaves for Algorithm 2."""

    duals: Tensor  # psi^l       (last - first, B, m)
    extrapolated: Tensor  # ybar^{l-1}  (last - first, B, n)
    dual_masks: Tensor  # as duals
    primal_masks: Tensor  # as extrapolated


@dataclass(frozen=True, kw_only=True)
class Full(Backprop):
    """The exact gradient of the L-th iterate (with "active_set"): Algorithm 2 over all iterations.

    grad_K = sum_{l=1}^{L}  sigma delta_D^l (ybar^{l-1})^T - tau psi^l (delta_P^l)^T            (the lemma)

    Keeps L (m + n) numbers and as many mask bits per frame; with `checkpoint_every` = s only every s-th state and one
    stretch of s iterations, which are run a second time for the backward pass: s = sqrt(L) keeps the least.
    """

    checkpoint_every: int | None = None

    # Outer products are summed as one matrix product per so many iterations: near the machine's best rate,
    # and the adjoints of all L iterations need not be kept.
    BLOCK: ClassVar[int] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_every is not None:
            require_integer("checkpoint_every", self.checkpoint_every, 1)

    def forward(self, algorithm, operator, observation, iterations):
        if self.checkpoint_every is None:
            state = algorithm.start(operator, observation)
            primal, record = self._record(algorithm, operator, observation, state, iterations)
            return primal, record
        states = [algorithm.start(operator, observation)]
        for l, iterate in enumerate(islice(algorithm.iterates(operator, observation), iterations), start=1):
            if l % self.checkpoint_every == 0 and l < iterations:
                states.append(iterate.state)
        return iterate.primal, (observation, *(tensor for state in states for tensor in state))

    def _record(
        self, algorithm: ChambollePock, operator: Tensor, observation: Tensor, state: State, iterations: int
    ) -> tuple[Tensor, Record]:
        """Run some iterations from `state`; return the last y and what Algorithm 2 needs of them."""
        (B, n), m = observation.shape, len(operator)
        duals = observation.new_empty(iterations, B, m)
        extrapolated = observation.new_empty(iterations, B, n)
        dual_masks = torch.empty_like(duals, dtype=torch.bool)
        primal_masks = torch.empty_like(extrapolated, dtype=torch.bool)
        for l, iterate in enumerate(islice(algorithm.iterates(operator, observation, state), iterations)):
            extrapolated[l], duals[l] = state.extrapolated, iterate.dual
            dual_masks[l], primal_masks[l] = self.masks(algorithm, iterate, observation)
            state = iterate.state
        return iterate.primal, Record(duals, extrapolated, dual_masks, primal_masks)

    def _records(
        self, algorithm: ChambollePock, operator: Tensor, kept: tuple[Tensor, ...], iterations: int
    ) -> Iterator[Record]:
        """The records of all iterations, stretch by stretch, the last one first."""
        if self.checkpoint_every is None:
            yield Record(*kept)
            return
        observation, *tensors = kept
        for number in reversed(range(len(tensors) // 3)):
            first = number * self.checkpoint_every
            count = min(self.checkpoint_every, iterations - first)
            state = State(*tensors[3 * number : 3 * number + 3])
            yield self._record(algorithm, operator, observation, state, count)[1]

    def gradient(self, algorithm, operator, kept, iterations, grad):
        total = torch.zeros_like(operator)
        masks: deque[Masks] = deque()  # those of the stretch at hand, handed to Algorithm 2 as it asks for them
        adjoints = algorithm.adjoints(operator, iter(masks.popleft, None), grad)
        for record in self._records(algorithm, operator, kept, iterations):
            masks.extend(map(Masks, record.dual_masks.flip(0), record.primal_masks.flip(0)))
            for stop in range(len(record.duals), 0, -self.BLOCK):  # iterations start + 1 .. stop of the stretch
                start = max(0, stop - self.BLOCK)
                deltas = list(islice(adjoints, stop - start))[::-1]
                delta_primal = torch.cat([primal for primal, _ in deltas])
                delta_dual = torch.cat([dual for _, dual in deltas])
                total.addmm_(delta_dual.T, record.extrapolated[start:stop].flatten(0, 1), alpha=algorithm.sigma)
                total.addmm_(record.duals[start:stop].flatten(0, 1).T, delta_primal, alpha=-algorithm.tau)
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

    def forward(self, algorithm, operator, observation, iterations):
        (iterate,) = deque(islice(algorithm.iterates(operator, observation), iterations), maxlen=1)  # the last one
        return iterate.primal, (iterate.primal, iterate.dual, *self.masks(algorithm, iterate, observation))

    def gradient(self, algorithm, operator, kept, iterations, grad):
        primal, dual, *last_masks = kept
        b = min(iterations, self.iterations) if self.primal_mask == "released" else self.iterations
        sum_primal, sum_dual = torch.zeros_like(primal), torch.zeros_like(dual)
        for delta_primal, delta_dual in algorithm.adjoints(operator, repeat(Masks(*last_masks), b), grad):
            sum_primal += delta_primal
            sum_dual += delta_dual
        return algorithm.sigma * (sum_dual.T @ primal) - algorithm.tau * (dual.T @ sum_primal)


class _Unrolled(torch.autograd.Function):
    """Hands a strategy's gradient to autograd."""

    @staticmethod
    def forward(ctx, operator, observation, algorithm, iterations, backprop):
        primal, kept = backprop.forward(algorithm, operator, observation, iterations)
        ctx.save_for_backward(operator, *kept)
        ctx.settings = algorithm, iterations, backprop
        return primal

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        operator, *kept = ctx.saved_tensors
        algorithm, iterations, backprop = ctx.settings
        return backprop.gradient(algorithm, operator, tuple(kept), iterations, grad), None, None, None, None


def unroll(
    operator: Tensor,
    observation: Tensor,
    *,
    radius: float,
    iterations: int,
    backprop: Backprop | None = None,
    step_ratio: float = 10.0,
    extrapolation: float = 1.0,
) -> Tensor:
    """A^L(K, x): the L-th Chambolle-Pock iterate, differentiable with respect to the operator.

    Args:
        operator: K, (m, n), float32 or float64, on any device.
        observation: x, (B, n), of the same dtype and device; one frame a row.
        radius: half a quantization step, > 0.
        iterations: L >= 1.
        backprop: the backward pass, a `Full` (default) or `Truncated` (or your own `Backprop`).
        step_ratio: sigma = step_ratio * 0.99 / ||K||_2 and tau = 0.99 / (step_ratio * ||K||_2). Both are
            constants in the gradient.
        extrapolation: theta in [0, 1].

    Returns:
        y^L, (B, n).

    Raises:
        InputError: (a ValueError) for shapes, dtypes or settings out of range.
    """
    if operator.ndim != 2 or observation.ndim != 2 or operator.shape[1] != observation.shape[1]:
        shapes = f"{tuple(operator.shape)} and {tuple(observation.shape)}"
        raise InputError(f"operator and observation must have shapes (m, n) and (B, n), got {shapes}")
    if operator.dtype != observation.dtype or operator.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"operator and observation must both be float32 or float64, got {operator.dtype} and {observation.dtype}"
        )
    if observation.requires_grad:
        raise InputError("observation requires a gradient, which is not defined here; detach it")
    require_integer("iterations (L)", iterations, 1)
    algorithm = chambolle_pock(operator, radius=radius, step_ratio=step_ratio, extrapolation=extrapolation)
    return _Unrolled.apply(operator, observation, algorithm, iterations, Full() if backprop is None else backprop)
