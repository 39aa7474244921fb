"""The limit of the gradient for L -> infinity, by one linear solve per frame.

At an optimum with free dual entries D and free primal entries P let Ktilde = K[D, P]. Summing Algorithm 2 over all
iterations with frozen masks gives Ktilde Delta_P = 0 and sigma Ktilde^T Delta_D = -mask_P * grad_y loss. Where Ktilde
is square and regular (a vertex, nearly every frame), hence Delta_P = 0 and, with lambda = Ktilde^-T grad_P,

    lim_{L -> inf} grad_K loss = sigma Delta_D (y*)^T - tau psi* (Delta_P)^T = -lambda (y*)^T (rows D; 0 elsewhere),

which does not depend on sigma and tau. Source: the theorem on the limit in Brauer and Lorenz (EUSIPCO 2023); the linear
solve is ours. It agrees with differentiating K[D, :] y = 0 at the vertex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdunroll.core.backward import InputGradients
from pdunroll.core.chambolle_pock import Iterate
from pdunroll.core.engine import Engine
from pdunroll.core.gradients import Backprop
from pdunroll.core.polish import lu_factors, polish, reduced_operator
from pdunroll.core.problem import Box, Dequantization, Masks, Observation
from pdunroll.core.solve import solve
from pdunroll.errors import InputError, require_integer, require_positive


@dataclass(frozen=True, kw_only=True)
class Implicit(Backprop):
    """The limit of the gradient for L -> infinity, by one linear solve per frame.

    With Ktilde the free rows D and free columns P of K at the optimum (y*, psi*), the limit is

        grad_K = -lambda (y*)^T,    Ktilde^T lambda = (grad_y loss)_P,    lambda = 0 outside of D.

    There are no backward iterations, and the memory does not depend on L. Where Ktilde is not square or is singular (a
    degenerate frame), lambda is the least-squares solution of minimum norm. Frames with y* = 0 are not iterated and add
    nothing to the gradient.

    Attributes:
        polished: replace y^L by the vertex of its masks where that has the smaller duality gap (default). The result is
            then exact as soon as the masks are those of the optimum. Otherwise it is as far from the limit as y^L is.
        tolerance: if given, solve each frame to this relative duality gap instead of running L iterations.
        max_iterations: the limit of iterations of this solve, >= 1.

    Raises:
        InputError: for settings out of range, and for a `primal_mask` other than "active_set", which has no limit.

    Examples:
        >>> import pdunroll, torch
        >>> operator, x = torch.eye(2, requires_grad=True), torch.tensor([[0.5, 0.1]])
        >>> y = pdunroll.unroll(operator, x, radius=0.2, iterations=100, backprop=pdunroll.Implicit())
        >>> y.allclose(torch.tensor([[0.3, 0.0]]))
        True
        >>> y.sum().backward()
        >>> operator.grad.allclose(torch.tensor([[0.0, 0.0], [-0.3, 0.0]]))  # only the second row is free
        True
    """

    polished: bool = True
    tolerance: float | None = None
    max_iterations: int = 20_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            require_positive("tolerance", self.tolerance)
        require_integer("max_iterations", self.max_iterations, 1)
        if self.primal_mask != "active_set":
            raise InputError(f"Implicit needs primal_mask=active_set, got {self.primal_mask!r}: others have no limit")

    def forward(self, engine: Engine, K: Tensor, x: Observation, iterations: int) -> tuple[Tensor, tuple[Any, ...]]:
        """Return y^L or y* (B, n), with y = 0 of the trivial frames, and what `gradient` needs of the others."""
        box = engine.algorithm.problem.box(x)
        nontrivial = ~engine.algorithm.problem.trivial(box)
        primal, frames = torch.zeros_like(box.start), box[nontrivial]
        masks = Masks(
            K.new_zeros(len(frames), len(K), dtype=torch.bool), torch.zeros_like(frames.start, dtype=torch.bool)
        )
        if len(frames):
            if self.tolerance is None:
                primal[nontrivial], masks = self._iterate(engine, K, frames, iterations)
            else:
                primal[nontrivial], masks = self._solve(engine.algorithm.problem, K, frames, self.tolerance)
        return primal, (primal[nontrivial], *masks, nontrivial)

    def _iterate(self, engine: Engine, K: Tensor, x: Box, iterations: int) -> tuple[Tensor, Masks]:
        problem, iterate = engine.algorithm.problem, engine.iterate(K, x, iterations)
        masks = problem.free_masks(iterate.z_dual, iterate.z_primal, x)
        return _polished(problem, K, x, iterate) if self.polished else iterate.primal, masks

    def _solve(self, problem: Dequantization, K: Tensor, x: Box, tolerance: float) -> tuple[Tensor, Masks]:
        x = x.to(torch.float64)
        found = solve(K.double(), x, tolerance=tolerance, max_iterations=self.max_iterations)
        return found.primal.to(K.dtype), problem.interior_masks(found.primal, found.dual, x)

    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return the limit gradient, (m, n)."""
        primal, dual_mask, primal_mask, nontrivial = kept
        multiplier, _ = multipliers(K.double(), Masks(dual_mask, primal_mask), grad[nontrivial].double())
        return -(multiplier.T @ primal.double()).to(K.dtype)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those that the optimum depends on: x and the radius, and not the step sizes."""
        return "observation", "radius"

    def input_gradients(
        self, engine: Engine, K: Tensor, x: Tensor, y: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor
    ) -> InputGradients:
        """Return the limits of the gradients with respect to x and the radius.

        grad_x = grad_y loss - K^T lambda in the fixed columns, 0 elsewhere;    grad_radius = <grad_x, sign(y* - x)>
        """
        _, dual_mask, primal_mask, nontrivial = kept
        multiplier, _ = multipliers(K.double(), Masks(dual_mask, primal_mask), grad[nontrivial].double())
        held = torch.zeros_like(x)
        at_primal = grad[nontrivial] - (multiplier @ K.double()).to(x.dtype)
        held[nontrivial] = at_primal.masked_fill(primal_mask, 0.0)
        return InputGradients(held, (held * (y - x).sign()).sum())


def _polished(problem: Dequantization, K: Tensor, x: Box, iterate: Iterate) -> Tensor:
    """Return y^L, or the vertex of its masks where that has the smaller gap; computed in float64."""
    operator64, x64 = K.double(), x.to(torch.float64)
    z_dual, dual, z_primal, primal = (part.double() for part in iterate[:4])
    masks = problem.free_masks(z_dual, z_primal, x64)
    vertex_primal, vertex_dual, exists = polish(problem, operator64, x64, masks, primal, dual)
    vertex_gap = problem.duality_gap(operator64, x64, vertex_primal, vertex_dual)
    better = exists & (vertex_gap < problem.duality_gap(operator64, x64, primal, dual))
    return torch.where(better[:, None], vertex_primal.to(K.dtype), iterate.primal)


def multipliers(operator: Tensor, masks: Masks, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return lambda with Ktilde^T lambda = grad_P of each frame, and which frames are vertices.

    Where there is no solution, or more than one, lambda is the least-squares solution of minimum norm.

    Args:
        operator: K, (m, n).
        masks: the free entries of psi (B, m) and y (B, n).
        grad: the gradient of the loss at y, (B, n).

    Returns:
        lambda, (B, m), zero in fixed rows, and whether Ktilde is square and regular, (B,).
    """
    multiplier = grad.new_zeros(len(grad), len(operator))
    if not len(grad):
        return multiplier, torch.zeros(0, dtype=torch.bool, device=grad.device)
    matrix, rows, columns, row_is_free, column_is_free, vertex = reduced_operator(operator, masks)
    right = grad.gather(1, columns) * column_is_free
    square = vertex.nonzero()[:, 0]
    factors, pivots, info = lu_factors(matrix[square])
    solution = torch.zeros_like(right)
    solution[square] = torch.linalg.lu_solve(factors, pivots, right[square, :, None], adjoint=True)[:, :, 0]
    regular = (info == 0) & solution[square].isfinite().all(dim=1)
    vertex = vertex.index_fill(0, square[~regular], False)
    degenerate = (~vertex).nonzero()[:, 0]
    if len(degenerate):
        ktilde = matrix[degenerate] * (row_is_free[degenerate, :, None] & column_is_free[degenerate, None, :])
        solution[degenerate] = least_squares(ktilde.mT, right[degenerate])
    return multiplier.scatter(1, rows, solution * row_is_free), vertex


def least_squares(matrices: Tensor, right: Tensor) -> Tensor:
    """Return the solution of minimum norm of each least-squares problem; matrices (B, s, t), right (B, s) -> (B, t).

    Computed by the pseudoinverse, because the drivers of `torch.linalg.lstsq` for matrices without full rank fail: the
    result of "gelsy" depends on uninitialized memory (PyTorch issue 187411, open in 2.13), and "gelsd" takes no right
    side with NaN.
    """
    return torch.linalg.pinv(matrices, rtol=1e-10).matmul(right[:, :, None])[:, :, 0]
