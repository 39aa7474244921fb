"""Which claims of the slides hold here.  python -m pdunroll verdicts [experiment=...].

Reads evaluation.csv, training.csv, optima.csv and errors/*.npz in outputs/<name>/, and theory/*.csv and
benchmark/memory.csv where they are; no operator, no speech. Writes to outputs/<name>/:
    verdicts.csv  one row per claim and setting (primal mask and norm of the step sizes): claim, primal_mask, step_norm,
                  verdict, estimate, low, high, unit, statement, evidence
    verdicts.txt  one row per claim with a column for each setting, then each verdict with its numbers
A claim holds, does not hold, or is undecided; `pdunroll.evaluation.statistics` says when.
"""

from __future__ import annotations

import logging
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdunroll.errors import InputError
from pdunroll.evaluation.tables import read_results
from pdunroll.files import atomic, read_table, write_table
from pdunroll.processes import command
from pdunroll.training.run_key import RunKey, Setting, by_operator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pdunroll.claims.registry import Curves, Key, Values

log = logging.getLogger(__name__)

Row = dict[str, Any]
WIDTH = 116  # characters


def judge(
    folder: Path, *, name: str, data: str, regime_borders: list[int], margin: float, time_margin: float,
    memory_margin: float, confidence: float, resamples: int, seed: int,
) -> str:  # fmt: skip
    """Judge all claims on the tables in `folder`, outputs/<name>/; write both files and return the text."""
    import numpy as np

    from pdunroll.claims.cost import cost_claims
    from pdunroll.claims.interpretability import figure4_claims
    from pdunroll.claims.regimes import figure3_claims
    from pdunroll.claims.registry import Thresholds
    from pdunroll.claims.theory import TABLES, theory_claims

    if len(regime_borders) != 2 or regime_borders[0] >= regime_borders[1]:
        raise InputError(f"figures.regime_borders must be two ascending numbers for the verdicts, got {regime_borders}")
    thresholds = Thresholds(100 * margin, confidence, (regime_borders[0], regime_borders[1]))
    evaluation, optima, training = read_results(folder).values()
    theory = {}
    if (folder / "theory").is_dir():
        again = command("theory", name)
        columns = ("operator", "step_norm")
        theory = {part: read_table(folder / "theory" / f"{part}.csv", again, columns=columns) for part in TABLES}
    memory = folder / "benchmark/memory.csv"
    peaks = read_table(memory, f"python benchmarks/training.py outputs/{name}") if memory.is_file() else []

    settings = sorted(
        {Setting(row["primal_mask"], row["step_norm"]) for row in training if row["backprop"] in ("full", "truncated")},
        key=lambda setting: setting.order,
    )
    if not settings:
        raise InputError(f"{folder}/training.csv has no full or truncated training; the claims are about those")
    rows: list[Row] = []
    for setting in settings:
        trainings, b = comparable([row for row in training if (row["primal_mask"], row["step_norm"]) == setting])
        rng = np.random.default_rng(seed)  # the same resamples for each setting
        curves = read_curves(folder, setting, trainings, evaluation, optima, resamples, rng)
        rows += [
            *figure3_claims(curves, thresholds),
            *figure4_claims(curves, thresholds),
            *cost_claims(setting, training, b, peaks, (time_margin, memory_margin)),
            *theory_claims(setting, theory, b, confidence),
        ]
    write_table(folder / "verdicts.csv", rows)
    heading = (
        f"Verdicts on the claims of the slides: experiment {name}, {data} data. Intervals of "
        f"{100 * confidence:g} % from {resamples} resamples; differences below "
        f"{100 * margin:g} % of the error count as none. "
        "With one seed the intervals say how the test frames vary, not how trainings do."
    )
    text = readable(rows, heading)
    with atomic(folder / "verdicts.txt") as temporary:
        temporary.write_text(text + "\n")
    return text


def comparable(training: list[Row]) -> tuple[dict[Key, dict[int, Row]], int | None]:
    """The trainings of one setting that are compared: (mode, L) -> seed -> row, all with the same seeds; and their b.

    Of several b the one with the most trainings is taken. Seeds that only some of the trainings have are left out, and
    then trainings without the seeds that are left.
    """
    counts = Counter(row["b"] for row in training if row["backprop"] == "truncated")
    b = max(counts, key=lambda value: (counts[value], value), default=None)
    trainings: dict[Key, dict[int, Row]] = {}
    for row in training:
        if row["backprop"] == "full" or (row["backprop"], row["b"]) == ("truncated", b):
            trainings.setdefault((row["backprop"], row["l_training"]), {})[row["seed"]] = row
    having = {
        seed: {key for key, own in trainings.items() if seed in own}
        for seed in sorted({s for own in trainings.values() for s in own})
    }
    most = max(having.values(), key=len)
    seeds = [seed for seed, keys in having.items() if keys >= most]
    for key, own in trainings.items():
        if left := (sorted(set(own) - set(seeds)) if key in most else sorted(own)):
            log.warning("%s L = %d: seed %s is left out: not all trainings have it", *key, ", ".join(map(str, left)))
    return {key: {seed: trainings[key][seed] for seed in seeds} for key in sorted(most)}, b


def read_curves(
    folder: Path, setting: Setting, trainings: dict[Key, dict[int, Row]], evaluation: list[Row], optima: list[Row],
    resamples: int, rng: np.random.Generator,
) -> Curves:  # fmt: skip
    """Mean errors of these trainings in the sample and in each resample of its frames and seeds."""
    import numpy as np

    from pdunroll.claims.registry import Curves
    from pdunroll.evaluation.statistics import means, weights

    validated = by_operator(optima, "validation_optimum_mse")
    last = by_operator(evaluation, "mse")  # ascending in l_inference: the last stays
    dct = RunKey("dct", step_norm=setting.step_norm)
    first = read_errors(folder, dct.name)
    seeds = list(next(iter(trainings.values())))
    of_seeds = weights(len(seeds), resamples, rng)
    of_frames = weights(len(first["frames"]), resamples, rng)

    def drawn(keys: list[RunKey]) -> Values:
        """Of one training: the errors along the grid and at the optimum, (len(grid) + 1, 1 + resamples)."""
        stored = []
        for key in keys:
            found = read_errors(folder, key.name)
            same = all(np.array_equal(found[part], first[part]) for part in ("grid", "frames"))
            mean = found["errors"][-1].mean(dtype=np.float64)
            if not (same and np.isclose(mean, last.get(key, np.nan), rtol=1e-5)):
                raise InputError(
                    f"{folder}/errors/{key.name}.npz does not belong to {folder}/evaluation.csv; run "
                    f"`{command('evaluate', folder.name)}` again"
                )
            stored.append(np.vstack([found["errors"], found["optimum_errors"]]))
        return means(np.stack(stored), of_seeds, of_frames)

    mse, optimum = {}, {}
    for key, own in trainings.items():
        errors = drawn([RunKey.from_row(row) for row in own.values()])
        mse[key], optimum[key] = errors[:-1], errors[-1]
    compared = {RunKey.from_row(row) for own in trainings.values() for row in own.values()}
    untrained = drawn([dct] * len(seeds))
    return Curves(
        setting=setting,
        grid=first["grid"].tolist(),
        mse=mse,
        dct=untrained[:-1],
        optimum=optimum,
        dct_optimum=untrained[-1],
        certified=min(row["certified"] for row in optima if RunKey.from_row(row) in compared),
        validation={
            "classical": {
                key: float(np.mean([row["validation_mse"] for row in own.values()])) for key, own in trainings.items()
            },
            "optimality": {
                key: float(np.mean([validated[RunKey.from_row(row)] for row in own.values()]))
                for key, own in trainings.items()
            },
        },
        untrained=[key for key, own in trainings.items() if all(row["best_step"] == 0 for row in own.values())],
        basis=f"{len(first['frames']):,} test frames, seed {', '.join(map(str, seeds))}"
        + (" only" if len(seeds) == 1 else ""),
    )


def read_errors(folder: Path, name: str) -> dict[str, NDArray]:
    """The arrays that `evaluate` stored of one operator."""
    import zipfile
    import zlib

    import numpy as np

    path, again = folder / "errors" / f"{name}.npz", command("evaluate", folder.name)
    if not path.is_file():
        raise InputError(f"{path} is missing; make it with `{again}`")
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return {part: stored[part] for part in ("errors", "optimum_errors", "grid", "frames")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); make it again with `{again}`") from None


def readable(rows: list[Row], heading: str) -> str:
    """The verdicts to be read: an overview of all settings side by side, then each claim with its numbers."""
    settings = list(dict.fromkeys(Setting(row["primal_mask"], row["step_norm"]) for row in rows))
    words = {(row["claim"], row["primal_mask"], row["step_norm"]): row["verdict"] for row in rows}
    lines = [*textwrap.wrap(heading, WIDTH), ""]
    lines += [
        f"{head:<42}" + "".join(f"{pair[part]:<16}" for pair in settings) for part, head in enumerate(("", "claim"))
    ]
    lines += [
        f"{claim:<42}" + "".join(f"{words[claim, *pair]:<16}" for pair in settings)
        for claim in dict.fromkeys(row["claim"] for row in rows)
    ]
    for setting in settings:
        own = [row for row in rows if (row["primal_mask"], row["step_norm"]) == setting]
        counts = Counter(row["verdict"] for row in own)
        lines += ["", f"{', '.join(setting.titles)}: " + ", ".join(f"{word}: {n}" for word, n in counts.items())]
        for row in own:
            numbers = "" if row["estimate"] is None else "{estimate:.3g} [{low:.3g}, {high:.3g}] {unit}".format(**row)
            lines += [
                "",
                f"{row['verdict'].upper():<15}{row['claim']:<42}{numbers}",
                *textwrap.wrap(row["statement"], WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4),
                *textwrap.wrap(row["evidence"], WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
            ]
    return "\n".join(line.rstrip() for line in lines)
