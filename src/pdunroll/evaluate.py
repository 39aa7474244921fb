"""Test error of every trained operator after every number of iterations.  python -m pdunroll.evaluate [experiment=...]

Writes to outputs/<name>/:
    evaluation.csv  one row per operator and number of iterations (DCT and no restoration too)
    optima.csv      one row per operator: the certified optimum's error on test and on validation frames, and the
                    duality gap after the last iteration
    training.csv    one row per operator: times, steps, validation errors
    metrics.json    the end points, for `dvc metrics`
    provenance.json command, seeds, commit and data behind them, for the figures
    errors/         the errors of the single frames, reused by the next call where nothing has changed
"""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from pdunroll.config import CONF, Config, build, command, one_line_errors, run, settings
from pdunroll.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Row = dict[str, Any]


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        evaluate(settings(cfg))


def evaluate(config: Config) -> None:
    """Evaluate all finished cells of `config.evaluation.runs` and write the tables."""
    import numpy as np
    from joblib import Parallel, delayed

    from pdunroll.cell import cell_key, environment, finished_cells, identify, read_operator
    from pdunroll.frames import load, read_manifest
    from pdunroll.inference import log_grid
    from pdunroll.problem import dct_operator
    from pdunroll.runs import KEY, run_name, write_json, write_table

    options = config.evaluation
    cells = finished_cells(Path(options.runs), identify(config), config.name)
    depths = [record["settings"]["network"]["iterations"] for _, record in cells]
    if max(depths) > options.iterations:
        raise InputError(
            f"evaluation.iterations must be at least the largest L in training, {max(depths)}, got {options.iterations}"
        )
    shape = (config.network.rows or config.data.frame_length, config.data.frame_length)
    operators = [read_operator(folder, shape) for folder, _ in cells]
    grid = log_grid(options.iterations, options.points, depths)

    def drawn(split: str) -> tuple[NDArray, NDArray, NDArray]:
        """Some frames of a split: their numbers, y and x."""
        frames = load(config.prepared, split)
        numbers = np.sort(np.random.default_rng(options.seed).permutation(len(frames.truth))[: options.frames])
        return numbers, frames.truth[numbers], frames.observation[numbers]

    chosen, truth, observation = drawn("test")
    _, *validation = drawn("validation")
    quantized = ((observation - truth) ** 2).mean(axis=1)

    rows: list[Row] = []
    optima: list[Row] = []

    def add(key: dict[str, Any], errors: NDArray) -> None:
        mse = errors.astype(np.float64).mean(axis=1)
        rows.extend({**key, "l_inference": int(l), "mse": value} for l, value in zip(grid, mse.tolist(), strict=True))

    trained = [cell_key(record) for _, record in cells]
    blank = dict.fromkeys(KEY)
    add({**blank, "backprop": "none"}, np.broadcast_to(quantized, (len(grid), len(quantized))))
    norms = dict.fromkeys(key["step_norm"] for key in trained)
    untrained = [{**blank, "backprop": "dct", "step_norm": norm} for norm in norms]
    keys = [*untrained, *trained]
    candidates = [*((key, dct_operator(*shape).numpy()) for key in untrained), *zip(trained, operators, strict=True)]
    # one thread an operator: side by side they are faster than one after the other on all cores
    work = Parallel(n_jobs=options.jobs or -1, return_as="generator", max_nbytes=None)(
        delayed(frame_errors)(config, key, operator, truth, observation, validation, grid, chosen)
        for key, operator in candidates
    )
    start = time.perf_counter()
    for number, (key, found) in enumerate(zip(keys, work, strict=True), start=1):
        add(key, found["errors"])
        optima.append({**key, **certificate(found, options.tolerance)})
        log.info(
            "%d of %d  %s  test MSE %.4e after %d iterations, %.4e at the optimum  %.1f s",
            number, len(candidates), run_name(key), rows[-1]["mse"], grid[-1], optima[-1]["optimum_mse"],
            time.perf_counter() - start,
        )  # fmt: skip

    write_table(config.outputs / "evaluation.csv", rows)
    write_table(config.outputs / "optima.csv", optima)
    write_table(config.outputs / "training.csv", [{**cell_key(record), **record["results"]} for _, record in cells])
    write_json(config.outputs / "metrics.json", metrics(rows, optima))
    write_json(
        config.outputs / "provenance.json",
        {
            "command": command("evaluate", config),
            "seeds": sorted({record["settings"]["seed"] for _, record in cells}),
            "commit": environment()["commit"],
            "data": f"{config.data.name}, sha256 {read_manifest(config.prepared)['digest']}",
            "test_frames": len(chosen),
        },
    )
    log.info("%d frames, %d numbers of iterations: %s", len(chosen), len(grid), config.outputs / "evaluation.csv")


def certificate(found: dict[str, NDArray], tolerance: float) -> dict[str, Any]:
    """The row of optima.csv, but for its key."""
    import numpy as np

    hard = found["iterations"] > 0
    return {
        "optimum_mse": float(found["optimum_errors"].mean()),
        "validation_optimum_mse": float(found["validation_optimum_errors"].mean()),
        "certified": float((found["optimum_gaps"] <= tolerance).mean()),
        "largest_optimum_gap": float(found["optimum_gaps"].max()),
        "median_iterations": float(np.median(found["iterations"][hard])) if hard.any() else 0.0,
        # of nontrivial frames: an objective that goes to 0 has no relative gap
        "median_gap": float(np.median(found["gaps"][hard])) if hard.any() else 0.0,
        "largest_gap": float(found["gaps"][hard].max(initial=0.0)),
    }


def frame_errors(
    config: Config, key: Row, operator: NDArray, truth: NDArray, observation: NDArray, validation: list[NDArray],
    grid: NDArray, chosen: NDArray,
) -> dict[str, NDArray]:  # fmt: skip
    """What is known of each frame for one operator; from outputs/<name>/errors/ if it is there already.

    `key` names the operator, and with its step_norm the step sizes that the operator is iterated with.
    errors (len(grid), frames) and gaps (frames,) of the last iterate; optimum_errors, optimum_gaps and iterations
    (frames,) of the certified optimum; validation_optimum_errors (frames,) of that of the validation frames y, x.
    """
    import hashlib
    import zipfile
    import zlib

    import numpy as np
    import torch

    from pdunroll.cell import STORAGE
    from pdunroll.chambolle_pock import chambolle_pock
    from pdunroll.inference import error_curve
    from pdunroll.optimum import solve
    from pdunroll.quantizer import radius
    from pdunroll.runs import atomic, digest, run_name, source_digest

    options = config.evaluation
    parts = {"operator": operator, "truth": truth, "observation": observation, "grid": grid}
    parts |= dict(zip(("validation_truth", "validation_observation"), validation, strict=True))
    identity = digest(
        {
            **{part: hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for part, array in parts.items()},
            "step_ratio": config.network.step_ratio,
            "extrapolation": config.network.extrapolation,
            "step_norm": key["step_norm"],
            "solve": [config.algorithm, options.tolerance, options.max_iterations],
            "code": source_digest(
                "inference", "frames", config.algorithm["_target_"].rpartition(".")[0], without=STORAGE
            ),
        }
    )
    path = config.outputs / "errors" / f"{run_name(key)}.npz"
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                if stored["identity"].item() == identity:
                    return dict(stored)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            log.warning("%s is damaged and is made again", path)

    torch.set_num_threads(1)
    device = "cuda" if config.trainer.accelerator == "gpu" else "cpu"
    K, y, x = (torch.from_numpy(array).to(device) for array in (operator, truth, observation))
    steps = chambolle_pock(
        K,
        radius=radius(config.data.bits),
        step_ratio=config.network.step_ratio,
        extrapolation=config.network.extrapolation,
        step_norm=key["step_norm"],
    )
    errors, gaps = error_curve(steps, K, y, x, grid.tolist(), options.batch_size)
    solved = partial(
        solve,
        K,
        radius=radius(config.data.bits),
        tolerance=options.tolerance,
        max_iterations=options.max_iterations,
        algorithm=build(config.algorithm),
    )
    optimum = solved(x)
    validated, observed = (torch.from_numpy(array).to(device) for array in validation)
    found = {
        "errors": errors,
        "gaps": gaps,
        "optimum_errors": (optimum.primal - y).double().square().mean(dim=1).cpu().numpy(),
        "validation_optimum_errors": (solved(observed).primal - validated).double().square().mean(dim=1).cpu().numpy(),
        "optimum_gaps": optimum.gap.cpu().numpy(),
        "iterations": optimum.iterations.cpu().numpy(),
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **found, grid=grid, frames=chosen, identity=identity)
    return found


def metrics(rows: list[Row], optima: list[Row]) -> dict[str, Any]:
    """Test MSE of each operator: classical (after L_training iterations) and optimality (at the certified optimum)."""
    from pdunroll.runs import run_name

    result: dict[str, Any] = {"quantized": rows[0]["mse"]}
    optimum = {run_name(row): row["optimum_mse"] for row in optima}
    classical = {run_name(row): row["mse"] for row in rows if row["l_inference"] == row["l_training"]}
    for name, mse in optimum.items():
        result[name] = {"classical": classical[name], "optimality": mse} if name in classical else mse
    return result


if __name__ == "__main__":
    run(main)
