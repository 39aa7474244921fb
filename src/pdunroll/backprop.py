"""The unrolled algorithm as a differentiable function, and the strategies for its backward pass.

Source: Brauer and Lorenz (EUSIPCO 2023), Algorithm 2, the lemma on the gradient, "Truncated backpropagation".
A strategy says what to keep of the forward pass and how to get the gradient from it. The forward pass is the
same L iterations of Algorithm 1 for all of them; a new mode of backpropagation is one more class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from pdunroll.chambolle_pock import ChambollePock, Jacobians, State, chambolle_pock
from pdunroll.errors import InputError, require_choice, require_integer
from pdunroll.graphs import suited
from pdunroll.kernels import scratch, tiny_is_zero
from pdunroll.problem import PRIMAL_JACOBIANS, Box, dual_jacobian

ROWS = 1024  # frames times iterations that the backward pass takes at a time: outer products of so many rows are fast


@dataclass(frozen=True, kw_only=True)
class Backprop(ABC):
    """How grad_K loss(y^L) is computed.

    `primal_mask` chooses the Jacobian of the primal prox: "active_set" (the paper's formula) or "released" (what
    the authors' released code does); see `pdunroll.problem`.
    """

    primal_mask: str = "active_set"

    def __post_init__(self) -> None:
        require_choice("primal_mask", self.primal_mask, tuple(PRIMAL_JACOBIANS))

    @abstractmethod
    def forward(
        self, algorithm: ChambollePock, operator: Tensor, observation: Tensor, iterations: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run Algorithm 1; return y^L (B, n) and the tensors that `gradient` will need."""

    def restore(self, algorithm: ChambollePock, operator: Tensor, observation: Tensor, iterations: int) -> Tensor:
        """y^L alone, when no gradient is wanted."""
        return self.forward(algorithm, operator, observation, iterations)[0]

    @abstractmethod
    def gradient(
        self, algorithm: ChambollePock, operator: Tensor, kept: tuple[Tensor, ...], iterations: int, grad: Tensor
    ) -> Tensor:
        """grad_K of the loss, (m, n), from `kept` and `grad` = grad_y of the loss at y^L, (B, n)."""

    def jacobians(
        self,
        algorithm: ChambollePock,
        z_dual: Tensor,
        z_primal: Tensor,
        observation: Tensor,
        out: Tensor | None = None,
    ) -> Jacobians:
        """Of both proximal operators at their arguments, in one iteration or in some at once.

        `out` takes what the primal one has to compute for it, of the shape of z_primal.
        """
        primal = PRIMAL_JACOBIANS[self.primal_mask](algorithm.problem, z_primal, observation, out)
        return Jacobians(dual_jacobian(z_dual), primal)


class Stretch(NamedTuple):
    """Iterations l = first + 1, ..., first + s of Algorithm 1: where they start, and the arguments of their proximal
    operators, from which all else follows."""

    state: State  # after iteration `first`
    z_dual: Tensor  # (s, B, m)
    z_primal: Tensor  # (s, B, n)

    def before(self, algorithm: ChambollePock, box: Box, block: slice, out: Tensor) -> None:
        """The y^{l-1} of the s iterations l of a block, into `out` (s, B, n)."""
        first = int(block.start == 0)
        algorithm.problem.prox_primal(self.z_primal[block.start - 1 + first : block.stop - 1], box, out[first:])
        if first:
            out[0] = self.state.primal


@dataclass(frozen=True, kw_only=True)
class Full(Backprop):
    """The exact gradient of the L-th iterate (with "active_set"): Algorithm 2 over all iterations.

    grad_K = sum_{l=1}^{L}  sigma delta_D^l (ybar^{l-1})^T - tau psi^l (delta_P^l)^T            (the lemma)

    By parts, its first sum is that of deltabar_D^l (y^{l-1})^T less theta delta_D^1 (y^0)^T, with what Algorithm 2 has
    anyway: deltabar_D^l = delta_D^l + theta (delta_D^l - delta_D^{l+1}).

    Keeps L (m + n) numbers per frame; with `checkpoint_every` = s only every s-th state and one stretch of s
    iterations, which are run a second time for the backward pass: s = sqrt(L) keeps the least.
    """

    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_every is not None:
            require_integer("checkpoint_every", self.checkpoint_every, 1)

    def restore(self, algorithm, operator, observation, iterations):
        return algorithm.iterate(operator, observation, iterations).primal

    def forward(self, algorithm, operator, observation, iterations):
        start = algorithm.start(operator, observation)
        if self.checkpoint_every is None:
            primal, stretch = self._run(algorithm, operator, observation, start, iterations)
            return primal, (observation, stretch.z_dual, stretch.z_primal)
        states = [start]
        for l, iterate in enumerate(islice(algorithm.iterates(operator, observation), iterations), start=1):
            if l % self.checkpoint_every == 0 and l < iterations:
                states.append(iterate.state)
        return iterate.primal, (observation, *(tensor for state in states for tensor in state))

    @staticmethod
    def _run(
        algorithm: ChambollePock, operator: Tensor, observation: Tensor, state: State, iterations: int
    ) -> tuple[Tensor, Stretch]:
        """Run some iterations from `state`; return the last y and what Algorithm 2 needs of them."""
        (B, n), m = observation.shape, len(operator)
        stretch = Stretch(state, scratch((iterations, B, m), operator), scratch((iterations, B, n), operator))
        return algorithm.record(operator, observation, *stretch).primal, stretch

    def _stretches(
        self, algorithm: ChambollePock, operator: Tensor, kept: tuple[Tensor, ...], iterations: int
    ) -> Iterator[Stretch]:
        """All iterations, stretch by stretch, the last one first."""
        observation, *tensors = kept
        if self.checkpoint_every is None:
            yield Stretch(algorithm.start(operator, observation), *tensors)
            return
        for number in reversed(range(len(tensors) // 3)):
            first = number * self.checkpoint_every
            count = min(self.checkpoint_every, iterations - first)
            state = State(*tensors[3 * number : 3 * number + 3])
            yield self._run(algorithm, operator, observation, state, count)[1]

    def gradient(self, algorithm, operator, kept, iterations, grad):
        observation, go_on = kept[0], algorithm.adjoint_blocks(operator, grad)
        (B, n), m, box = observation.shape, len(operator), algorithm.problem.box(observation)
        size = max(1, min(ROWS // B, iterations))  # iterations in a block
        memory = [scratch((size, B, length), operator) for length in (n, n, m, m)]  # of all blocks in turn
        first, second = torch.zeros_like(operator), torch.zeros_like(operator)  # the lemma's sums
        for stretch in self._stretches(algorithm, operator, kept, iterations):
            for end in range(len(stretch.z_dual), 0, -size):
                block = slice(max(0, end - size), end)
                z_dual, z_primal = stretch.z_dual[block], stretch.z_primal[block]  # (s, B, m), (s, B, n)
                delta_primal, primal, delta_dual_bar, dual = (part[: len(z_dual)] for part in memory)
                jacobians = self.jacobians(algorithm, z_dual, z_primal, observation, out=delta_primal)
                adjoint = go_on(jacobians, delta_primal, delta_dual_bar)
                stretch.before(algorithm, box, block, primal)
                algorithm.library.add_outer(first, delta_dual_bar.flatten(0, 1), primal.flatten(0, 1))
                algorithm.problem.prox_dual(z_dual, dual)
                algorithm.library.add_outer(second, dual.flatten(0, 1), delta_primal.flatten(0, 1))
        algorithm.library.add_outer(first, -algorithm.theta * adjoint.dual, stretch.state.primal)
        return algorithm.sigma * first - algorithm.tau * second


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
        iterate = algorithm.iterate(operator, observation, iterations)
        return iterate.primal, (observation, *iterate[:4])

    def gradient(self, algorithm, operator, kept, iterations, grad):
        b = min(iterations, self.iterations) if self.primal_mask == "released" else self.iterations
        return next(self.gradients(algorithm, operator, kept, [b], grad))

    def gradients(
        self, algorithm: ChambollePock, operator: Tensor, kept: tuple[Tensor, ...], counts: Iterable[int], grad: Tensor
    ) -> Iterator[Tensor]:
        """The gradient for each b of `counts`, which ascend, from one run of Algorithm 2."""
        observation, z_dual, dual, z_primal, primal = kept
        jacobians = self.jacobians(algorithm, z_dual, z_primal, observation)
        sums = torch.zeros_like(primal), torch.zeros_like(dual)
        adjoint, done = algorithm.adjoint_start(operator, grad), 0
        for b in counts:
            adjoint, done = algorithm.adjoint_sums(operator, jacobians, b - done, adjoint, sums), b
            yield algorithm.sigma * (sums[1].T @ primal) - algorithm.tau * (dual.T @ sums[0])


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
        with tiny_is_zero():
            gradient = backprop.gradient(algorithm, operator, tuple(kept), iterations, grad)
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
    algorithm = chambolle_pock(
        operator, radius=radius, step_ratio=step_ratio, extrapolation=extrapolation, step_norm=step_norm
    )
    algorithm = suited(algorithm, operator.device)
    strategy = Full() if backprop is None else backprop
    with tiny_is_zero():
        if not (operator.requires_grad and torch.is_grad_enabled()):
            return strategy.restore(algorithm, operator, observation, iterations)
        return _Unrolled.apply(operator, observation, algorithm, iterations, strategy)
