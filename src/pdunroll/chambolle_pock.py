"""The Chambolle-Pock iteration (Algorithm 1) and its backward recursion (Algorithm 2), one step a turn.

Both are generators, so that what to keep, and when to stop, is the caller's business. Rows are frames: where
the paper writes K y for a column y, the code writes y @ K.T for a batch y of shape (B, n).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle, islice, pairwise, repeat
from typing import Any, NamedTuple

import torch
from scipy.linalg import blas, eigh
from threadpoolctl import ThreadpoolController
from torch import Tensor

from pdunroll.errors import InputError, require_choice, require_positive
from pdunroll.kernels import FASTEST, Library
from pdunroll.problem import Dequantization, Jacobian


class State(NamedTuple):
    """What the next iteration of Algorithm 1 needs."""

    dual: Tensor  # psi^l   (B, m)
    primal: Tensor  # y^l     (B, n)
    extrapolated: Tensor  # ybar^l  (B, n)


class Iterate(NamedTuple):
    """What one iteration l of Algorithm 1 leaves behind."""

    z_dual: Tensor  # z_D^l   (B, m), the argument of the dual prox
    dual: Tensor  # psi^l   (B, m)
    z_primal: Tensor  # z_P^l   (B, n), the argument of the primal prox (before x is subtracted)
    primal: Tensor  # y^l     (B, n)
    extrapolated: Tensor  # ybar^l  (B, n)

    @property
    def state(self) -> State:
        """This iterate as a starting point."""
        return State(self.dual, self.primal, self.extrapolated)


class Place(NamedTuple):
    """Memory for an `Iterate`; new memory where there is None. `primal` must not be that of the iteration before."""

    z_dual: Tensor | None = None
    dual: Tensor | None = None
    z_primal: Tensor | None = None
    primal: Tensor | None = None
    extrapolated: Tensor | None = None


NEW: Iterable[Place] = repeat(Place())  # without end


class Adjoint(NamedTuple):
    """What one iteration l of Algorithm 2 leaves behind, and what the next one needs."""

    primal: Tensor  # delta_P^l  (B, n)
    dual: Tensor  # delta_D^l  (B, m)
    dual_extrapolated: Tensor  # (B, m)


class Masks(NamedTuple):
    """Which entries of psi and y are free, as booleans."""

    dual: Tensor  # (B, m)
    primal: Tensor  # (B, n)


class Jacobians(NamedTuple):
    """Of both proximal operators, in one iteration or in s of them at once."""

    dual: Jacobian  # (B, m) or (s, B, m)
    primal: Jacobian  # (B, n) or (s, B, n)

    def each(self) -> Iterator[Jacobians]:
        """Of s iterations, those of each, the last one first."""
        dual, primal = (reversed(jacobian.argument.unbind()) for jacobian in self)
        for d, p in zip(dual, primal, strict=True):
            yield Jacobians(Jacobian(d, self.dual.bound), Jacobian(p, self.primal.bound))

    def masks(self) -> Masks:
        """Those of one iteration written out."""
        return Masks(self.dual.mask(), self.primal.mask())


@dataclass(frozen=True)
class ChambollePock:
    """Algorithm 1 and 2 with fixed step sizes; needs sigma tau ||K||_2^2 < 1 and theta in [0, 1]."""

    problem: Dequantization
    sigma: float  # dual step size
    tau: float  # primal step size
    theta: float  # extrapolation
    library: Library = FASTEST  # what does the products

    def iterates(
        self,
        operator: Tensor,
        observation: Tensor,
        state: State | None = None,
        places: Iterable[Place] = NEW,
    ) -> Iterator[Iterate]:
        """Algorithm 1: yield the iterates l = 1, 2, ..., or those that follow `state`, one for each of `places`.

        operator (m, n), observation x (B, n); y^0 = ybar^0 = x, psi^0 = 0.
        """
        prox_dual, prox_primal = self.problem.prox_dual, self.problem.prox_primal
        plus_sigma_k = self.library.product(operator, self.sigma, len(observation))
        minus_tau_kt = self.library.product(operator.T, -self.tau, len(observation))
        box = self.problem.box(observation)
        dual, primal, extrapolated = self.start(operator, observation) if state is None else state
        for place in places:
            z_dual = plus_sigma_k(dual, extrapolated, place.z_dual)  # psi + sigma K ybar
            dual = prox_dual(z_dual, place.dual)
            z_primal = minus_tau_kt(primal, dual, place.z_primal)  # y - tau K^T psi
            previous, primal = primal, prox_primal(z_primal, box, place.primal)
            extrapolated = self.extrapolate(previous, primal, place.extrapolated)
            yield Iterate(z_dual, dual, z_primal, primal, extrapolated)

    def iterate(self, operator: Tensor, observation: Tensor, number: int, state: State | None = None) -> Iterate:
        """The iterate l = `number`, counted from `state`."""
        duals = observation.new_empty(2, len(observation), len(operator)).unbind()
        z_primal = torch.empty_like(observation)
        return self._last(operator, observation, state, islice(cycle(duals), number + 1), repeat(z_primal))

    def record(self, operator: Tensor, observation: Tensor, state: State, z_dual: Tensor, z_primal: Tensor) -> State:
        """The state s iterations after `state`; their z_D are left in z_dual (s, B, m), their z_P in z_primal."""
        duals = *z_dual.unbind(), torch.empty_like(z_dual[0])
        return self._last(operator, observation, state, duals, z_primal.unbind()).state

    def _last(
        self,
        operator: Tensor,
        observation: Tensor,
        state: State | None,
        duals: Iterable[Tensor],
        z_primals: Iterable[Tensor],
    ) -> Iterate:
        """The last iterate, where all of them use little memory, which is faster.

        z_D^l is left in duals[l - 1], and psi^l where z_D^{l+1} will be, so that the product adds to it in place.
        """
        extrapolated, *primals = (torch.empty_like(observation) for _ in range(3))
        places = (
            Place(z_dual, dual, z_primal, primal, extrapolated)
            for (z_dual, dual), z_primal, primal in zip(pairwise(duals), z_primals, cycle(primals), strict=False)
        )
        return last_of(self.iterates(operator, observation, state, places))

    def extrapolate(self, previous: Tensor, latest: Tensor, out: Tensor | None = None) -> Tensor:
        """latest + theta (latest - previous), in one pass."""
        return torch.lerp(previous, latest, 1.0 + self.theta, out=out)

    @staticmethod
    def start(operator: Tensor, observation: Tensor) -> State:
        """Where Algorithm 1 starts: psi^0 = 0, y^0 = ybar^0 = x."""
        return State(observation.new_zeros(len(observation), len(operator)), observation, observation)

    def adjoints(self, operator: Tensor, jacobians: Iterable[Jacobians], grad: Tensor) -> Iterator[Adjoint]:
        """Algorithm 2: yield delta_P^l and delta_D^l for l = L, L - 1, ..., a pair for each of `jacobians`.

        grad is the gradient of the loss with respect to y^L, (B, n).
        """
        start = self.adjoint_start(operator, grad)
        return self._adjoints(self._backward_products(operator, start), jacobians, start, repeat((None, None, None)))

    @staticmethod
    def adjoint_start(operator: Tensor, grad: Tensor) -> Adjoint:
        """Where Algorithm 2 starts: delta_P = grad, delta_D = 0."""
        dual = grad.new_zeros(len(grad), len(operator))
        return Adjoint(grad, dual, dual)

    def _backward_products(self, operator: Tensor, start: Adjoint) -> tuple[Callable[..., Tensor], ...]:
        """delta_P + sigma K^T (.) and delta_D - tau K (.), whose results last until the next call only."""
        matrices, batch = ((operator.T, self.sigma), (operator, -self.tau)), len(start.primal)
        memory = start.primal.new_empty(max(start.primal.numel(), start.dual.numel()))
        return tuple(
            partial(self.library.product(matrix, scale, batch), spare=memory[: delta.numel()].view_as(delta))
            for (matrix, scale), delta in zip(matrices, start[:2], strict=True)
        )

    def _adjoints(
        self,
        products: tuple[Callable[..., Tensor], ...],
        jacobians: Iterable[Jacobians],
        start: Adjoint,
        places: Iterable[tuple[Tensor | None, Tensor | None, Tensor | None]],
    ) -> Iterator[Adjoint]:
        """Those that follow `start`, with places for their parts; delta_D must not be where it was before."""
        plus_sigma_kt, minus_tau_k = products
        delta_primal, delta_dual, delta_dual_bar = start
        for jacobian, (primal_place, dual_place, bar_place) in zip(jacobians, places, strict=False):
            back = plus_sigma_kt(delta_primal, delta_dual_bar)
            delta_primal = jacobian.primal.times(back, primal_place)  # (1)
            back, previous = minus_tau_k(delta_dual, delta_primal), delta_dual
            delta_dual = jacobian.dual.times(back, dual_place)  # (2)
            delta_dual_bar = self.extrapolate(previous, delta_dual, bar_place)  # (3)
            yield Adjoint(delta_primal, delta_dual, delta_dual_bar)

    def adjoint_blocks(self, operator: Tensor, grad: Tensor) -> Callable[[Jacobians, Tensor, Tensor], Adjoint]:
        """Algorithm 2 in blocks: a function that goes on by the s iterations of its Jacobians, the last one first.

        It leaves their delta_P in its second argument, (s, B, n), which may be the memory of the primal Jacobians'
        arguments, and their extrapolated delta_D in its third, (s, B, m). What it returns is as after the block.
        """
        adjoint = Adjoint(*(part.clone() for part in self.adjoint_start(operator, grad)))
        products = self._backward_products(operator, adjoint)
        duals = torch.empty_like(adjoint.dual), torch.empty_like(adjoint.dual)
        return partial(self._adjoint_block, products, duals, adjoint)

    def _adjoint_block(
        self,
        products: tuple[Callable[..., Tensor], ...],
        duals: tuple[Tensor, Tensor],
        adjoint: Adjoint,
        jacobians: Jacobians,
        delta_primal: Tensor,
        delta_dual_bar: Tensor,
    ) -> Adjoint:
        """Move `adjoint` on by one block, in place; `duals` is memory for delta_D."""
        places = zip(reversed(delta_primal.unbind()), cycle(duals), reversed(delta_dual_bar.unbind()), strict=False)
        last = last_of(self._adjoints(products, jacobians.each(), adjoint, places))
        for part, value in zip(adjoint, last, strict=True):
            part.copy_(value)
        return adjoint

    def adjoint_sums(
        self, operator: Tensor, jacobians: Jacobians, number: int, start: Adjoint, sums: tuple[Tensor, Tensor]
    ) -> Adjoint:
        """Go `number` iterations of Algorithm 2 on with the same Jacobians; add delta_P and delta_D up in `sums`."""
        products = self._backward_products(operator, start)
        for adjoint in self._adjoints(products, repeat(jacobians, number), start, repeat((None, None, None))):
            sums[0].add_(adjoint.primal)
            sums[1].add_(adjoint.dual)
        return adjoint


def last_of(iterator: Iterator[Any]) -> Any:
    """Run an iterator to its end, keeping no more than an item."""
    (last,) = deque(iterator, maxlen=1)
    return last


def chambolle_pock(
    operator: Tensor,
    *,
    radius: float,
    step_ratio: float = 10.0,
    extrapolation: float = 1.0,
    step_norm: str = "frobenius",
) -> ChambollePock:
    """Return Chambolle-Pock for `operator` (m, n) with the step sizes of the paper's experiments.

    sigma = step_ratio * 0.99 / ||K|| and tau = 0.99 / (step_ratio * ||K||), where `step_norm` says which norm of K
    that is (see `STEP_NORMS`). With both, sigma tau ||K||_2^2 <= 0.99^2 < 1. Raises `InputError` for settings out of
    range or an operator without a norm.
    """
    require_positive("step_ratio", step_ratio)
    require_choice("step_norm", step_norm, tuple(STEP_NORMS))
    if not 0.0 <= extrapolation <= 1.0:
        raise InputError(f"extrapolation must be in [0, 1], got {extrapolation!r}")
    norm = STEP_NORMS[step_norm](operator)
    if norm == 0.0:
        raise InputError("the operator is zero: its step sizes are not defined; start from another one")
    sigma, tau = step_ratio * 0.99 / norm, 0.99 / (step_ratio * norm)
    held = torch.finfo(operator.dtype)
    if not held.tiny <= min(sigma, tau) <= max(sigma, tau) <= held.max:
        raise InputError(
            f"the operator's norm {norm:g} and step_ratio {step_ratio:g} make step sizes {sigma:g} and {tau:g}, out of "
            f"the range of {operator.dtype}; scale the operator"
        )
    return ChambollePock(Dequantization(radius), sigma, tau, float(extrapolation))


@cache
def blas_threads() -> ThreadpoolController:
    """The thread pools of the libraries that are loaded, SciPy's BLAS among them."""
    return ThreadpoolController()


def largest_entry(matrix: Tensor) -> float:
    """In absolute value, by one pass over the matrix; NaN if it has one."""
    low, high = matrix.detach().aminmax()
    return max(float(high), -float(low))


def magnitude(matrix: Tensor) -> float:
    """The power of two at or below the largest entry in absolute value; 1/2 for a matrix of zeros.

    Raises `InputError` for what is no matrix and for entries that are not finite.
    """
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"the operator must be a matrix (m, n), m and n at least 1, got shape {tuple(matrix.shape)}")
    if not math.isfinite(largest := largest_entry(matrix)):
        raise InputError("the operator has entries that are not finite (NaN or infinity)")
    return math.ldexp(0.5, math.frexp(largest)[1])


def spectral_norm(operator: Tensor) -> float:
    """||K||_2 to float64 rounding, at about a third of the price of singular values.

    The root of the largest eigenvalue of the smaller Gram matrix. Squaring costs no accuracy at the upper end
    of the spectrum, and LAPACK is asked for that one eigenvalue only (reduction to tridiagonal form, then
    bisection), so the result is never an underestimate as those of power or Lanczos iterations are.
    Raises `InputError` as `magnitude`.
    """
    scale = magnitude(operator)  # squares of entries near 1 neither overflow nor vanish
    matrix = operator.detach().to("cpu", torch.float64).contiguous()
    transposed = (matrix / scale).numpy().T  # (n, m) as LAPACK has matrices, without a copy
    m, n = matrix.shape
    with blas_threads().limit(limits=1):  # more only wait for each other, for a second where the machine is busy
        gram = blas.dsyrk(1.0, transposed, trans=int(m < n), lower=1)  # lower triangle of K^T K, or of K K^T if m < n
        last = len(gram) - 1
        (largest,) = eigh(gram, eigvals_only=True, subset_by_index=[last, last], check_finite=False, overwrite_a=True)
    return scale * max(float(largest), 0.0) ** 0.5


SQUARES_ARE_SAFE = 1e-100, 1e100  # a sum of squares between these has lost nothing to overflow or underflow


def frobenius_norm(operator: Tensor) -> float:
    """Return ||K||_F, the root of the sum of squares, summed in float64.

    It is at least ||K||_2 and at most min(m, n)^{1/2} times as large. Raises `InputError` as `magnitude`.
    """
    matrix = operator.detach()
    norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) if matrix.ndim == 2 else 0.0
    if SQUARES_ARE_SAFE[0] < norm < SQUARES_ARE_SAFE[1]:
        return norm
    scale = magnitude(matrix)
    return scale * float(torch.linalg.vector_norm(matrix / scale, dtype=torch.float64))


# The ||K|| of the step sizes. The published numbers were made with the Frobenius norm: `tf.linalg.norm(K, ord=2)`
# without `axis` flattens the matrix. It makes both steps up to min(m, n)^{1/2} times smaller than the spectral norm,
# which gives the largest steps that the theory allows.
STEP_NORMS: dict[str, Callable[[Tensor], float]] = {"frobenius": frobenius_norm, "spectral": spectral_norm}
