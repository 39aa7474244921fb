"""Certified optima of the lower-level problem: a primal-dual pair and its duality gap, for each frame.

    y* in argmin_y ||K y||_1   subject to   ||y - x||_inf <= radius

An algorithm (strategy object) iterates the frames of a batch together. Each frame that its duality gap certifies leaves
the batch. Since optima are vertices of a polytope as a rule, the masks of the proximal operators settle after finitely
many iterations; from then on one linear solve gives the vertex itself (`polish`).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, Iterate, Masks, chambolle_pock, magnitude
from pdunroll.core.engine import engine_for
from pdunroll.core.problem import Dequantization, active_set, dual_mask, require_problem
from pdunroll.errors import InputError, require_integer, require_positive, shown


class Solution(NamedTuple):
    """What `solve` found for each of B frames."""

    primal: Tensor  # y  (B, n), feasible
    dual: Tensor  # psi  (B, m), feasible
    gap: Tensor  # (B,) relative duality gap, float64
    iterations: Tensor  # (B,) iterations taken; 0 for trivial frames


class Point(NamedTuple):
    """A feasible primal-dual pair of an algorithm, with the arguments of the proximal operators that gave it."""

    z_dual: Tensor  # (B, m)
    dual: Tensor  # (B, m)
    z_primal: Tensor  # (B, n)
    primal: Tensor  # (B, n)


def duality_gap(problem: Dequantization, operator: Tensor, observation: Tensor, primal: Tensor, dual: Tensor) -> Tensor:
    """Relative duality gap of feasible pairs, (B,), in closed form:

        ||K y||_1 - (x^T K^T psi - radius ||K^T psi||_1), divided by ||K y||_1.

    Summed as terms that are not negative each, so that small gaps do not drown in the rounding of two large numbers.
    """
    image, slope = primal @ operator.T, dual @ operator  # K y, K^T psi
    absolute = (image.abs() - dual * image).sum(dim=1)
    absolute += (problem.radius * slope.abs() + slope * (primal - observation)).sum(dim=1)
    objective = image.abs().sum(dim=1)
    return absolute.clamp(min=0.0) / objective.clamp(min=torch.finfo(objective.dtype).tiny)


def trivial(problem: Dequantization, observation: Tensor) -> Tensor:
    """Which frames have y* = 0: where 0 is feasible, (B,)."""
    return (observation.abs() <= problem.radius).all(dim=1)


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """A way to iterate towards the optimum of every frame of a batch.

    `polished`: whether `solve` tries the vertex (see `polish`) once a frame's masks have settled.
    """

    polished: bool = True

    @abstractmethod
    def points(
        self, algorithm: ChambollePock, operator: Tensor, observation: Tensor, start: Point | None
    ) -> Generator[Point, Tensor | None, None]:
        """Yield one feasible point an iteration, without end, from y = x and psi = 0 or from `start`.

        Accepts by `send` a boolean tensor (B,) of the frames to keep; the batch then shrinks to these.
        """


@dataclass(frozen=True, kw_only=True)
class PlainChambollePock(Algorithm):
    """Chambolle-Pock as it stands (Algorithm 1)."""

    def points(self, algorithm, operator, observation, start):
        engine = engine_for(algorithm, operator)
        iterate = algorithm.start(operator, observation) if start is None else Iterate(*start, start.primal)
        while True:
            iterate = engine.iterate(operator, observation, 1, iterate)
            keep = yield Point(*iterate[:4])
            if keep is not None:
                observation, iterate = observation[keep], Iterate(*(part[keep] for part in iterate))


@dataclass(frozen=True, kw_only=True)
class RestartedHalpern(Algorithm):
    """Restarted reflected Halpern primal-dual hybrid gradient, restarted per frame.

    With T one primal-dual step and z = (y, psi), anchored at the point z^0 of the last restart,

        z^{k+1} = (k+1)/(k+2) (2 T(z^k) - z^k) + 1/(k+2) z^0.

    A frame restarts from T(z^k) when its fixed-point residual has fallen to `sufficient` of that at the last restart,
    or to `necessary` of it and now rises, or when the stretch is `artificial` of all its iterations. At a restart the
    primal weight moves towards the ratio of the distances travelled in dual and primal.
    Source: Lu and Yang, "Restarted Halpern PDHG for linear programming" (2024), as in cuPDLPx.
    """

    sufficient: float = 0.2
    necessary: float = 0.8
    artificial: float = 0.36
    smoothing: float = 0.5  # of the primal weight, on a logarithmic scale
    period: int = 10  # iterations between looks at the residual

    def __post_init__(self) -> None:
        for name in ("sufficient", "necessary", "artificial", "smoothing"):
            require_positive(f"algorithm.{name}", getattr(self, name))
        require_integer("algorithm.period", self.period, 1)

    def points(self, algorithm, operator, observation, start):
        B = len(observation)
        scale = (algorithm.sigma * algorithm.tau) ** 0.5  # 0.99 / ||K||_2
        column = observation.new_ones(B, 1)
        weight = column * (algorithm.sigma / algorithm.tau) ** 0.5
        y, psi = (observation, observation.new_zeros(B, len(operator))) if start is None else (start.primal, start.dual)
        y0, psi0 = y, psi
        k, total = torch.zeros_like(column), 0
        first, last = column * torch.inf, column * torch.inf  # residuals: at the restart, at the last look
        box = algorithm.problem.box(observation)
        product, transposed = engine_for(algorithm, operator).product, operator.T
        while True:
            sigma, tau = scale * weight, scale / weight
            z_primal = tau * product(y / tau, psi, transposed, -1.0)  # y - tau K^T psi
            y_next = algorithm.problem.prox_primal(z_primal, box)
            z_dual = sigma * product(psi / sigma, 2.0 * y_next - y, operator, 1.0)  # psi + sigma K (2 y_next - y)
            psi_next = algorithm.problem.prox_dual(z_dual)
            keep = yield Point(z_dual, psi_next, z_primal, y_next)
            total += 1
            restart = None
            if total % self.period == 0 or total == 1:
                residual = (
                    (y_next - y).square().sum(1, keepdim=True) / tau
                    + (psi_next - psi).square().sum(1, keepdim=True) / sigma
                ).sqrt()
                first = torch.where(torch.isinf(first), residual, first)
                restart = (
                    (residual <= self.sufficient * first)
                    | ((residual <= self.necessary * first) & (residual > last))
                    | (k >= self.artificial * total)
                ) & (k > 0)
                last = residual
            share = (k + 1.0) / (k + 2.0)
            y = share * (2.0 * y_next - y) + (1.0 - share) * y0
            psi = share * (2.0 * psi_next - psi) + (1.0 - share) * psi0
            k = k + 1.0
            if restart is not None and restart.any():
                travelled = [(a - b).norm(dim=1, keepdim=True) for a, b in ((psi_next, psi0), (y_next, y0))]
                moved = (travelled[0] > 1e-12) & (travelled[1] > 1e-12) & restart
                ratio = torch.where(moved, travelled[0] / travelled[1].clamp(min=1e-12), weight)
                weight = torch.where(moved, ratio**self.smoothing * weight ** (1 - self.smoothing), weight)
                y, psi = torch.where(restart, y_next, y), torch.where(restart, psi_next, psi)
                y0, psi0 = torch.where(restart, y, y0), torch.where(restart, psi, psi0)
                k = torch.where(restart, 0.0, k)
                first, last = (torch.where(restart, torch.inf, r) for r in (first, last))
            if keep is not None:
                observation, weight, y, psi, y0, psi0, k, first, last = (
                    tensor[keep] for tensor in (observation, weight, y, psi, y0, psi0, k, first, last)
                )
                box = algorithm.problem.box(observation)


def free(problem: Dequantization, point: Point, observation: Tensor) -> Masks:
    """Which entries of psi and y are free, that is not held by a projection."""
    return Masks(dual_mask(point.z_dual), active_set(problem.radius).of(point.z_primal, observation))


def gathered(operator: Tensor, masks: Masks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ktilde of each frame as the upper left block of a square matrix, (B, s, s), completed by an identity.

    Returns it, the row and column numbers in that order (free ones first), (B, s) each, and which frames have as many
    free dual as free primal entries (vertices), (B,). For those the matrix is [[Ktilde, 0], [0, I]].
    """
    rows_free, columns_free = masks.dual.sum(dim=1), masks.primal.sum(dim=1)
    s = int(torch.maximum(rows_free, columns_free).max()) if len(rows_free) else 0
    s = min(s, *operator.shape)
    rows = masks.dual.int().argsort(dim=1, descending=True, stable=True)[:, :s]
    columns = masks.primal.int().argsort(dim=1, descending=True, stable=True)[:, :s]
    place = torch.arange(s, device=operator.device)
    in_rows, in_columns = place < rows_free[:, None], place < columns_free[:, None]
    block = operator[rows[:, :, None], columns[:, None, :]] * (in_rows[:, :, None] & in_columns[:, None, :])
    identity = torch.diag_embed((~in_rows & ~in_columns).to(operator.dtype))
    return block + identity, rows, columns, rows_free == columns_free


def lu_factors(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors, pivots and info of square matrices (B, s, s), as `torch.linalg.lu_factor_ex`.

    On CPUs one matrix after the other: with two threads or more the batched call gives wrong factors, with or without
    an error from MKL (PyTorch issue 142815, open in 2.13).
    """
    if matrices.device.type != "cpu" or len(matrices) < 2:
        return torch.linalg.lu_factor_ex(matrices)
    parts = [torch.linalg.lu_factor_ex(matrix) for matrix in matrices]
    return tuple(torch.stack(column) for column in zip(*parts, strict=True))


def polish(
    problem: Dequantization, operator: Tensor, observation: Tensor, point: Point
) -> tuple[Tensor, Tensor, Tensor]:
    """The vertex that the masks at `point` describe: primal (B, n), dual (B, m), and whether there is one, (B,).

    Free rows of K y are 0 and fixed entries of y at the border of the box; fixed entries of psi are the signs of K y
    and free columns of K^T psi are 0:

        Ktilde y_free = -K[free, fixed] y_fixed        Ktilde^T psi_free = -K[fixed, free]^T psi_fixed

    What comes out is projected to feasibility; its duality gap says whether it is optimal.
    """
    masks = free(problem, point, observation)
    primal = torch.where(masks.primal, 0.0, point.primal)
    dual = torch.where(masks.dual, 0.0, point.dual)
    block, rows, columns, vertex = gathered(operator, masks)
    block[~vertex] = torch.eye(block.shape[1], dtype=block.dtype, device=block.device)
    factors, pivots, info = lu_factors(block)
    vertex = vertex & (info == 0)
    in_rows, in_columns = masks.dual.gather(1, rows), masks.primal.gather(1, columns)
    right = -(primal @ operator.T).gather(1, rows) * in_rows
    left = -(dual @ operator).gather(1, columns) * in_columns
    primal_free = torch.linalg.lu_solve(factors, pivots, right[:, :, None])[:, :, 0]
    dual_free = torch.linalg.lu_solve(factors, pivots, left[:, :, None], adjoint=True)[:, :, 0]
    primal = primal.scatter_add(1, columns, primal_free.nan_to_num() * in_columns)
    dual = dual.scatter_add(1, rows, dual_free.nan_to_num() * in_rows)
    return problem.prox_primal(primal, problem.box(observation)), problem.prox_dual(dual), vertex


def solve(
    operator: Tensor,
    observation: Tensor,
    *,
    radius: float,
    tolerance: float = 1e-6,
    max_iterations: int = 100_000,
    algorithm: Algorithm | None = None,
) -> Solution:
    """Solve the lower-level problem for every frame, to a certified relative duality gap.

    Args:
        operator: K, (m, n); observation: x, (B, n). Computed in float64; the result has the dtype of `observation`.
        radius: half a quantization step, > 0.
        tolerance: the relative duality gap to reach, > 0.
        max_iterations: where to stop; a warning then says how many frames are not certified.
        algorithm: `RestartedHalpern()` (default) or `PlainChambollePock()`, or your own.

    Raises:
        InputError: for what is no dense float32 or float64 tensor, for shapes, settings or an operator out of range,
            and for NaN or infinite samples.
    """
    require_problem(operator, observation)
    require_positive("radius", radius)
    require_positive("tolerance", tolerance)
    require_integer("max_iterations", max_iterations, 1)
    strategy = RestartedHalpern() if algorithm is None else algorithm
    if not isinstance(strategy, Algorithm):
        raise InputError(f"algorithm must be an object such as pdunroll.RestartedHalpern(), got {shown(algorithm)}")
    with torch.no_grad():
        return _solve(operator, observation, radius, tolerance, max_iterations, strategy)


LOOK = 25  # iterations between looks at the gap
SINGLE = 2000  # iterations in float32 first, twice as fast; the gap and the vertex are computed in float64 all the same


def _solve(operator, observation, radius, tolerance, max_iterations, strategy):
    wide, x = operator.double(), observation.double()
    wide = wide / magnitude(wide)  # the same optima, to the bit, and within the range of float32
    steps = chambolle_pock(wide, radius=radius, step_norm="spectral")  # the largest steps
    result = Solution(
        primal=torch.zeros_like(x),
        dual=x.new_zeros(len(x), len(wide)),
        gap=x.new_zeros(len(x)),
        iterations=torch.zeros(len(x), dtype=torch.int64, device=x.device),
    )
    active = (~trivial(steps.problem, x)).nonzero()[:, 0]
    start = None
    for dtype, first, last in (
        (torch.float32, 0, min(SINGLE, max_iterations)),
        (torch.float64, SINGLE, max_iterations),
    ):
        if len(active) and first < last:
            points = strategy.points(steps, wide.to(dtype), x[active].to(dtype), start)
            active, start = _iterate(
                points, steps.problem, wide, x, active, range(first + 1, last + 1), tolerance, strategy.polished, result
            )
    if (missed := int((~(result.gap <= tolerance)).sum())) > 0:
        warnings.warn(
            f"{missed} of {len(x)} frames are not certified to {tolerance:g} after {max_iterations} iterations "
            f"(largest gap {float(result.gap.max()):.1e}); raise max_iterations",
            stacklevel=3,
        )
    return result._replace(primal=result.primal.to(observation.dtype), dual=result.dual.to(observation.dtype))


def _iterate(points, problem, operator, observation, active, counts, tolerance, polished, result):
    """Iterate the frames `active`; write those that are certified, and at the end the rest, to `result`.

    Returns the frames that are left and their last point, both in float64.
    """
    x = observation[active]
    tried = torch.zeros(len(active), dtype=torch.bool, device=x.device)  # whether these masks have been polished
    masks = None
    keep = None
    for count in counts:
        point = points.send(keep)
        keep = None
        if count % LOOK and count != counts[-1]:
            continue
        point = Point(*(part.double() for part in point))
        primal, dual = problem.prox_primal(point.primal, problem.box(x)), point.dual
        gap = duality_gap(problem, operator, x, primal, dual)
        fresh = free(problem, point, x)
        if polished and masks is not None:
            settled = (fresh.dual == masks.dual).all(dim=1) & (fresh.primal == masks.primal).all(dim=1)
            tried &= settled
            chosen = (settled & ~tried & (fresh.dual.sum(dim=1) == fresh.primal.sum(dim=1))).nonzero()[:, 0]
            if len(chosen):
                tried[chosen] = True
                vertex = polish(problem, operator, x[chosen], Point(*(part[chosen] for part in point)))
                vertex_gap = duality_gap(problem, operator, x[chosen], *vertex[:2])
                better = vertex[2] & (vertex_gap < gap[chosen])
                chosen = chosen[better]
                primal, dual = (
                    primal.index_copy(0, chosen, vertex[0][better]),
                    dual.index_copy(0, chosen, vertex[1][better]),
                )
                gap = gap.index_copy(0, chosen, vertex_gap[better])
        done = gap <= tolerance
        write = torch.ones_like(done) if count == counts[-1] else done
        for field, value in zip(result[:3], (primal, dual, gap), strict=True):
            field[active[write]] = value[write]
        result.iterations[active[write]] = count
        if done.any():
            keep = ~done
            active, x, tried = active[keep], x[keep], tried[keep]
            fresh, point = Masks(*(part[keep] for part in fresh)), Point(*(part[keep] for part in point))
            if not len(active):
                break
        masks = fresh
    return active, point
