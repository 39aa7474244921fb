"""How near each mode of backpropagation comes to the limit gradient, and what it costs: `pdunroll.compare` of all.

    python benchmarks/modes.py outputs/quick/prepared docs/modes.csv

takes the DCT with both norms of the step sizes and nontrivial test frames in float32, and writes one row for each norm,
L, primal mask and mode.

    python benchmarks/modes.py --bounds outputs/quick/prepared docs/piggyback.csv

runs the piggyback iteration for 1,000, 10,000 and 50,000 iterations beyond L = 1000 (spectral steps) on 16 frames, and
writes for each its bound and its true error relative to the norm of the frame's limit gradient, and its estimate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import pdunroll
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.implicit import multipliers
from pdunroll.core.problem import Dequantization
from pdunroll.evaluation import theory
from pdunroll.files import atomic
from pdunroll.speech.frames import load

ETA = 1 / 16
MASKS = ("active_set", "released")


def modes() -> dict[tuple[str, str], pdunroll.Backprop]:
    """Return the strategies by the mask and a name."""
    found: dict[tuple[str, str], pdunroll.Backprop] = {}
    for mask in MASKS:
        own = {
            "full": pdunroll.Full(primal_mask=mask),
            "lastiterations, b = 30": pdunroll.LastIterations(primal_mask=mask),
            "onestep": pdunroll.OneStep(primal_mask=mask),
            "truncated, b = 30": pdunroll.Truncated(primal_mask=mask),
            "truncated, b = 1000": pdunroll.Truncated(primal_mask=mask, iterations=1000),
            "phantom, b = 300, d = 0.01": pdunroll.Truncated(primal_mask=mask, iterations=300, damping=0.01),
        }
        found |= {(mask, name): strategy for name, strategy in own.items()}
    own = {
        "implicit": pdunroll.Implicit(),
        "implicit, unpolished": pdunroll.Implicit(polished=False),
        "implicit, tolerance 1e-6": pdunroll.Implicit(tolerance=1e-6),
        "piggyback, 1000 more": pdunroll.Piggyback(),
        "piggyback, 10000 more": pdunroll.Piggyback(max_iterations=10_000),
    }
    return found | {("active_set", name): strategy for name, strategy in own.items()}


def bounds(operator: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> pd.DataFrame:
    """Return estimates, bounds and true errors of `Piggyback`: a row for each number of iterations and frame."""
    algorithm = chambolle_pock(operator, radius=ETA, step_norm="spectral")
    engine, L, rows = engine_for(algorithm, operator), 1000, []
    for frame in range(len(x)):
        one = slice(frame, frame + 1)
        restored, kept = pdunroll.Piggyback().forward(engine, operator, x[one], L)
        grad = restored - y[one]
        optimum = theory.limit(algorithm, operator.double(), y[one].double(), x[one].double())
        multiplier, vertex = multipliers(operator.double(), optimum.masks, grad.double())  # at y^L, not at y*
        limit = -(multiplier.T @ optimum.solution.primal)
        for count in (1000, 10_000, 50_000):
            found = pdunroll.Piggyback(max_iterations=count).differentiate(engine, operator, kept, grad, bound=True)
            assert found.bound is not None
            error = (found.gradient.double() - limit).norm() / limit.norm()
            rows.append((count, frame, *found.iterations.tolist(), *found.error.tolist(),
                         float(found.bound) / float(limit.norm()), float(error), bool(vertex)))  # fmt: skip
    columns = ["max_iterations", "frame", "iterations", "estimate", "bound", "error", "vertex"]
    return pd.DataFrame(sorted(rows), columns=columns)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--iterations", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bounds", action="store_true", help="the error bound of the piggyback iteration instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    test = load(options.prepared, "test")
    order = np.random.default_rng(0).permutation(len(test.truth))
    y, x = (torch.from_numpy(part[order]).float() for part in (test.truth, test.observation))
    chosen = (~Dequantization(ETA).trivial(x)).nonzero()[: options.frames, 0]
    operator = pdunroll.dct_operator(x.shape[1], x.shape[1])
    if options.bounds:
        write(bounds(operator, x[chosen[:16]], y[chosen[:16]]), options.table)
        return
    strategies = {f"{mask} {name}": strategy for (mask, name), strategy in modes().items()}
    parts = {}
    for norm in ("frobenius", "spectral"):
        for L in options.iterations:
            parts[norm, L] = pdunroll.compare(
                operator, x[chosen], y[chosen], strategies, radius=ETA, iterations=L, step_norm=norm, repeats=1
            )
            print(norm, L, "done", flush=True)
    table = pd.concat(parts, names=["step_norm", "l"]).reset_index()
    table[["primal_mask", "mode"]] = table["mode"].str.split(" ", n=1, expand=True)
    write(table, options.table)


def write(table: pd.DataFrame, path: Path) -> None:
    """Print and write a table."""
    print(table.to_string(float_format=lambda value: f"{value:.3g}"))
    with atomic(path) as temporary:
        table.to_csv(temporary, float_format="%.6g", index=False)


if __name__ == "__main__":
    main()
