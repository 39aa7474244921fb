"""The two ways to restore frames: the certified optimum for accuracy, a few iterations towards it for listening."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.solve import solve

RADIUS = 1 / 16  # half a cell, in the units in which frames are solved
TOLERANCE = 1e-2  # relative duality gap; the SDR at smaller ones is the same to 0.01 dB (docs/restore.md)
STEP_RATIO, ITERATIONS = 60.0, 8  # of `for_listening`; chosen on development sentences (docs/restore.md)


class Restored(NamedTuple):
    """Restored frames and how far they are from the optimum."""

    frames: Tensor  # y  (B, n), in the cells
    gap: Tensor  # relative duality gap, float64  (B,)


Solver = Callable[[Tensor], Restored]  # takes x (B, n), the centres of cells of half width RADIUS


def for_accuracy(operator: Tensor, tolerance: float = TOLERANCE) -> Solver:
    """Return a solver that takes frames to the optimum, certified to a relative duality gap.

    Args:
        operator: K, (m, n).
        tolerance: the gap to reach, > 0.
    """

    def restore(observation: Tensor) -> Restored:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* frames are not certified")  # the caller gets the gaps
            found = solve(operator, observation, radius=RADIUS, tolerance=tolerance)
        return Restored(found.primal, found.gap)

    return restore


def for_listening(operator: Tensor, iterations: int = ITERATIONS, step_ratio: float = STEP_RATIO) -> Solver:
    """Return a solver that runs a few iterations of Algorithm 1 in float32.

    Args:
        operator: K, (m, n).
        iterations: the number of iterations, at least 1.
        step_ratio: (sigma / tau)^{1/2} with the largest steps that the theory allows; a large ratio gives small steps
            in y, so that the number of iterations can be chosen finely.
    """
    operator32 = operator.float()
    algorithm = chambolle_pock(operator32, radius=RADIUS, step_ratio=step_ratio, step_norm="spectral")
    engine = engine_for(algorithm, operator32)

    def restore(observation: Tensor) -> Restored:
        last = engine.iterate(operator32, observation.float(), iterations)
        y, psi = last.primal.double(), last.dual.double()
        return Restored(y, algorithm.problem.duality_gap(operator.double(), observation.double(), y, psi))

    return restore
