"""The Chambolle-Pock iteration (Algorithm 1) and its backward recursion (Algorithm 2), one step a turn.

Both are generators, so that what to keep, and when to stop, is the caller's business. Rows are frames: where
the paper writes K y for a column y, the code writes y @ K.T for a batch y of shape (B, n).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice, repeat
from typing import NamedTuple

import torch
from scipy.linalg import blas, eigh
from threadpoolctl import ThreadpoolController
from torch import Tensor

from pdunroll.errors import InputError, require_positive
from pdunroll.kernels import FASTEST, Library, captured
from pdunroll.problem import Dequantization

STRETCH = 50  # iterations in one captured graph


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


class Masks(NamedTuple):
    """The diagonal Jacobians of both proximal operators in one iteration: entries 0 and 1."""

    dual: Tensor  # (B, m)
    primal: Tensor  # (B, n)


Places = Iterable[tuple[Tensor | None, Tensor | None]]  # where an iteration puts its results for dual and primal
NEW: Places = repeat((None, None))  # into new memory, without end


@dataclass(frozen=True)
class ChambollePock:
    """Algorithm 1 and 2 with fixed step sizes; needs sigma tau ||K||_2^2 < 1 and theta in [0, 1]."""

    problem: Dequantization
    sigma: float  # dual step size
    tau: float  # primal step size
    theta: float  # extrapolation
    library: Library = FASTEST  # what does the products

    def iterates(
        self, operator: Tensor, observation: Tensor, state: State | None = None, places: Places = NEW
    ) -> Iterator[Iterate]:
        """Algorithm 1: yield the iterates l = 1, 2, ..., or those that follow `state`, one for each of `places`.

        operator (m, n), observation x (B, n); y^0 = ybar^0 = x, psi^0 = 0. A place takes z_D^l and z_P^l.
        """
        prox_dual, prox_primal = self.problem.prox_dual, self.problem.prox_primal
        plus_sigma_k = self.library.product(operator, self.sigma, len(observation))
        minus_tau_kt = self.library.product(operator.T, -self.tau, len(observation))
        box = self.problem.box(observation)
        dual, primal, extrapolated = self.start(operator, observation) if state is None else state
        for dual_place, primal_place in places:
            z_dual = plus_sigma_k(dual, extrapolated, dual_place)  # psi + sigma K ybar
            dual = prox_dual(z_dual)
            z_primal = minus_tau_kt(primal, dual, primal_place)  # y - tau K^T psi
            previous, primal = primal, prox_primal(z_primal, box)
            extrapolated = self.extrapolate(previous, primal)
            yield Iterate(z_dual, dual, z_primal, primal, extrapolated)

    def iterate(self, operator: Tensor, observation: Tensor, number: int) -> Iterate:
        """The iterate l = `number`."""
        if operator.is_cuda and number > STRETCH:
            return self._iterate_by_stretches(operator, observation, number)
        return next(islice(self.iterates(operator, observation), number - 1, None))

    def _iterate_by_stretches(self, operator: Tensor, observation: Tensor, number: int) -> Iterate:
        """The same, most of it in stretches of one captured graph: on GPUs launches cost more than products."""
        state = State(*(tensor.clone() for tensor in self.start(operator, observation)))

        def stretch() -> None:
            last = next(islice(self.iterates(operator, observation, state), STRETCH - 1, None))
            for tensor, value in zip(state, last.state, strict=True):
                tensor.copy_(value)

        advance = captured(stretch, state)
        stretches, rest = divmod(number - 1, STRETCH)
        for _ in range(stretches):
            advance()
        return next(islice(self.iterates(operator, observation, state), rest, None))

    def extrapolate(self, previous: Tensor, latest: Tensor) -> Tensor:
        """latest + theta (latest - previous), in one pass."""
        return torch.lerp(previous, latest, 1.0 + self.theta)

    @staticmethod
    def start(operator: Tensor, observation: Tensor) -> State:
        """Where Algorithm 1 starts: psi^0 = 0, y^0 = ybar^0 = x."""
        return State(observation.new_zeros(len(observation), len(operator)), observation, observation)

    def adjoints(
        self, operator: Tensor, masks: Iterable[Masks], grad: Tensor, places: Places = NEW
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Algorithm 2: yield (delta_P^l, delta_D^l) for l = L, L - 1, ..., one pair for each of `masks`.

        grad is the gradient of the loss with respect to y^L, (B, n); delta_P (B, n), delta_D (B, m). A place takes
        delta_D^l and delta_P^l.
        """
        plus_sigma_kt = self.library.product(operator.T, self.sigma, len(grad))
        minus_tau_k = self.library.product(operator, -self.tau, len(grad))
        delta_primal = grad
        delta_dual = delta_dual_bar = grad.new_zeros(len(grad), len(operator))
        for mask, (dual_place, primal_place) in zip(masks, places, strict=False):
            back = plus_sigma_kt(delta_primal, delta_dual_bar)
            delta_primal = torch.mul(back, mask.primal, out=primal_place)  # (1)
            back, previous = minus_tau_k(delta_dual, delta_primal), delta_dual
            delta_dual = torch.mul(back, mask.dual, out=dual_place)  # (2)
            delta_dual_bar = self.extrapolate(previous, delta_dual)  # (3)
            yield delta_primal, delta_dual


def chambolle_pock(
    operator: Tensor, *, radius: float, step_ratio: float = 10.0, extrapolation: float = 1.0
) -> ChambollePock:
    """Chambolle-Pock for `operator` (m, n) with the step sizes of the paper's experiments.

    sigma = step_ratio * 0.99 / ||K||_2 and tau = 0.99 / (step_ratio * ||K||_2), so that
    sigma tau ||K||_2^2 = 0.99^2 < 1. Raises `InputError` for settings out of range or an operator without a norm.
    """
    require_positive("step_ratio", step_ratio)
    if not 0.0 <= extrapolation <= 1.0:
        raise InputError(f"extrapolation must be in [0, 1], got {extrapolation!r}")
    norm = spectral_norm(operator)
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
