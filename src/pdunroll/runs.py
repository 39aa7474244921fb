"""Artefacts on disk: atomic writes, tidy tables, digests, and the record of one training run."""

from __future__ import annotations

import ast
import csv
import glob
import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pdunroll.errors import InputError
from pdunroll.folders import running

# The tables of results: the columns that name an operator, and the numbers that others read in each table.
KEY = ("backprop", "primal_mask", "step_norm", "l_training", "seed", "b")
RESULTS = {
    "evaluation": ("l_inference", "mse"),
    "optima": ("optimum_mse", "validation_optimum_mse", "certified"),
    "training": ("seconds", "validation_mse", "best_step"),
}
PROVENANCE = ("command", "seeds", "commit", "data", "test_frames")  # and what made them, in provenance.json
PACKAGE, HOME = "pdunroll", Path(__file__).parent


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; it takes the place of `path` when all went well.

    What a killed process of this machine has left there of the same file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = platform.node().replace(".", "-")
    temporary = path.with_name(f".{path.name}.{machine}.{os.getpid()}.partial")
    for stale in path.parent.glob(glob.escape(f".{path.name}.{machine}.") + "*.partial"):
        if not running(stale.name.split(".")[-2]):
            stale.unlink(missing_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """An object that has these keys; raises `InputError` naming the file if it is damaged."""
    try:
        content = json.loads(path.read_text())
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {missing[0]!r}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it and make it again") from None
    return content


def read_record(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """A training's run.json with these keys; raises `InputError` if it is damaged or says nothing of its step sizes."""
    record = read_json(path, ("settings", *keys))
    network = record["settings"].get("network") if isinstance(record["settings"], dict) else None
    if isinstance(network, dict) and "step_norm" not in network:
        raise InputError(
            f"{path.parent} was trained before the setting network.step_norm existed; "
            "train it again by the command of its experiment, and remove this folder"
        )
    return record


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV; floats with all their digits."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(
    path: Path, made_by: str, *, columns: Sequence[str] = (), numbers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rows of a CSV file, numbers as int or float, empty cells as None.

    Raises `InputError` that says which command makes the file if it is missing, empty, or without these columns and
    numbers.
    """
    again = f"make it again with `{made_by}`"
    if not path.is_file():
        raise InputError(f"{path} is missing; make it with `{made_by}`")
    try:
        with path.open(newline="") as file:
            rows = [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); {again}") from None
    if not rows:
        raise InputError(f"{path} is empty; {again}")
    if missing := [name for name in (*columns, *numbers) if name not in rows[0]]:
        raise InputError(f"{path} has no column {missing[0]}; {again}")
    for number, row in enumerate(rows, start=2):
        for name in numbers:
            if not isinstance(row[name], int | float):
                raise InputError(f"{path} has no number in column {name} of line {number}; {again}")
    return rows


def read_results(folder: Path, name: str) -> list[dict[str, Any]]:
    """One of the tables that `evaluate` writes to outputs/<name>/, see `RESULTS`."""
    command = f"python -m pdunroll.evaluate experiment={folder.name}"
    return read_table(folder / f"{name}.csv", command, columns=KEY, numbers=RESULTS[name])


def run_name(row: Mapping[str, Any]) -> str:
    """Return the name of an operator's files: a training's folder, "dct-" and the norm of the step sizes, or "none"."""
    if row["l_training"] is None:
        return "-".join(filter(None, (row["backprop"], row["step_norm"])))
    return (
        f"{row['backprop']}{row['b'] or ''}-{row['primal_mask']}-{row['step_norm']}"
        f"-L{row['l_training']}-seed{row['seed']}"
    )


def _value(text: str | None) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            pass
    return text or None


def digest(content: Any) -> str:
    """SHA-256 of plain data (JSON with sorted keys)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def source_digest(*modules: str, without: tuple[str, ...] = ()) -> str:
    """SHA-256 of what modules do, with all that they import of the package: comments, docstrings, layout do not count.

    Modules of the package by their plain names, others ("mine.strategies") by their full ones; those of `without`, and
    what only they import, are left out.
    """
    programs: dict[str, str] = {}
    waiting = [module.removeprefix(f"{PACKAGE}.") for module in modules]
    while waiting:
        module = waiting.pop()
        if module in programs or module in without:
            continue
        tree = ast.parse(_source(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        programs[module] = ast.dump(tree)
        waiting += imported(tree)
    return digest([programs[module] for module in sorted(programs)])


def imported(tree: ast.Module) -> set[str]:
    """The modules of the package that a program imports anywhere in it, by their plain names."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names |= {f"{PACKAGE}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    plain = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
    return {name for name in plain if (HOME / f"{name}.py").is_file()}


def _source(module: str) -> str:
    path = HOME / f"{module}.py"
    if not path.is_file():
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise InputError(f"the module {module!r} of a _target_ has no source file; give one that has")
        path = Path(found.origin)
    return path.read_text(encoding="utf-8")
