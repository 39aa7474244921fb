"""Records and tables of wrong types, or that do not fit together, are refused with one line that names the file."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pdunroll.errors import InputError
from pdunroll.evaluation.tables import read_provenance, read_results
from pdunroll.files import write_table
from pdunroll.training.run_folder import RunFolder, finished_runs, read_record

WRONG: tuple[Any, ...] = (None, True, -1, 0.5, math.nan, math.inf, 10**30, "", "a\nb", [], [1], {}, {"a": 1})


def one_line(error: InputError, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


# ---------------------------------------------------------------- run.json


@pytest.fixture
def cell(smoke, tmp_path) -> Path:
    """A copy of a finished training."""
    original = next(smoke.glob("multirun/smoke/truncated*/operator.npy")).parent
    return Path(shutil.copytree(original, tmp_path / "runs" / original.name, ignore=shutil.ignore_patterns("wandb")))


def fields(content: Any, place: tuple = ()) -> Iterator[tuple]:
    """The place of every value in plain data, the whole of it first."""
    yield place
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from fields(value, (*place, key))


def changed(content: Any, place: tuple, value: Any) -> Any:
    """A copy with another value at a place."""
    if not place:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


def use(cell: Path, wanted: dict[str, Any]) -> None:
    """What `evaluate` and `train` do with a record."""
    (found,) = finished_runs(cell.parent, wanted["data"], "smoke")
    assert math.isfinite(found.results["validation_mse"])
    if RunFolder(cell, wanted).finished:
        assert math.isfinite(RunFolder(cell, wanted).record["results"]["validation_mse"])


def test_records_with_a_wrong_type_in_any_field_are_used_or_refused(cell):
    path = cell / "run.json"
    record = json.loads(path.read_text())
    wanted = {key: record[key] for key in ("settings", "data", "strategy", "code")}
    use(cell, wanted)
    refused = []
    for place in fields(record):
        for value in WRONG:
            path.write_text(json.dumps(changed(record, place, value)))
            try:
                use(cell, wanted)
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > 300
    assert not [text for text in refused if "\n" in text]


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "9" * 5000])
def test_nested_brackets_and_endless_numbers_are_refused(cell, text):
    (cell / "run.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_record(cell / "run.json")
    one_line(caught.value, cell / "run.json")


def test_damaged_records_are_refused_by_the_commands(smoke, cell, call, tmp_path):
    shutil.copytree(smoke / "outputs/smoke/prepared", tmp_path / "outputs/smoke/prepared")
    record = json.loads((cell / "run.json").read_text())
    for place, value in ((("settings",), [1]), (("results",), "good"), (("status",), 5), ((), 7)):
        (cell / "run.json").write_text(json.dumps(changed(record, place, value)))
        for command in (
            ("evaluate", "evaluation.runs=runs"),
            ("train", "hydra.run.dir=runs", f"run={cell.name}", "backprop=truncated", "network.iterations=3"),
        ):
            done = call(command[0], "experiment=smoke", "tracking=off", *command[1:])
            (line,) = (line for line in done.err.splitlines() if line.startswith("pdunroll: "))
            assert done.status == 2
            assert f"{cell.name}/run.json" in line


# ---------------------------------------------------------------- tables


@pytest.fixture
def outputs(smoke, tmp_path) -> Path:
    """A copy of the tables of results."""
    folder = tmp_path / "smoke"
    folder.mkdir()
    for name in ("evaluation.csv", "optima.csv", "training.csv", "provenance.json"):
        shutil.copy(smoke / "outputs/smoke" / name, folder)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


NUMBERS = [
    ("evaluation", "mse"), ("evaluation", "l_inference"), ("optima", "optimum_mse"), ("optima", "certified"),
    ("training", "seconds"), ("training", "validation_mse"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "column"), NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-0.001", "", "high", "1e999"])
def test_errors_that_are_no_finite_numbers_are_refused(outputs, table, column, value):
    path = outputs / f"{table}.csv"
    rows = rows_of(path)
    rows[len(rows) // 2][column] = value
    write_table(path, rows)
    with pytest.raises(InputError, match=column) as caught:
        read_results(outputs)["evaluation"]
    one_line(caught.value, path)


def first_of(rows: list[dict[str, str]], backprop: str) -> int:
    return next(number for number, row in enumerate(rows) if row["backprop"] == backprop)


def renamed(column: str, value: str) -> Callable[[list], list]:
    def change(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        rows[first_of(rows, "full")][column] = value
        return rows

    return change


def without(column: str) -> Callable[[list], list]:
    return lambda rows: [{key: value for key, value in row.items() if key != column} for row in rows]


CHANGES = {
    "a row missing": lambda rows: rows[: first_of(rows, "full")] + rows[first_of(rows, "full") + 1 :],
    "a row double": lambda rows: [*rows, rows[first_of(rows, "full")]],
    "the last row missing": lambda rows: rows[:-1],
    "no dct": lambda rows: [row for row in rows if row["backprop"] != "dct"],
    "no trained ones": lambda rows: [row for row in rows if row["backprop"] in ("none", "dct")],
    "another name": renamed("backprop", "fuller"),
    "another mask": renamed("primal_mask", "released"),
    "another norm": renamed("step_norm", "spectral"),
    "another L": renamed("l_training", "17"),
    "another seed": renamed("seed", "5"),
    "no seed": renamed("seed", ""),
    "no key": without("step_norm"),
    "half of the rows": lambda rows: rows[: len(rows) // 2],
}


@pytest.mark.parametrize("table", ["evaluation", "optima", "training"])
@pytest.mark.parametrize("change", CHANGES)
def test_tables_that_lack_rows_or_do_not_fit_together_are_refused(outputs, table, change):
    path = outputs / f"{table}.csv"
    rows = rows_of(path)
    after = CHANGES[change]([dict(row) for row in rows])
    if after in (rows, []):
        pytest.skip(f"{table} has no such rows")
    write_table(path, after)
    for name in ("evaluation", "optima", "training"):
        with pytest.raises(InputError) as caught:
            read_results(outputs)[name]
        assert "\n" not in str(caught.value)
        assert str(outputs) in str(caught.value)


def test_quantized_frames_are_wanted_in_evaluation(outputs):
    rows = [row for row in rows_of(outputs / "evaluation.csv") if row["backprop"] != "none"]
    write_table(outputs / "evaluation.csv", rows)
    with pytest.raises(InputError, match="quantized"):
        read_results(outputs)["evaluation"]


def test_lines_with_more_cells_than_the_header_are_refused(outputs):
    path = outputs / "training.csv"
    path.write_text(path.read_text().rstrip() + ",more\n")
    with pytest.raises(InputError, match="more cells") as caught:
        read_results(outputs)["training"]
    one_line(caught.value, path)


def test_whole_tables_are_read_as_they_were_written(outputs, smoke):
    rows = read_results(outputs)["evaluation"]
    assert [str(row["mse"]) for row in rows] == [row["mse"] for row in rows_of(outputs / "evaluation.csv")]
    assert read_provenance(outputs)["test_frames"] > 0


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", ["command", "seeds", "commit", "data", "test_frames"])
def test_provenance_of_a_wrong_type_is_refused_or_used(outputs, key, value):
    from pdunroll.report.style import footnote

    path = outputs / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    try:
        footnote(read_provenance(outputs))
    except InputError as error:
        one_line(error, path)
