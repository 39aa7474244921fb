"""Algorithm 1 (Chambolle-Pock) and Algorithm 2 (its backward recursion), an iteration each, and their step sizes.

Source: Brauer and Lorenz (EUSIPCO 2023). Rows are frames: where the paper writes K y for a column y, the code writes
y @ K.T for a batch y of shape (B, n). These two steps define the algorithm; `core.engine` runs blocks of them fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from scipy.linalg import blas, eigh
from threadpoolctl import ThreadpoolController
from torch import Tensor

from pdunroll.core.problem import Dequantization, MaskOf, Masks, Observation, PrimalMask, dual_mask
from pdunroll.errors import InputError, require_choice, require_positive, require_share


class Iterate(NamedTuple):
    """The result of one iteration l of Algorithm 1."""

    z_dual: Tensor  # z_D^l   (B, m), the argument of the dual prox
    dual: Tensor  # psi^l   (B, m)
    z_primal: Tensor  # z_P^l   (B, n), the argument of the primal prox (before x is subtracted)
    primal: Tensor  # y^l     (B, n)
    extrapolated: Tensor  # ybar^l  (B, n)


class Adjoint(NamedTuple):
    """The result of one iteration l of Algorithm 2."""

    primal: Tensor  # delta_P^l     (B, n)
    dual: Tensor  # delta_D^l     (B, m)
    dual_bar: Tensor  # deltabar_D^l  (B, m)


@dataclass(frozen=True)
class ChambollePock:
    """Algorithms 1 and 2 with fixed step sizes.

    Attributes:
        problem: the lower-level problem, with both proximal operators.
        sigma: the dual step size; sigma tau ||K||_2^2 < 1 makes the iterates converge.
        tau: the primal step size.
        theta: the extrapolation, in [0, 1].
        initial: y^0 (B, n) and psi^0 (B, m) of a warm start; y^0 = x and psi^0 = 0 if None.

    Examples:
        >>> import torch
        >>> from pdunroll.core.chambolle_pock import ChambollePock
        >>> from pdunroll.core.problem import Dequantization
        >>> algorithm = ChambollePock(Dequantization(radius=0.25), sigma=0.5, tau=0.5, theta=1.0)
        >>> K, x = torch.eye(2), torch.tensor([[0.0, 0.5]])
        >>> algorithm.step(K, x, algorithm.start(K, x)).primal
        tensor([[0.0000, 0.3750]])
    """

    problem: Dequantization
    sigma: float
    tau: float
    theta: float
    initial: tuple[Tensor, Tensor] | None = field(default=None, compare=False)

    def start(self, K: Tensor, x: Observation) -> Iterate:
        """Return the start of Algorithm 1, `initial` with ybar^0 = y^0, for K (m, n) and x (B, n).

        Without `initial` it is psi^0 = 0 and y^0 = x, which of a box is the observation projected to it.
        """
        first = self.problem.box(x).start
        primal, dual = (first, first.new_zeros(len(first), len(K))) if self.initial is None else self.initial
        if (primal.shape, dual.shape) != (first.shape, (len(first), len(K))):
            raise InputError("a warm start needs y (B, n) and psi (B, m), and a strategy that iterates all frames")
        return Iterate(dual, dual, primal, primal, primal)

    def step(self, K: Tensor, x: Observation, s: Iterate) -> Iterate:
        """Return the iterate after `s`: one iteration of Algorithm 1."""
        z_dual = s.dual + self.sigma * s.extrapolated @ K.T  # psi + sigma K ybar
        dual = self.problem.prox_dual(z_dual)
        z_primal = s.primal - self.tau * dual @ K  # y - tau K^T psi
        primal = self.problem.prox_primal(z_primal, self.problem.box(x))
        return Iterate(z_dual, dual, z_primal, primal, primal + self.theta * (primal - s.primal))

    def iterates(self, K: Tensor, x: Observation, s: Iterate | None = None) -> Iterator[Iterate]:
        """Yield the iterates l = 1, 2, ... without end, or those that follow `s`."""
        s = self.start(K, x) if s is None else s
        while True:
            s = self.step(K, x, s)
            yield s

    def masks(self, s: Iterate, x: Observation, mask: MaskOf) -> Masks:
        """Return the Jacobians' diagonals at an iterate, with this one of the primal prox."""
        return Masks(dual_mask(s.z_dual), mask(self.problem.box(x)).of(s.z_primal))

    def step_with_masks(self, K: Tensor, x: Observation, s: Iterate, mask: PrimalMask) -> tuple[Iterate, Masks]:
        """Return the iterate after `s`, and the Jacobians' diagonals there, with this one of the primal prox."""
        s = self.step(K, x, s)
        return s, Masks(dual_mask(s.z_dual), mask.of(s.z_primal))

    @staticmethod
    def adjoint_start(K: Tensor, grad: Tensor) -> Adjoint:
        """Return the start of Algorithm 2: delta_P = grad, the gradient at y^L (B, n), and delta_D = 0."""
        dual = grad.new_zeros(len(grad), len(K))
        return Adjoint(grad, dual, dual)

    def adjoint_step(self, K: Tensor, masks: Masks, d: Adjoint) -> Adjoint:
        """Return the adjoint of the iteration before `d`: one iteration of Algorithm 2, with the masks of that one."""
        primal = masks.primal * (d.primal + self.sigma * d.dual_bar @ K)  # (1)
        dual = masks.dual * (d.dual - self.tau * primal @ K.T)  # (2)
        return Adjoint(primal, dual, dual + self.theta * (dual - d.dual))  # (3)


def chambolle_pock(
    operator: Tensor,
    *,
    radius: float | None = None,
    step_ratio: float = 10.0,
    step_scale: float = 0.99,
    extrapolation: float = 1.0,
    step_norm: str = "frobenius",
) -> ChambollePock:
    """Return Chambolle-Pock for an operator, with the step sizes of the paper's experiments.

    With both norms, sigma tau ||K||_2^2 <= step_scale^2 < 1.

    Args:
        operator: K, (m, n), float32 or float64.
        radius: half a quantization step, > 0; None if the observations are boxes.
        step_ratio: r > 0 in sigma = r c / ||K|| and tau = c / (r ||K||).
        step_scale: c in (0, 1).
        extrapolation: theta in [0, 1].
        step_norm: the norm ||K||, "frobenius" or "spectral" (see `STEP_NORMS`).

    Raises:
        InputError: for settings out of range, for an operator that is zero, not finite or no matrix, and for step sizes
            out of the range of its dtype.

    Examples:
        >>> import torch
        >>> from pdunroll.core.chambolle_pock import chambolle_pock
        >>> algorithm = chambolle_pock(2 * torch.eye(4), radius=1 / 16, step_ratio=10.0, step_norm="spectral")
        >>> algorithm.sigma, algorithm.tau
        (4.95, 0.0495)
    """
    require_positive("step_ratio", step_ratio)
    require_share("step_scale", require_positive("step_scale", step_scale))
    require_choice("step_norm", step_norm, tuple(STEP_NORMS))
    number = isinstance(extrapolation, int | float) and not isinstance(extrapolation, bool)
    if not (number and 0.0 <= extrapolation <= 1.0):
        raise InputError(f"extrapolation must be in [0, 1], got {extrapolation!r}")
    norm = STEP_NORMS[step_norm](operator)
    if norm == 0.0:
        raise InputError("the operator is zero: its step sizes are not defined; start from another one")
    sigma, tau = step_ratio * step_scale / norm, step_scale / (step_ratio * norm)
    limits = torch.finfo(operator.dtype)
    if not limits.tiny <= min(sigma, tau) <= max(sigma, tau) <= limits.max:
        raise InputError(
            f"the operator's norm {norm:g} and step_ratio {step_ratio:g} make step sizes {sigma:g} and {tau:g}, out of "
            f"the range of {operator.dtype}; scale the operator"
        )
    return ChambollePock(Dequantization(radius), sigma, tau, float(extrapolation))


@cache
def blas_threads() -> ThreadpoolController:
    """Return the thread pools of the libraries that are loaded, SciPy's BLAS among them."""
    return ThreadpoolController()


def largest_entry(matrix: Tensor) -> float:
    """Return the largest entry in absolute value, NaN if there is a NaN; in one pass over the matrix."""
    low, high = matrix.detach().aminmax()
    return max(float(high), -float(low))


def magnitude(matrix: Tensor) -> float:
    """Return the power of two at or below the largest entry in absolute value; 1/2 for a matrix of zeros.

    Raises:
        InputError: for what is no matrix and for entries that are not finite.
    """
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"the operator must be a matrix (m, n), m and n at least 1, got shape {tuple(matrix.shape)}")
    if not math.isfinite(largest := largest_entry(matrix)):
        raise InputError("the operator has entries that are not finite (NaN or infinity)")
    return math.ldexp(0.5, math.frexp(largest)[1])


def spectral_norm(operator: Tensor) -> float:
    """Return ||K||_2 to float64 rounding, in about a third of the time of singular values.

    It is the root of the largest eigenvalue of the smaller Gram matrix. Squaring costs no accuracy at the upper end
    of the spectrum, and LAPACK computes that one eigenvalue only (by reduction to tridiagonal form and bisection), so
    that the result is never an underestimate, as those of power or Lanczos iterations are.

    Args:
        operator: K, (m, n).

    Raises:
        InputError: for what is no matrix and for entries that are not finite.

    Examples:
        >>> import torch
        >>> from pdunroll.core.chambolle_pock import frobenius_norm, spectral_norm
        >>> K = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> round(spectral_norm(K), 12), frobenius_norm(K)
        (4.0, 5.0)
    """
    scale = magnitude(operator)  # squares of entries near 1 neither overflow nor vanish
    matrix = operator.detach().to("cpu", torch.float64).contiguous()
    transposed = (matrix / scale).numpy().T  # (n, m) in LAPACK's column-major layout, without a copy
    m, n = matrix.shape
    # several threads would only wait for each other, up to a second on a busy machine
    with blas_threads().limit(limits=1):
        # the lower triangle of K^T K, or of K K^T if m < n
        gram = blas.dsyrk(1.0, transposed, trans=int(m < n), lower=1)  # pyright: ignore[reportAttributeAccessIssue]
        last = len(gram) - 1
        (largest,) = eigh(gram, eigvals_only=True, subset_by_index=[last, last], check_finite=False, overwrite_a=True)
    return scale * max(float(largest), 0.0) ** 0.5


SAFE_NORMS = 1e-15, 1e15  # sums of squares of entries with norms in this range neither overflow nor vanish in float32


def frobenius_norm(operator: Tensor) -> float:
    """Return ||K||_F, the root of the sum of squares (of each row in the operator's dtype, then in float64).

    It is at least ||K||_2 and at most min(m, n)^{1/2} times as large.

    Args:
        operator: K, (m, n).

    Raises:
        InputError: for what is no matrix and for entries that are not finite.
    """
    matrix = operator.detach()
    norm = _root_of_squares(matrix) if matrix.ndim == 2 else 0.0
    if SAFE_NORMS[0] < norm < SAFE_NORMS[1]:
        return norm
    scale = magnitude(matrix)
    return scale * _root_of_squares(matrix / scale)


def _root_of_squares(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1), dtype=torch.float64))


# The ||K|| of the step sizes. The published numbers were made with the Frobenius norm: `tf.linalg.norm(K, ord=2)`
# without `axis` flattens the matrix. It makes both steps up to min(m, n)^{1/2} times smaller than the spectral norm,
# which gives the largest steps that the theory allows.
STEP_NORMS: dict[str, Callable[[Tensor], float]] = {"frobenius": frobenius_norm, "spectral": spectral_norm}
