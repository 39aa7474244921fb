"""N1 of one operator for several ways to iterate: published step sizes, the largest ones, and Halpern iterations.

    python benchmarks/convergence.py outputs/quick/prepared docs/convergence.csv RUN [RUN ...]

The optimum does not depend on the step sizes, but N1, the number of iterations until the test MSE stays within 1 % of
the optimum's, does. For the DCT and each folder of a training, on test frames drawn with seed 0:

    frobenius, spectral    Chambolle-Pock with the step sizes of the one and the other norm and the ratio 10
    spectral3, 20, 40      the same with the spectral norm and other ratios sqrt(sigma / tau)
    halpern                reflected Halpern iterations without restarts, with the spectral step sizes

One thread.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch

from pdunroll import Box, dct_operator, solve
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.unrolled_halpern import HalpernEngine, ReflectedHalpern
from pdunroll.evaluation.convergence import convergence_iterations
from pdunroll.evaluation.curves import error_curve, log_grid
from pdunroll.evaluation.evaluate import drawn
from pdunroll.training.run_folder import read_operator
from pdunroll.training.run_key import RunKey

WAYS = {
    "frobenius": ("frobenius", 10.0), "spectral": ("spectral", 10.0),
    **{f"spectral{ratio:g}": ("spectral", ratio) for ratio in (3.0, 20.0, 40.0)},
}  # fmt: skip
KEY = RunKey("dct", step_norm="any")


def halpern_curve(K: torch.Tensor, truth: torch.Tensor, box: Box, grid: list[int]) -> list[float]:
    """Return the mean squared error after each number of reflected Halpern iterations."""
    steps = chambolle_pock(K, step_norm="spectral")
    engine = HalpernEngine(ReflectedHalpern(steps.problem, steps.sigma, steps.tau, 1.0))
    iterate, done, errors = None, 0, []
    for count in grid:
        iterate, done = engine.iterate(K, box, count - done, iterate), count
        errors.append(float((iterate.primal - truth).square().mean()))
    return errors


def n1(grid: list[int], errors: list[float], optimum: float) -> int | None:
    rows = [{**KEY.columns, "l_inference": l, "mse": mse} for l, mse in zip(grid, errors, strict=True)]
    return convergence_iterations(rows, [{**KEY.columns, "optimum_mse": optimum}])[KEY]


@torch.no_grad()
def measured(K: torch.Tensor, y: torch.Tensor, box: Box, iterations: int) -> dict[str, float | int | None]:
    """Return the error at the certified optimum, and N1 of each way to iterate."""
    grid = log_grid(iterations, 200).tolist()
    optimum = float((solve(K, box).primal - y).square().mean())
    found: dict[str, float | int | None] = {"optimum_mse": optimum}
    for way, (norm, ratio) in WAYS.items():
        errors, _ = error_curve(chambolle_pock(K, step_norm=norm, step_ratio=ratio), K, y, box, grid, 256)
        found[way] = n1(grid, errors.mean(axis=1, dtype=np.float64).tolist(), optimum)
    found["halpern"] = n1(grid, halpern_curve(K, y, box, grid), optimum)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=3000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, truth, box = drawn(options.prepared, "test", options.frames, 0)
    y = torch.from_numpy(truth)
    operators = {"dct": dct_operator(y.shape[1], y.shape[1])}
    operators |= {run.as_posix(): torch.from_numpy(read_operator(run)) for run in options.runs}
    with options.table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["operator", "optimum_mse", *WAYS, "halpern"])
        writer.writeheader()
        for name, K in operators.items():
            writer.writerow({"operator": name, **measured(K, y, box, options.iterations)})
            file.flush()


if __name__ == "__main__":
    main()
