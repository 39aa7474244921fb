"""The restoration error after every number of iterations, for one operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, Iterate, Masks
from pdunroll.core.closed_form import Vertex, later, stays, vertex
from pdunroll.core.engine import engine_for
from pdunroll.core.solve import Point, duality_gap, free


def log_grid(iterations: int, points: int, include: Sequence[int] = ()) -> NDArray[np.int64]:
    """At least `points` log-spaced numbers of iterations from 1 to `iterations` (all of them if there are no more),
    with those of `include` among them."""
    wanted, grid = points, np.arange(1, iterations + 1)
    if iterations > points:
        while len(grid := np.unique(np.geomspace(1, iterations, wanted).round().astype(np.int64))) < points:
            wanted += 1
    return np.union1d(grid, np.asarray(include, dtype=np.int64))


@torch.inference_mode()
def error_curve(
    algorithm: ChambollePock,
    operator: Tensor,
    truth: Tensor,
    observation: Tensor,
    grid: Sequence[int],
    batch_size: int,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Mean squared error of each frame after each number of iterations in `grid` (ascending), and the gap at its end.

    operator (m, n); truth y and observation x (frames, n). Returns the errors (len(grid), frames) and the relative
    duality gaps (frames,) of the last iterate. Iterates as in training: Algorithm 1 from y^0 = x, in their dtype. A
    frame leaves the batch early where the rest of its iterates is known: they have come to a standstill to the last
    bit, or its masks have settled for good (`pdunroll.core.closed_form`).
    """
    curves = [
        _curve(algorithm, operator, y, x, [*map(int, grid)])
        for y, x in zip(truth.split(batch_size), observation.split(batch_size), strict=True)
    ]
    errors, gaps = (torch.cat(parts, dim=-1).cpu().numpy() for parts in zip(*curves, strict=True))
    return errors, gaps


def state(iterate: Iterate) -> tuple[Tensor, Tensor, Tensor]:
    """What the next iteration depends on."""
    return iterate.dual, iterate.primal, iterate.extrapolated


LOOK, PACE = 200, 1.15  # when to look for frames that may leave: first, and by which factor later each time


def _curve(
    algorithm: ChambollePock, operator: Tensor, truth: Tensor, observation: Tensor, grid: list[int]
) -> tuple[Tensor, Tensor]:
    """Errors (len(grid), B) and last gaps (B,) of one batch."""
    wide = operator.double()
    errors = truth.new_empty(len(grid), len(truth))
    gaps = truth.new_empty(len(truth), dtype=torch.float64)
    active = torch.arange(len(truth), device=truth.device)
    last: tuple[Iterate, Masks] | None = None  # at the last look
    vertices: dict[int, Vertex | None] = {}  # of frames whose masks have stayed since
    place, look, count = 0, LOOK, 0
    engine, iterate = engine_for(algorithm, operator), algorithm.start(operator, observation)

    def mse(primal: Tensor, frames: Tensor) -> Tensor:
        return (primal - truth[frames]).square().mean(dim=-1)

    def leave(frames: Tensor, primal: Tensor, dual: Tensor) -> None:
        gaps[frames] = duality_gap(
            algorithm.problem, wide, observation[frames].double(), primal.double(), dual.double()
        )

    while count < grid[-1]:
        following = min(grid[place], look)
        iterate, count = engine.iterate(operator, observation[active], following - count, iterate), following
        if count == grid[place]:
            errors[place, active] = mse(iterate.primal, active)
            place += 1
        if count == grid[-1]:
            leave(active, iterate.primal, iterate.dual)
            break
        if count < look:
            continue
        look = round(look * PACE)
        masks = free(algorithm.problem, Point(*iterate[:4]), observation[active])
        gone = torch.zeros(len(active), dtype=torch.bool, device=active.device)
        if last is not None:
            unmoved = [(a == b).all(dim=1) for a, b in zip(state(iterate), state(last[0]), strict=True)]
            gone = torch.stack(unmoved).all(dim=0)
            errors[place:, active[gone]] = mse(iterate.primal[gone], active[gone])
            leave(active[gone], iterate.primal[gone], iterate.dual[gone])
            same = torch.stack([(a == b).all(dim=1) for a, b in zip(masks, last[1], strict=True)]).all(dim=0) & ~gone
            vertices = {frame: known for frame, known in vertices.items() if frame in set(active[same].tolist())}
            steps = torch.as_tensor(grid[place:], device=active.device) - count
            for i in same.nonzero()[:, 0].tolist() if algorithm.theta == 1.0 else ():
                frame = int(active[i])
                primal, dual = iterate.primal[i].double(), iterate.dual[i].double()
                previous = 2.0 * primal - iterate.extrapolated[i].double()
                x, mask = observation[frame].double(), Masks(*(part[i] for part in masks))
                if frame not in vertices:
                    vertices[frame] = vertex(algorithm, wide, x, mask, primal, dual)
                if (found := vertices[frame]) is not None and stays(algorithm, found, previous, primal, dual):
                    y, psi = later(algorithm, found, previous, primal, steps)
                    errors[place:, frame] = mse(y, active[i]).to(errors.dtype)
                    leave(active[i : i + 1], y[-1:], psi[-1:])
                    gone[i] = True
        keep = ~gone
        active = active[keep]
        if not len(active):
            break
        iterate = Iterate(*(part[keep] for part in iterate))
        last = iterate, Masks(*(part[keep] for part in masks))
    return errors, gaps
