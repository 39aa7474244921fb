"""Truncated backpropagation with geometric weights: phantom gradients that stay bounded, whatever b."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pdunroll.core.chambolle_pock import Adjoint
from pdunroll.core.engine import Engine
from pdunroll.core.gradients import Truncated
from pdunroll.core.problem import Masks
from pdunroll.errors import InputError, shown


@dataclass(frozen=True, kw_only=True)
class Phantom(Truncated):
    """`Truncated` with the t-th backward iteration weighted by (1 - d)^{t-1}, for a damping d in [0, 1).

    grad_K = sigma (sum_t (1-d)^{t-1} delta_D^t) (y^L)^T - tau psi^L (sum_t (1-d)^{t-1} delta_P^t)^T

    Geng, Zhang, Bai, Wang and Lin, "On Training Implicit Models" (NeurIPS 2021), replace the Jacobian J of the
    iteration by lambda J + (1 - lambda) I in the Neumann series lambda sum_t (lambda J + (1 - lambda) I)^t. That
    leaves the eigenvalue 1 of J at 1. With the released mask J has this eigenvalue, since Ktilde has a kernel, and the
    sum grows linearly in b. Here J is replaced by (1 - d) J, so that the sum tends to (I - (1 - d) J^T)^{-1}.

    The sum is bounded in b for theta = 1 and either mask: with frozen masks Algorithm 2 is the transpose of a
    Chambolle-Pock iteration for a convex problem, which is nonexpansive in its own norm. So ||delta^t|| <= c for all t,
    and the norm of the sum is at most c sum_t (1-d)^{t-1} <= c / d.

    With d = 0 and the same number of iterations it is `Truncated`. An eigenvalue mu of J has the factor
    1 / (1 - (1-d) mu) instead of 1 / (1 - mu): the damping changes little where d is much less than |1 - mu|.

    Attributes:
        iterations: b >= 1. All of them run, with either mask.
        damping: d in [0, 1); about 1 / d iterations count.

    Raises:
        InputError: for settings out of range.

    Example:
        >>> import pdunroll
        >>> pdunroll.Phantom(iterations=200, damping=0.02)
        Phantom(primal_mask='active_set', iterations=200, damping=0.02)
    """

    iterations: int = 300
    damping: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.damping, int | float) and not isinstance(self.damping, bool)
        if not (number and 0.0 <= self.damping < 1.0):
            raise InputError(f"backprop.damping must be at least 0 and below 1, got {shown(self.damping)}")

    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Tensor, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return the gradient after b backward iterations, (m, n)."""
        return next(self.gradients(engine, K, kept, [self.iterations], grad))

    def add_iterations(
        self, engine: Engine, K: Tensor, masks: Masks, count: int, adjoint: Adjoint, sums: tuple[Tensor, Tensor]
    ) -> Adjoint:
        """Run `count` backward iterations, each on (1 - d) times the last step; add them to `sums`."""
        if self.damping == 0.0:
            return super().add_iterations(engine, K, masks, count, adjoint, sums)
        for _ in range(count):
            adjoint = engine.backward_sums(K, masks, 1, adjoint, sums)
            adjoint = Adjoint(*((1.0 - self.damping) * part for part in adjoint))
        return adjoint
