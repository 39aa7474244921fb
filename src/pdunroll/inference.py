"""The restoration error after every number of iterations, for one operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdunroll.chambolle_pock import ChambollePock
from pdunroll.optimum import duality_gap


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
    duality gaps (frames,) of the last iterate. Iterates as in training: Algorithm 1 from y^0 = x, in their dtype.
    """
    curves, gaps = [], []
    wide = operator.double()
    for y, x in zip(truth.split(batch_size), observation.split(batch_size), strict=True):
        wanted = iter(grid)
        following = next(wanted)
        curve = []
        for count, iterate in enumerate(algorithm.iterates(operator, x), start=1):
            if count == following:
                curve.append((iterate.primal - y).square().mean(dim=1))
                if (following := next(wanted, None)) is None:
                    break
        curves.append(torch.stack(curve).cpu())
        pair = iterate.primal.double(), iterate.dual.double()
        gaps.append(duality_gap(algorithm.problem, wide, x.double(), *pair).cpu())
    return torch.cat(curves, dim=1).numpy(), torch.cat(gaps).numpy()
