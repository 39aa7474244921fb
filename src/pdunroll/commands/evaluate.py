"""Test error of every trained operator after every number of iterations.  python -m pdunroll evaluate [experiment=...]

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, Config, build, one_line_errors, settings
from pdunroll.errors import InputError
from pdunroll.processes import command

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Row = dict[str, Any]


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        evaluate(settings(cfg))


def evaluate(config: Config) -> None:
    """Evaluate all finished runs of `config.evaluation.runs` and write the tables."""
    import numpy as np
    from joblib import Parallel, delayed

    from pdunroll.core.problem import dct_operator
    from pdunroll.evaluation.curves import log_grid
    from pdunroll.evaluation.frame_errors import certificate, frame_errors, metrics
    from pdunroll.files import write_json, write_table
    from pdunroll.speech.frames import load, read_manifest
    from pdunroll.speech.quantizer import radius
    from pdunroll.training.run_folder import environment, finished_runs, identify, read_operator
    from pdunroll.training.run_key import KEY, run_key, run_name

    options = config.evaluation
    runs = finished_runs(Path(options.runs), identify(config.scientific, config.prepared), config.name)
    depths = [record["settings"]["network"]["iterations"] for _, record in runs]
    if max(depths) > options.iterations:
        raise InputError(
            f"evaluation.iterations must be at least the largest L in training, {max(depths)}, got {options.iterations}"
        )
    shape = config.shape
    operators = [read_operator(folder, shape) for folder, _ in runs]
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

    trained = [run_key(record) for _, record in runs]
    blank = dict.fromkeys(KEY)
    add({**blank, "backprop": "none"}, np.broadcast_to(quantized, (len(grid), len(quantized))))
    norms = dict.fromkeys(key["step_norm"] for key in trained)
    untrained = [{**blank, "backprop": "dct", "step_norm": norm} for norm in norms]
    keys = [*untrained, *trained]
    candidates = [*((key, dct_operator(*shape).numpy()) for key in untrained), *zip(trained, operators, strict=True)]
    # one thread an operator: side by side they are faster than one after the other on all cores
    solving = {
        "radius": radius(config.data.bits),
        "step_ratio": config.network.step_ratio,
        "extrapolation": config.network.extrapolation,
        "algorithm": build(config.algorithm),
        "tolerance": options.tolerance,
        "max_iterations": options.max_iterations,
        "batch_size": options.batch_size,
        "device": "cuda" if config.trainer.accelerator == "gpu" else "cpu",
    }
    work = Parallel(n_jobs=options.jobs or -1, return_as="generator", max_nbytes=None)(
        delayed(frame_errors)(
            config.outputs / "errors" / f"{run_name(key)}.npz",
            key,
            operator,
            truth,
            observation,
            validation,
            grid,
            chosen,
            **solving,
        )
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
    columns = dict.fromkeys(name for _, record in runs for name in record["results"])  # earlier versions had fewer
    training = [{**run_key(record), **columns, **record["results"]} for _, record in runs]
    write_table(config.outputs / "training.csv", training)
    write_json(config.outputs / "metrics.json", metrics(rows, optima))
    write_json(
        config.outputs / "provenance.json",
        {
            "command": command("evaluate", config.name),
            "seeds": sorted({record["settings"]["seed"] for _, record in runs}),
            "commit": environment()["commit"],
            "data": f"{config.data.name}, sha256 {read_manifest(config.prepared)['digest']}",
            "test_frames": len(chosen),
        },
    )
    log.info("%d frames, %d numbers of iterations: %s", len(chosen), len(grid), config.outputs / "evaluation.csv")
