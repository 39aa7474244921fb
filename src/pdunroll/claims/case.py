"""The data on which claims are judged, read from the tables and the stored errors of an experiment."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdunroll.claims.registry import Case, Curves, Key, Row, Thresholds, Values, listed
from pdunroll.errors import InputError
from pdunroll.evaluation.statistics import means, weights
from pdunroll.processes import command
from pdunroll.training.run_key import RunKey, Setting, by_operator

log = logging.getLogger(__name__)


def read_case(
    folder: Path, setting: Setting, about: tuple[str, ...], tables: dict[str, list[Row]],
    theory: dict[str, list[Row]], memory: list[Row], thresholds: Thresholds, resamples: int, seed: int,
) -> Case | None:  # fmt: skip
    """Return the case for claims about some modes with one setting.

    Args:
        folder: outputs/<name>/.
        setting: the primal mask and the norm of the step sizes.
        about: the modes.
        tables: the tables of results by their names.
        theory: the tables of the theory by their names.
        memory: the rows of benchmark/memory.csv.
        thresholds: the thresholds of the verdicts.
        resamples: the number of resamples.
        seed: the seed of the resamples, which are the same for each setting.

    Returns:
        The case; None if none of the modes was trained with the setting.
    """
    training = [row for row in tables["training"] if (row["primal_mask"], row["step_norm"]) == setting]
    trainings, b = comparable(training, about)
    if not trainings:
        return None
    measured = {
        name: [row for row in rows if (row.get("primal_mask", setting.primal_mask), row["step_norm"]) == setting]
        for name, rows in theory.items()
    }
    curves = read_curves(folder, setting, trainings, tables, resamples, np.random.default_rng(seed))
    return Case(setting, curves, training, b.get("truncated"), measured, memory, thresholds)


def comparable(training: list[Row], modes: tuple[str, ...]) -> tuple[dict[Key, dict[int, Row]], dict[str, int | None]]:
    """Choose the trainings of one setting that are compared: each mode with one b, at each L all with the same seeds.

    Of several b, the one with the most trainings is chosen. The seeds at an L are those that the most modes have; other
    seeds and modes without these seeds are left out. Different L may have different seeds.

    Args:
        training: the rows of training.csv with the setting.
        modes: the modes of backpropagation.

    Returns:
        The rows by seed for each mode and L, and the b of each mode that was trained.
    """
    b = {}
    for mode in modes:
        if counts := Counter(row["b"] for row in training if row["backprop"] == mode):
            b[mode] = max(counts, key=lambda value: (counts[value], value or 0))
    trainings: dict[int, dict[str, dict[int, Row]]] = {}
    for row in training:
        if row["backprop"] in b and row["b"] == b[row["backprop"]]:
            trainings.setdefault(row["l_training"], {}).setdefault(row["backprop"], {})[row["seed"]] = row
    chosen: dict[Key, dict[int, Row]] = {}
    for depth, by_mode in trainings.items():
        having = {
            seed: {mode for mode, own in by_mode.items() if seed in own}
            for seed in sorted({seed for own in by_mode.values() for seed in own})
        }
        most = max(having.values(), key=len)
        for mode, own in by_mode.items():
            kept = {seed: own[seed] for seed in having if having[seed] == most and seed in own}
            if left := sorted(own.keys() - kept.keys()):
                log.warning("%s L = %d: seed %s is left out: not all modes have it", mode, depth, listed(left))
            if kept:
                chosen[mode, depth] = kept
    return dict(sorted(chosen.items())), b


def read_curves(
    folder: Path, setting: Setting, trainings: dict[Key, dict[int, Row]], tables: dict[str, list[Row]],
    resamples: int, rng: np.random.Generator,
) -> Curves:  # fmt: skip
    """Return the mean errors of some trainings in the sample and in each resample of its frames and seeds.

    Trainings with the same seeds share the resamples of these.
    """
    keys = {key: [RunKey.from_row(row) for row in own.values()] for key, own in trainings.items()}
    compared = {run for runs in keys.values() for run in runs}
    dct = RunKey("dct", step_norm=setting.step_norm)
    first = read_errors(folder, dct.name)
    of_seeds = {seeds: weights(len(seeds), resamples, rng) for seeds in dict.fromkeys(map(tuple, trainings.values()))}
    of_frames = weights(len(first["frames"]), resamples, rng)
    last = by_operator(tables["evaluation"], "mse")  # l_inference ascends, so that the last value is kept

    def drawn(runs: list[RunKey], shares: NDArray[np.float64]) -> Values:
        """Return the errors along the grid and at the optimum, (len(grid) + 1, 1 + resamples)."""
        stored = []
        for run in runs:
            found = read_errors(folder, run.name)
            same = all(np.array_equal(found[part], first[part]) for part in ("grid", "frames"))
            mean = found["errors"][-1].mean(dtype=np.float64)
            if not (same and np.isclose(mean, last.get(run, np.nan), rtol=1e-5)):
                raise InputError(
                    f"{folder}/errors/{run.name}.npz does not belong to {folder}/evaluation.csv; run "
                    f"`{command('evaluate', folder.name)}` again"
                )
            stored.append(np.vstack([found["errors"], found["optimum_errors"]]))
        return means(np.stack(stored), shares, of_frames)

    def validation(table: str, column: str) -> dict[Key, float]:
        values = by_operator(tables[table], column)
        return {key: float(np.mean([values[run] for run in runs])) for key, runs in keys.items()}

    errors = {key: drawn(runs, of_seeds[tuple(trainings[key])]) for key, runs in keys.items()}
    untrained = drawn([dct], np.ones((1 + resamples, 1)))
    return Curves(
        grid=first["grid"].tolist(),
        mse={key: own[:-1] for key, own in errors.items()},
        dct=untrained[:-1],
        optimum={key: own[-1] for key, own in errors.items()},
        dct_optimum=untrained[-1],
        certified=min(share for run, share in by_operator(tables["optima"], "certified").items() if run in compared),
        validation={
            "classical": validation("training", "validation_mse"),
            "optimality": validation("optima", "validation_optimum_mse"),
        },
        untrained=[key for key, own in trainings.items() if all(row["best_step"] == 0 for row in own.values())],
        basis=f"{len(first['frames']):,} test frames, {described_seeds(trainings)}",
    )


def described_seeds(trainings: dict[Key, dict[int, Row]]) -> str:
    """Return the seeds of the compared trainings in words, first those that the most L have.

    >>> described_seeds({("full", 10): {0: {}}, ("full", 100): {0: {}, 1: {}}, ("full", 200): {0: {}}})
    'seed 0 only (L = 100: seed 0, 1)'
    """
    depths: dict[str, set[int]] = {}
    for (_, depth), own in trainings.items():
        depths.setdefault(f"seed {listed(own)}" + (" only" if len(own) == 1 else ""), set()).add(depth)
    most, *others = sorted(depths, key=lambda seeds: -len(depths[seeds]))
    exceptions = "; ".join(f"L = {listed(sorted(depths[seeds]))}: {seeds}" for seeds in others)
    return f"{most} ({exceptions})" if others else most


def read_errors(folder: Path, name: str) -> dict[str, NDArray]:
    """Return the arrays that `evaluate` has stored for an operator."""
    path, again = folder / "errors" / f"{name}.npz", command("evaluate", folder.name)
    if not path.is_file():
        raise InputError(f"{path} is missing; make it with `{again}`")
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return {part: stored[part] for part in ("errors", "optimum_errors", "grid", "frames")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); make it again with `{again}`") from None
