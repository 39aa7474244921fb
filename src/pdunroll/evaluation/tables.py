"""The tables of outputs/<name>/: reading those of `evaluate` with checks, and rounding statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from pdunroll.errors import InputError
from pdunroll.files import check, read_json, read_table
from pdunroll.processes import command
from pdunroll.training.run_key import RunKey
from pdunroll.training.schema import Count, Model, Number, Positive, Share

RESULTS = ("evaluation", "optima", "training")


class Operator(Model):
    """The columns of `RunKey` in a row, checked."""

    backprop: str
    primal_mask: str | None
    step_norm: str | None
    l_training: Positive | None
    seed: Count | None
    b: Positive | None

    @model_validator(mode="after")
    def _names_one_operator(self) -> Self:
        named = [name for name in ("primal_mask", "step_norm", "l_training", "seed") if getattr(self, name) is not None]
        wanted = {"none": [], "dct": ["step_norm"]}.get(
            self.backprop, ["primal_mask", "step_norm", "l_training", "seed"]
        )
        if named != wanted:
            raise ValueError(f"a row of {self.backprop!r} must name {', '.join(wanted) or 'no setting'}")
        return self


class EvaluationRow(Operator):
    """A row of evaluation.csv."""

    l_inference: Positive
    mse: Number
    validation_mse: Number


class OptimaRow(Operator):
    """A row of optima.csv."""

    optimum_mse: Number
    validation_optimum_mse: Number
    certified: Share


class TrainingRow(Operator):
    """A row of training.csv."""

    seconds: Number
    validation_mse: Number
    best_step: Count


class Origin(Model):
    """The provenance.json beside the tables."""

    command: str
    seeds: list[Count]
    commit: str
    data: str
    test_frames: Positive


ROWS: dict[str, type[Operator]] = {"evaluation": EvaluationRow, "optima": OptimaRow, "training": TrainingRow}


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the tables that `evaluate` writes to outputs/<name>/, in the order of `RESULTS`.

    Raises `InputError` if any of them is damaged, or if they are not about the same operators.
    """
    again = command("evaluate", folder.name)
    tables = {}
    for part in RESULTS:
        path = folder / f"{part}.csv"
        tables[part] = read_table(path, again, columns=RunKey._fields)
        try:
            check(list[ROWS[part]], tables[part])
            require_whole_tables(tables)
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); make it again with `{again}`") from None
    return tables


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return the content of provenance.json: how the tables of results were made."""
    return read_json(folder / "provenance.json", kind=Origin)


def rounded(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with floats of six digits, so that another order of summation makes the same table.

    That order depends on the processor and the number of threads.

    >>> rounded([{"mode": "full", "estimate": 0.1 + 0.2, "low": None}])
    [{'mode': 'full', 'estimate': 0.3, 'low': None}]
    """
    return [
        {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]


def require_whole_tables(tables: Mapping[str, list[dict[str, Any]]]) -> None:
    """Raise `ValueError` if rows are missing or duplicate in the given tables of results, evaluation first."""
    curves: dict[RunKey, list[int]] = {}
    for row in tables["evaluation"]:
        curves.setdefault(RunKey.from_row(row), []).append(row["l_inference"])
    operators = [key for key in curves if key.backprop != "none"]
    trained = [key for key in operators if key.trained]
    grid = next(iter(curves.values()))
    norms = {key.step_norm for key in operators}
    if any(sorted(set(counts)) != sorted(counts) or set(counts) != set(grid) for counts in curves.values()):
        raise ValueError("rows of an operator are missing or double")
    if (
        not trained
        or {key.step_norm for key in operators if not key.trained} != norms
        or len(curves) != len(operators) + 1
    ):
        raise ValueError("it lacks trained operators, the untrained ones or the quantized frames")
    if not {key.l_training for key in trained} <= set(grid):
        raise ValueError("a trained operator has no row for its own number of iterations")
    for part, wanted in (("optima", operators), ("training", trained)):
        if part in tables and Counter(map(RunKey.from_row, tables[part])) != Counter(wanted):
            raise ValueError("its operators are not those of evaluation.csv")


class Sentence(Model):
    """An entry of audio/index.json: one restoration of a sentence to listen to."""

    name: str
    file: str
    restoration: str
    primal_mask: str | None
    step_norm: str | None = None
