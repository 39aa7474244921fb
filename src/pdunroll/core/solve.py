"""Certified optima of the lower-level problem: a primal-dual pair and its duality gap, for each frame.

    y* in argmin_y ||K y||_1   subject to   lower <= y <= upper

An algorithm (`pdunroll.core.algorithms`) iterates the frames of a batch together. Every few iterations the loop here
computes the duality gaps, tries the vertex of each frame whose masks have stopped changing (`pdunroll.core.polish`),
and drops the frames that are certified.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdunroll.core.algorithms import Algorithm, Point
from pdunroll.core.chambolle_pock import chambolle_pock, magnitude
from pdunroll.core.dispatch import engine_for
from pdunroll.core.halpern import RestartedHalpern
from pdunroll.core.polish import polish
from pdunroll.core.problem import Box, Dequantization, Masks, Observation, require_problem
from pdunroll.errors import InputError, require_integer, require_positive, shown

CHECK_EVERY = 25  # iterations between two checks of the gaps
FLOAT32_ITERATIONS = 2000  # the first ones run in float32, twice as fast; gaps and vertices are computed in float64


class Solution(NamedTuple):
    """The result of `solve` for B frames."""

    primal: Tensor  # y  (B, n), feasible
    dual: Tensor  # psi  (B, m), feasible
    gap: Tensor  # (B,) relative duality gap, float64
    iterations: Tensor  # (B,) iterations taken; 0 for trivial frames


def solve(
    operator: Tensor,
    observation: Observation,
    *,
    radius: float | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 100_000,
    algorithm: Algorithm | None = None,
) -> Solution:
    """Solve the lower-level problem for every frame, to a certified relative duality gap.

    Args:
        operator: K, (m, n), float32 or float64.
        observation: x, (B, n), float32 or float64 on the same device, one frame per row; or a `Box`.
        radius: half a quantization step, > 0, if the observation is x: the box is x - radius <= y <= x + radius.
        tolerance: the relative duality gap to reach, > 0.
        max_iterations: the limit of iterations of a frame, >= 1; a warning says how many frames were not certified.
        algorithm: `RestartedHalpern()` (default) or `PlainChambollePock()`, or an `Algorithm` of your own.

    Returns:
        y and psi in the dtype of `observation`, computed in float64, and the gap and the iterations of each frame.

    Raises:
        InputError: for arguments that are not dense float32 or float64 tensors, for invalid shapes, settings or
            operators, and for NaN or infinite samples.

    Examples:
        >>> import pdunroll, torch
        >>> operator, x = torch.eye(2), torch.tensor([[0.5, 0.1]])
        >>> found = pdunroll.solve(operator, x, radius=0.2)
        >>> found.primal.allclose(torch.tensor([[0.3, 0.0]]))  # the entries of x, moved towards 0 by up to 0.2
        True
        >>> bool(found.gap <= 1e-6)
        True
    """
    require_problem(operator, observation, radius)
    require_positive("tolerance", tolerance)
    require_integer("max_iterations", max_iterations, 1)
    algorithm = RestartedHalpern() if algorithm is None else algorithm
    if not isinstance(algorithm, Algorithm):
        raise InputError(f"algorithm must be an object such as pdunroll.RestartedHalpern(), got {shown(algorithm)}")
    with torch.no_grad():
        box = Dequantization(radius).box(observation.to(torch.float64))
        found = _solve(operator.double(), box, tolerance, max_iterations, algorithm)
    if (missed := int((~(found.gap <= tolerance)).sum())) > 0:
        warnings.warn(
            f"{missed} of {len(observation)} frames are not certified to {tolerance:g} after {max_iterations} "
            f"iterations (largest gap {float(found.gap.max()):.1e}); raise max_iterations",
            stacklevel=2,
        )
    dtype = observation.start.dtype if isinstance(observation, Box) else observation.dtype
    return found._replace(primal=found.primal.to(dtype), dual=found.dual.to(dtype))


def _solve(operator64: Tensor, box: Box, tolerance: float, max_iterations: int, algorithm: Algorithm) -> Solution:
    operator64 = operator64 / magnitude(operator64)  # the same optima, to the bit, and within the range of float32
    steps, x = chambolle_pock(operator64, step_norm="spectral"), box.start  # the largest steps
    solution = Solution(
        primal=torch.zeros_like(x),
        dual=x.new_zeros(len(x), len(operator64)),
        gap=x.new_zeros(len(x)),
        iterations=torch.zeros(len(x), dtype=torch.int64, device=x.device),
    )
    loop = _Loop(steps.problem, operator64, tolerance, algorithm, solution)
    frames, start = (~steps.problem.trivial(box)).nonzero()[:, 0], None
    for dtype, first, last in (
        (torch.float32, 0, min(FLOAT32_ITERATIONS, max_iterations)),
        (torch.float64, FLOAT32_ITERATIONS, max_iterations),
    ):
        if len(frames) and first < last:
            typed = operator64.to(dtype)
            state = algorithm.init_state(engine_for(steps, typed), typed, box[frames].to(dtype), start)
            frames, start = loop.run(state, _Pending.of(frames, box[frames]), first, last)
    return solution


class _Pending(NamedTuple):
    """The frames that are not certified yet."""

    frames: Tensor  # their numbers  (B,)
    box: Box  # (B, n)
    masks: Masks | None  # at the last check
    tried: Tensor  # whether the vertex of these masks has been tried  (B,)

    @staticmethod
    def of(frames: Tensor, box: Box) -> _Pending:
        return _Pending(frames, box, None, torch.zeros_like(frames, dtype=torch.bool))

    def select(self, keep: Tensor) -> _Pending:
        masks = None if self.masks is None else Masks(*(mask[keep] for mask in self.masks))
        return _Pending(self.frames[keep], self.box[keep], masks, self.tried[keep])


class _Certificate(NamedTuple):
    """Feasible pairs and their relative duality gaps, in float64."""

    primal: Tensor  # (B, n)
    dual: Tensor  # (B, m)
    gap: Tensor  # (B,)


@dataclass(frozen=True)
class _Loop:
    """The iterations of `solve` in one dtype."""

    problem: Dequantization
    operator64: Tensor
    tolerance: float
    algorithm: Algorithm
    solution: Solution  # where the result is written

    def run(self, state: Any, pending: _Pending, first: int, last: int) -> tuple[Tensor, Point]:
        """Run the iterations after `first` up to `last`; return the frames that are left and their last point.

        Frames are written to the solution when they are certified, and the others after the last iteration.
        """
        for count in range(first + 1, last + 1):
            state = self.algorithm.update(state)
            if count % CHECK_EVERY and count != last:
                continue
            found, pending = self.check(_double(self.algorithm.point(state)), pending)
            certified = found.gap <= self.tolerance
            self.write(found, pending.frames, count, certified if count != last else torch.ones_like(certified))
            if certified.any():
                pending, state = pending.select(~certified), self.algorithm.select(state, ~certified)
                if not len(pending.frames):
                    break
        return pending.frames, _double(self.algorithm.point(state))

    def check(self, point: Point, pending: _Pending) -> tuple[_Certificate, _Pending]:
        """Return the gaps at a point, or at a vertex where that is better, and the masks for the next check."""
        problem, box = self.problem, pending.box
        found = self.certificate(box, problem.prox_primal(point.primal, box), point.dual)
        masks, tried = problem.free_masks(point.z_dual, point.z_primal, box), pending.tried
        if self.algorithm.polished and pending.masks is not None:
            unchanged = masks.equal(pending.masks)
            tried = tried & unchanged
            square = masks.dual.sum(dim=1) == masks.primal.sum(dim=1)
            candidates = unchanged & ~tried & square
            if candidates.any():
                found = self.try_vertices(found, point, pending, masks, candidates.nonzero()[:, 0])
                tried = tried | candidates
        return found, pending._replace(masks=masks, tried=tried)

    def try_vertices(
        self, found: _Certificate, point: Point, pending: _Pending, masks: Masks, frames: Tensor
    ) -> _Certificate:
        """Return `found` with the vertices of some frames where these have the smaller gaps."""
        box, masks = pending.box[frames], Masks(*(mask[frames] for mask in masks))
        start = point.primal[frames], point.dual[frames]
        primal, dual, exists = polish(self.problem, self.operator64, box, masks, *start)
        vertex = self.certificate(box, primal, dual)
        better = exists & (vertex.gap < found.gap[frames])
        return _Certificate(
            *(old.index_copy(0, frames[better], new[better]) for old, new in zip(found, vertex, strict=True))
        )

    def certificate(self, box: Box, primal: Tensor, dual: Tensor) -> _Certificate:
        """Return feasible pairs with their gaps."""
        return _Certificate(primal, dual, self.problem.duality_gap(self.operator64, box, primal, dual))

    def write(self, found: _Certificate, frames: Tensor, count: int, where: Tensor) -> None:
        """Write the frames where `where` (B,) is true to the solution, as found after `count` iterations."""
        for field, value in zip(self.solution[:3], found, strict=True):
            field[frames[where]] = value[where]
        self.solution.iterations[frames[where]] = count


def _double(point: Point) -> Point:
    return Point(*(part.double() for part in point))
