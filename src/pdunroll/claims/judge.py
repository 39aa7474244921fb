"""Judge which claims of the slides hold.  python -m pdunroll verdicts [experiment=...].

Reads only tables in outputs/<name>/: evaluation.csv, training.csv, optima.csv, errors/*.npz and, if they exist,
theory/*.csv and benchmark/memory.csv. Writes to outputs/<name>/:
    verdicts.csv  one row per claim and setting (primal mask and norm of the step sizes): claim, primal_mask, step_norm,
                  verdict, estimate, low, high, unit, statement, evidence
    verdicts.txt  one row per claim with a column for each setting, then each verdict with its numbers
A claim holds, does not hold, or is undecided; `pdunroll.evaluation.statistics` has the rules.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdunroll.errors import InputError
from pdunroll.evaluation.tables import read_results, rounded
from pdunroll.files import atomic, read_table, write_table
from pdunroll.processes import command
from pdunroll.training.run_key import Setting, settings_in

if TYPE_CHECKING:
    from pdunroll.claims.registry import Claim

Row = dict[str, Any]
WIDTH = 116  # characters


def judge(
    folder: Path, *, name: str, data: str, regime_borders: Sequence[float], margin: float, time_margin: float | None,
    memory_margin: float, confidence: float, resamples: int, seed: int,
) -> str:  # fmt: skip
    """Judge all claims on the tables of an experiment; write verdicts.csv and verdicts.txt.

    Args:
        folder: outputs/<name>/.
        name: the experiment.
        data: the name of its corpus.
        regime_borders: the paper's borders of the three regimes, in L.
        margin: the share of the error below which a difference counts as none.
        time_margin: the share by which a time may differ from the claimed one; times are not judged if None.
        memory_margin: the share of full's growth below which memory counts as constant.
        confidence: the confidence level of the intervals.
        resamples: the number of bootstrap resamples.
        seed: the seed of the resamples.

    Returns:
        The text of verdicts.txt.

    Raises:
        InputError: naming the invalid table or setting.
    """
    from pdunroll.claims.case import read_case
    from pdunroll.claims.registry import Thresholds, verdicts

    if len(regime_borders) != 2 or regime_borders[0] >= regime_borders[1]:
        raise InputError(f"figures.regime_borders must be two ascending numbers for the verdicts, got {regime_borders}")
    thresholds = Thresholds(100 * margin, confidence, regime_borders[0], regime_borders[1], time_margin, memory_margin)
    tables = read_results(folder)
    measured, memory = read_theory(folder, name), read_memory(folder, name)
    claims = all_claims()
    abouts = list(dict.fromkeys(claim.about for claim in claims))
    modes = list(dict.fromkeys(mode for about in abouts for mode in about))
    settings = settings_in(row for row in tables["training"] if row["backprop"] in modes)
    if not settings:
        raise InputError(f"{folder}/training.csv has no {' or '.join(modes)} training; the claims are about those")
    rows: list[Row] = []
    for setting in settings:
        cases = {
            about: read_case(folder, setting, about, tables, measured, memory, thresholds, resamples, seed)
            for about in abouts
        }
        rows += verdicts(claims, setting, cases, thresholds)
    write_table(folder / "verdicts.csv", rounded(rows))
    heading = (
        f"Verdicts on the claims of the slides: experiment {name}, {data} data. Intervals of "
        f"{100 * confidence:g} % from {resamples} resamples; differences below "
        f"{100 * margin:g} % of the error count as none. "
        "Where an L has one seed, the intervals say how the test frames vary, not how trainings do."
    )
    text = readable(rows, heading)
    with atomic(folder / "verdicts.txt") as temporary:
        temporary.write_text(text + "\n")
    return text


def all_claims() -> list[Claim]:
    """Return the claims in the order of the slides, then those of other modules."""
    from pdunroll.claims import cost, interpretability, regimes, theory
    from pdunroll.claims.registry import CLAIMS

    order = [module.__name__ for module in (regimes, interpretability, cost, theory)]
    return sorted(CLAIMS, key=lambda claim: [*order, claim.judge.__module__].index(claim.judge.__module__))


def read_theory(folder: Path, name: str) -> dict[str, list[Row]]:
    """Return the tables of the theory by their names; none if the theory was not measured."""
    from pdunroll.claims.theory import TABLES

    if not (folder / "theory").is_dir():
        return {}
    columns = ("operator", "step_norm")
    return {
        part: read_table(folder / "theory" / f"{part}.csv", command("theory", name), columns=columns) for part in TABLES
    }


def read_memory(folder: Path, name: str) -> list[Row]:
    """Return the rows of benchmark/memory.csv; none if memory was not measured."""
    path = folder / "benchmark/memory.csv"
    return read_table(path, f"python benchmarks/training.py outputs/{name}") if path.is_file() else []


def readable(rows: list[Row], heading: str) -> str:
    """Return the verdicts as text: an overview of all settings, then each claim with its numbers."""
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
