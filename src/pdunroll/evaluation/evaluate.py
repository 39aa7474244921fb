"""The tables of results: the test error of every trained operator along the iterations and at the optimum.

evaluation.csv  one row per operator (also DCT and no restoration) and number of iterations: the errors on test and
                on validation frames
optima.csv      one row per operator: the certified optimum's error on test and on validation frames, the duality gap
                after the last iteration, and N1, the iterations until the error stays within 1 % of the optimum's
training.csv    one row per operator: times, steps, validation errors
metrics.json    the errors after L_training iterations and at the optimum, for `dvc metrics`
provenance.json the command, seeds, commit and data of these tables, for the figures
errors/         the errors of each frame, of which the next call computes only what is new or has changed
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from pdunroll.core.algorithms import Algorithm
from pdunroll.core.problem import Box, dct_operator
from pdunroll.errors import InputError
from pdunroll.evaluation.convergence import convergence_iterations
from pdunroll.evaluation.curves import log_grid
from pdunroll.evaluation.frame_errors import certificate, frame_errors, metrics
from pdunroll.files import write_json, write_table
from pdunroll.processes import command
from pdunroll.speech.degradation import Degradation
from pdunroll.speech.frames import load
from pdunroll.training.run_folder import Run, environment
from pdunroll.training.run_key import RunKey

log = logging.getLogger(__name__)

Row = dict[str, Any]


def evaluate(
    runs: Sequence[Run],
    prepared: Path,
    outputs: Path,
    *,
    algorithm: Algorithm,
    iterations: int = 100_000,
    points: int = 100,
    frames: int | None = 1024,
    seed: int = 0,
    tolerance: float = 1e-6,
    max_iterations: int = 100_000,
    batch_size: int = 256,
    jobs: int | None = None,
    device: str = "cpu",
) -> None:
    """Evaluate trained operators, and the DCT with the step sizes of each of their norms; write the tables.

    Args:
        runs: the trainings, which differ only in mode, mask, norm, L and seed.
        prepared: folder of the frames that they were trained on.
        outputs: folder of the tables.
        algorithm: the solver for certified optima.
        iterations: the largest number of iterations of the error curves.
        points: the least number of log-spaced iteration counts.
        frames: the number of test and of validation frames, drawn with `seed`; all if None.
        seed: the seed of the draw.
        tolerance: the relative duality gap of the optima.
        max_iterations: the limit of iterations of `algorithm`.
        batch_size: the number of frames that are iterated together.
        jobs: the number of operators in parallel, one thread each; one per core if None.
        device: the device of the curves; optima are computed on the CPU.

    Raises:
        InputError: if a training has more iterations than the curves.
    """
    depths = [run.iterations for run in runs]
    if max(depths) > iterations:
        raise InputError(
            f"evaluation.iterations must be at least the largest L in training, {max(depths)}, got {iterations}"
        )
    grid = log_grid(iterations, points, depths)
    chosen, truth, box = drawn(prepared, "test", frames, seed)
    validation = drawn(prepared, "validation", frames, seed)[1:]
    candidates = operators(runs)
    # parallel operators with one thread each are faster than one after the other on all cores
    work: Any = Parallel(n_jobs=jobs or -1, return_as="generator", max_nbytes=None)(
        delayed(frame_errors)(
            outputs / "errors" / f"{key.name}.npz", key, operator, (truth, box), validation, grid, chosen,
            steps=steps, algorithm=algorithm, tolerance=tolerance, max_iterations=max_iterations,
            batch_size=batch_size, device=device,
        )
        for key, operator, steps in candidates
    )  # fmt: skip
    unrestored = [
        float(((frames.start.numpy() - y) ** 2).mean(axis=1).mean(dtype=np.float64))
        for y, frames in ((truth, box), validation)
    ]
    rows = list(curve(RunKey("none"), grid, *([mse] * len(grid) for mse in unrestored)))
    optima: list[Row] = []
    start = time.perf_counter()
    for number, ((key, *_), found) in enumerate(zip(candidates, work, strict=True), start=1):
        test = found["errors"].mean(axis=1, dtype=np.float64).tolist()
        rows.extend(curve(key, grid, test, found["validation_errors"].tolist()))
        optima.append({**key.columns, **certificate(found, tolerance)})
        log.info(
            "%d of %d  %s  test MSE %.4e after %d iterations, %.4e at the optimum  %.1f s",
            number, len(candidates), key.name, rows[-1]["mse"], grid[-1], optima[-1]["optimum_mse"],
            time.perf_counter() - start,
        )  # fmt: skip
    speed = convergence_iterations(rows, optima)
    optima = [{**row, "n1": speed[RunKey.from_row(row)]} for row in optima]
    write(outputs, runs, rows, optima, len(chosen))
    log.info("%d frames, %d numbers of iterations: %s", len(chosen), len(grid), outputs / "evaluation.csv")


def drawn(prepared: Path, split: str, count: int | None, seed: int) -> tuple[NDArray, NDArray, Box]:
    """Return some frames of a split: their numbers (frames,), y (frames, n), and their box."""
    frames = load(prepared, split)
    numbers = np.sort(np.random.default_rng(seed).permutation(len(frames.truth))[:count])
    return numbers, frames.truth[numbers], frames.box(numbers)


def operators(runs: Sequence[Run]) -> list[tuple[RunKey, NDArray, dict[str, Any]]]:
    """Return key, K (m, n) and step sizes of each operator: of the DCT for each norm, then of the trainings."""
    norms = dict.fromkeys(run.key.step_norm for run in runs)
    dct, steps = dct_operator(*runs[0].shape).numpy(), runs[0].initial_steps
    untrained = [(RunKey("dct", step_norm=norm), dct, {**steps, "step_norm": norm}) for norm in norms]
    return [*untrained, *((run.key, run.operator(), run.steps) for run in runs)]


def curve(key: RunKey, grid: NDArray, test: Sequence[float], validation: Sequence[float]) -> Iterator[Row]:
    """Yield the rows of evaluation.csv for one operator, given its mean squared errors along the grid."""
    for l, mse, validation_mse in zip(grid.tolist(), test, validation, strict=True):
        yield {**key.columns, "l_inference": l, "mse": mse, "validation_mse": validation_mse}


def write(outputs: Path, runs: Sequence[Run], rows: list[Row], optima: list[Row], test_frames: int) -> None:
    """Write the tables and their provenance."""
    write_table(outputs / "evaluation.csv", rows)
    write_table(outputs / "optima.csv", optima)
    columns = dict.fromkeys(name for run in runs for name in run.results)  # earlier versions had fewer
    write_table(outputs / "training.csv", [{**run.key.columns, **columns, **run.results} for run in runs])
    degradation = Degradation.of(runs[0].settings["data"])
    write_json(outputs / "metrics.json", metrics(rows, optima, degradation.name))
    provenance = {
        "command": command("evaluate", outputs.name),
        "seeds": sorted({run.settings["seed"] for run in runs}),
        "commit": environment()["commit"],
        "data": f"{runs[0].settings['data']['name']}, sha256 {runs[0].record['data']}",
        "test_frames": test_frames,
        "observed": degradation.name,
    }
    write_json(outputs / "provenance.json", provenance)
