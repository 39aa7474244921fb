"""Algorithm 1 (Chambolle-Pock) and Algorithm 2 (its backward recursion), an iteration each, and their step sizes.

Source: Brauer and Lorenz (EUSIPCO 2023). Rows are frames: where the paper writes K y for a column y, the code writes
y @ K.T for a batch y of shape (B, n). These two steps define the algorithm; `core.engine` runs blocks of them fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from scipy.linalg import blas, eigh
from threadpoolctl import ThreadpoolController
from torch import Tensor

from pdunroll.core.problem import Dequantization, PrimalMask, dual_mask
from pdunroll.errors import InputError, require_choice, require_positive


class Iterate(NamedTuple):
    """What one iteration l of Algorithm 1 leaves behind."""

    z_dual: Tensor  # z_D^l   (B, m), the argument of the dual prox
    dual: Tensor  # psi^l   (B, m)
    z_primal: Tensor  # z_P^l   (B, n), the argument of the primal prox (before x is subtracted)
    primal: Tensor  # y^l     (B, n)
    extrapolated: Tensor  # ybar^l  (B, n)


class Adjoint(NamedTuple):
    """What one iteration l of Algorithm 2 leaves behind."""

    primal: Tensor  # delta_P^l     (B, n)
    dual: Tensor  # delta_D^l     (B, m)
    dual_bar: Tensor  # deltabar_D^l  (B, m)


class Masks(NamedTuple):
    """The diagonals of the Jacobians of both proximal operators, as booleans: which entries of psi and y are free."""

    dual: Tensor  # (B, m)
    primal: Tensor  # (B, n)


@dataclass(frozen=True)
class ChambollePock:
    """Algorithms 1 and 2 with fixed step sizes; needs sigma tau ||K||_2^2 < 1 and theta in [0, 1]."""

    problem: Dequantization
    sigma: float  # dual step size
    tau: float  # primal step size
    theta: float  # extrapolation

    @staticmethod
    def start(K: Tensor, x: Tensor) -> Iterate:
        """Return where Algorithm 1 starts: psi^0 = 0, y^0 = ybar^0 = x; K (m, n), x (B, n)."""
        dual = x.new_zeros(len(x), len(K))
        return Iterate(dual, dual, x, x, x)

    def step(self, K: Tensor, x: Tensor, s: Iterate) -> Iterate:
        """Return the iterate after `s`: one iteration of Algorithm 1."""
        z_dual = s.dual + self.sigma * s.extrapolated @ K.T  # psi + sigma K ybar
        dual = self.problem.prox_dual(z_dual)
        z_primal = s.primal - self.tau * dual @ K  # y - tau K^T psi
        primal = self.problem.prox_primal(z_primal, self.problem.box(x))
        return Iterate(z_dual, dual, z_primal, primal, primal + self.theta * (primal - s.primal))

    def iterates(self, K: Tensor, x: Tensor, s: Iterate | None = None) -> Iterator[Iterate]:
        """Yield the iterates l = 1, 2, ... without end, or those that follow `s`."""
        s = self.start(K, x) if s is None else s
        while True:
            s = self.step(K, x, s)
            yield s

    @staticmethod
    def masks(s: Iterate, x: Tensor, mask: PrimalMask) -> Masks:
        """Return the Jacobians' diagonals at an iterate."""
        return Masks(dual_mask(s.z_dual), mask.of(s.z_primal, x))

    @staticmethod
    def adjoint_start(K: Tensor, grad: Tensor) -> Adjoint:
        """Return where Algorithm 2 starts: delta_P = grad, the gradient at y^L (B, n), and delta_D = 0."""
        dual = grad.new_zeros(len(grad), len(K))
        return Adjoint(grad, dual, dual)

    def adjoint_step(self, K: Tensor, masks: Masks, d: Adjoint) -> Adjoint:
        """Return the step before `d`: one iteration of Algorithm 2, with the masks of that iteration."""
        primal = masks.primal * (d.primal + self.sigma * d.dual_bar @ K)  # (1)
        dual = masks.dual * (d.dual - self.tau * primal @ K.T)  # (2)
        return Adjoint(primal, dual, dual + self.theta * (dual - d.dual))  # (3)


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
    number = isinstance(extrapolation, int | float) and not isinstance(extrapolation, bool)
    if not (number and 0.0 <= extrapolation <= 1.0):
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


SAFE = 1e-15, 1e15  # sums of squares of numbers with such a norm neither overflow nor vanish, in float32 either


def frobenius_norm(operator: Tensor) -> float:
    """Return ||K||_F, the root of the sum of squares (of each row in the operator's dtype, then in float64).

    It is at least ||K||_2 and at most min(m, n)^{1/2} times as large. Raises `InputError` as `magnitude`.
    """
    matrix = operator.detach()
    norm = _root_of_squares(matrix) if matrix.ndim == 2 else 0.0
    if SAFE[0] < norm < SAFE[1]:
        return norm
    scale = magnitude(matrix)
    return scale * _root_of_squares(matrix / scale)


def _root_of_squares(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1), dtype=torch.float64))


# The ||K|| of the step sizes. The published numbers were made with the Frobenius norm: `tf.linalg.norm(K, ord=2)`
# without `axis` flattens the matrix. It makes both steps up to min(m, n)^{1/2} times smaller than the spectral norm,
# which gives the largest steps that the theory allows.
STEP_NORMS: dict[str, Callable[[Tensor], float]] = {"frobenius": frobenius_norm, "spectral": spectral_norm}
