"""The limit of the gradient for L -> infinity, by one linear solve per frame.

At an optimum with free dual entries D and free primal entries P let Ktilde = K[D, P]. Summing Algorithm 2 over all
iterations with frozen masks gives Ktilde Delta_P = 0 and sigma Ktilde^T Delta_D = -mask_P * grad_y loss. Where Ktilde
is square and regular (a vertex, nearly every frame), hence Delta_P = 0 and, with lambda = Ktilde^-T grad_P,

    lim_{L -> inf} grad_K loss = sigma Delta_D (y*)^T - tau psi* (Delta_P)^T = -lambda (y*)^T (rows D; 0 elsewhere),

which does not depend on sigma and tau. Source: the theorem on the limit in Brauer and Lorenz (EUSIPCO 2023); the linear
solve is ours. It agrees with differentiating K[D, :] y = 0 at the vertex.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, Masks
from pdunroll.core.engine import Engine
from pdunroll.core.gradients import Backprop
from pdunroll.core.solve import Point, RestartedHalpern, duality_gap, free, gathered, lu_factors, polish, solve, trivial
from pdunroll.errors import InputError, require_integer, require_positive


@dataclass(frozen=True, kw_only=True)
class Implicit(Backprop):
    """The limit gradient at the last iterate; no backward iterations, memory independent of L.

    Trivial frames (0 is feasible, so y* = 0) are not iterated and add nothing to the gradient. Degenerate ones, where
    Ktilde is not square or singular, get the least-squares lambda of minimum norm.

    Args:
        polished: replace an iterate by the vertex of its masks where that has the smaller duality gap.
        tolerance: do not stop after L iterations, but solve each frame to this relative duality gap, in at most
            `max_iterations` iterations of restarted Halpern.

    `counts` holds how many trivial, vertex and degenerate frames there have been.
    """

    polished: bool = False
    tolerance: float | None = None
    max_iterations: int = 20_000
    counts: Counter[str] = field(default_factory=Counter, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            require_positive("tolerance", self.tolerance)
        require_integer("max_iterations", self.max_iterations, 1)
        if self.primal_mask != "active_set":
            raise InputError(f"Implicit needs primal_mask=active_set, got {self.primal_mask!r}: others have no limit")

    def forward(self, engine, operator, observation, iterations):
        algorithm = engine.algorithm
        easy = trivial(algorithm.problem, observation)
        x = observation[~easy]
        primal = torch.zeros_like(observation)
        masks = Masks(
            observation.new_zeros(len(x), len(operator), dtype=torch.bool), torch.zeros_like(x, dtype=torch.bool)
        )
        if len(x):
            if self.tolerance is None:
                primal[~easy], masks = self._iterate(engine, operator, x, iterations)
            else:
                primal[~easy], masks = self._solve(algorithm, operator, x)
        return primal, (primal[~easy], masks.dual, masks.primal, ~easy)

    def _iterate(self, engine: Engine, operator: Tensor, x: Tensor, iterations: int) -> tuple[Tensor, Masks]:
        algorithm = engine.algorithm
        iterate = engine.iterate(operator, x, iterations)
        masks = free(algorithm.problem, Point(*iterate[:4]), x)
        if not self.polished:
            return iterate.primal, masks
        K, wide = operator.double(), x.double()
        point = Point(*(part.double() for part in iterate[:4]))
        vertex, dual, found = polish(algorithm.problem, K, wide, point)
        better = found & (
            duality_gap(algorithm.problem, K, wide, vertex, dual)
            < duality_gap(algorithm.problem, K, wide, point.primal, point.dual)
        )
        return torch.where(better[:, None], vertex.to(x.dtype), iterate.primal), masks

    def _solve(self, algorithm: ChambollePock, operator: Tensor, x: Tensor) -> tuple[Tensor, Masks]:
        radius = algorithm.problem.radius
        found = solve(
            operator.double(), x.double(), radius=radius, tolerance=self.tolerance,
            max_iterations=self.max_iterations, algorithm=RestartedHalpern(),
        )  # fmt: skip
        # fixed entries lie on the border but for rounding, since projections put them there
        inside = 1 - 1e-9
        masks = Masks(found.dual.abs() < inside, (found.primal - x).abs() < inside * radius)
        return found.primal.to(x.dtype), masks

    def gradient(self, engine, operator, kept, iterations, grad):
        primal, dual_free, primal_free, hard = kept
        masks = Masks(dual_free, primal_free)
        multiplier, vertex = multipliers(operator.double(), masks, grad[hard].double())
        self.counts.update(trivial=int((~hard).sum()), vertex=int(vertex.sum()), degenerate=int((~vertex).sum()))
        return -(multiplier.T @ primal.double()).to(operator.dtype)


def multipliers(operator: Tensor, masks: Masks, grad: Tensor) -> tuple[Tensor, Tensor]:
    """lambda with Ktilde^T lambda = grad_P: (B, m), zero on fixed rows, and which frames are vertices, (B,).

    Least squares of minimum norm where there is no or no unique solution.
    """
    multiplier = grad.new_zeros(len(grad), len(operator))
    if not len(grad):
        return multiplier, torch.zeros(0, dtype=torch.bool, device=grad.device)
    block, rows, columns, vertex = gathered(operator, masks)
    in_rows, in_columns = masks.dual.gather(1, rows), masks.primal.gather(1, columns)
    right = grad.gather(1, columns) * in_columns
    square = vertex.nonzero()[:, 0]
    factors, pivots, info = lu_factors(block[square])
    solution = torch.zeros_like(right)
    solution[square] = torch.linalg.lu_solve(factors, pivots, right[square, :, None], adjoint=True)[:, :, 0]
    regular = (info == 0) & solution[square].isfinite().all(dim=1)
    vertex = vertex.index_fill(0, square[~regular], False)
    rest = (~vertex).nonzero()[:, 0]
    if len(rest):
        ktilde = block[rest] * (in_rows[rest, :, None] & in_columns[rest, None, :])
        solution[rest] = least_squares(ktilde.mT, right[rest])
    return multiplier.scatter(1, rows, solution * in_rows), vertex


def least_squares(matrices: Tensor, right: Tensor) -> Tensor:
    """Return the solution of minimum norm of each least-squares problem; matrices (B, s, t), right (B, s) -> (B, t).

    By the pseudoinverse: of the drivers of `torch.linalg.lstsq` for matrices that lack rank, "gelsy" reads pivots that
    nobody has set, so that its result depends on what lay in memory (PyTorch issue 187411, open in 2.13), and "gelsd"
    takes no right side with NaN.
    """
    return torch.linalg.pinv(matrices, rtol=1e-10).matmul(right[:, :, None])[:, :, 0]
