"""Measurements of where the paper's theorems hold, on nontrivial test frames in float64; these are the tables.

counts    trivial, vertex and degenerate frames among the test frames
fidelity  gradients of Full over L and of Truncated over b against the exact limit gradient
settling  the iteration after which the masks of a frame do not change any more
modes     all modes of backpropagation at two numbers of iterations, with their cost
decay     norms in the backward recursion, counted backwards, and their distance to the kernels
fits      c and kappa of each frame, and whether the limit theorem's assumption holds there
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.gradients import Backprop
from pdunroll.core.problem import Dequantization
from pdunroll.errors import InputError
from pdunroll.evaluation import theory
from pdunroll.evaluation.comparison import compared, limit_gradient
from pdunroll.speech.frames import load

log = logging.getLogger(__name__)

COMPARED_AT = 100, 1000  # L
Tables = dict[str, list[dict[str, Any]]]


class Measured(NamedTuple):
    """An operator and its step sizes."""

    name: str
    operator: Tensor  # K (m, n), float64
    steps: Mapping[str, Any]  # with the extrapolation, as arguments of `pdunroll.unroll`


def measure(
    prepared: Path,
    operators: Iterable[Measured],
    modes: Mapping[str, Backprop],
    *,
    frames: int,
    count_frames: int,
    iterations: int,
    seed: int,
) -> Tables:
    """Return the tables of all theorems.

    Args:
        prepared: the folder of the frames.
        operators: the operators to measure.
        modes: the strategies to compare, by their names.
        frames: the number of measured frames, whose optima are vertices.
        count_frames: the number of test frames, drawn with `seed`, of which they are the first such frames.
        iterations: the largest L and b.
        seed: the seed of the draw.

    Raises:
        InputError: if there are fewer nontrivial frames than are to be measured.
    """
    test = load(prepared, "test")
    order = np.random.default_rng(seed).permutation(len(test.truth))[:count_frames]
    truth, observation = torch.from_numpy(test.truth[order]).double(), test.box(order).to(torch.float64)
    nontrivial = (~Dequantization().trivial(observation)).nonzero()[:, 0]
    if len(nontrivial) < frames:
        raise InputError(
            f"theory.frames={frames} nontrivial frames are wanted, but among theory.count_frames="
            f"{count_frames} test frames there are {len(nontrivial)}; lower the one or raise the other"
        )
    tables: Tables = {name: [] for name in ("counts", "fidelity", "modes", "settling", "decay", "fits")}
    for name, operator, steps in operators:
        algorithm, step_norm = chambolle_pock(operator, **steps), steps["step_norm"]
        optimum = theory.limit(algorithm, operator, truth[nontrivial], observation[nontrivial])
        vertices = int(optimum.vertex.sum())
        counts = {
            "trivial": len(truth) - len(nontrivial), "vertex": vertices, "degenerate": len(nontrivial) - vertices
        }  # fmt: skip
        log.info("%s, %s: %s", name, step_norm, ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        chosen = nontrivial[optimum.vertex][:frames]
        y, x, numbers = truth[chosen], observation[chosen], order[chosen.numpy()].tolist()
        since, point = theory.settling(algorithm, operator, x, iterations)
        log.info("%s, %s: masks settle after %d iterations (median)", name, step_norm, int(since.median()))
        norms, fits = theory.decay(algorithm, operator, y, x, point, decades(1, iterations, per_decade=8))
        depths = decades(10, iterations)
        truncated_at = [depth for depth in depths if depth in (1000, iterations)] or depths[-1:]
        rows = theory.fidelity(algorithm, operator, y, x, depths, decades(1, iterations), truncated_at)
        log.info("%s, %s: gradients at L = %s done", name, step_norm, ", ".join(map(str, depths)))
        limit = limit_gradient(operator, x, y, steps)
        compared_modes = [
            {"l": depth, **row}
            for depth in COMPARED_AT if depth <= iterations
            for row in compared(operator, x, y, modes, limit, depth, 1, steps).reset_index().to_dict("records")
        ]  # fmt: skip
        found = {
            "counts": [counts],
            "settling": [
                {"frame": frame, "settled_after": int(l), "of": iterations}
                for frame, l in zip(numbers, since, strict=True)
            ],
            "decay": norms,
            "fits": [{**row, "frame": numbers[row["frame"]]} for row in fits],
            "fidelity": rows,
            "modes": compared_modes,
        }
        for part, own in found.items():
            tables[part] += [{"operator": name, "step_norm": step_norm, **row} for row in own]
    return tables


def decades(first: int, last: int, per_decade: int = 2) -> list[int]:
    """Return log-spaced whole numbers from `first` to `last`: 10, 30, 100, ... with two per decade."""
    if per_decade == 2:
        values = {factor * 10**power for power in range(math.ceil(math.log10(last)) + 1) for factor in (1, 3)}
    else:
        steps = round(per_decade * math.log10(last / first))
        values = {round(first * (last / first) ** (step / steps)) for step in range(steps + 1)}
    return sorted({value for value in values if first <= value <= last} | {last})
