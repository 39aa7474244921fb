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
from pdunroll.processes import command

# The tables of results: the columns that name an operator. What else is in their rows: `pdunroll.schema`.
KEY = ("backprop", "primal_mask", "step_norm", "l_training", "seed", "b")
RESULTS = ("evaluation", "optima", "training")
PACKAGE, HOME = "pdunroll", Path(__file__).parent


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; it takes the place of `path` when all went well.

    What a killed process of this machine has left there of the same file is removed. Errors of the system name `path`.
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
    except OSError as error:
        raise _naming(error, path, temporary) from None
    finally:
        temporary.unlink(missing_ok=True)


def _naming(error: OSError, path: Path, temporary: Path) -> OSError:
    """The error with the name of what was to be written, where it has none or the temporary one."""
    if error.errno is not None and str(error.filename or temporary).startswith(str(temporary)):
        error.filename = str(path)
    return error


def write_json(path: Path, content: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path, keys: Sequence[str] = (), kind: Any = None) -> Any:
    """Return what a file holds: an object that has these keys, or anything of `kind`, see `pdunroll.schema`.

    Raises `InputError` naming the file if it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {missing[0]!r}")
        if kind is not None:
            from pdunroll.schema import check  # here, since pydantic takes time to load

            check(kind, content)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; make it first") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it and make it again") from None
    return content


def read_record(path: Path) -> dict[str, Any]:
    """Return a training's run.json; raises `InputError` if it is damaged or says nothing of its step sizes."""
    from pdunroll.schema import Record

    record = read_json(path, kind=Record)
    if "step_norm" not in record["settings"]["network"]:
        raise InputError(
            f"{path.parent} was trained before the setting network.step_norm existed; "
            "train it again by the command of its experiment, and remove this folder"
        )
    return record


def read_array(path: Path) -> Any:
    """Return what an npy or npz file holds, an array or its arrays by name; raises `InputError` if it is damaged."""
    import numpy as np

    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            return stored if isinstance(stored, np.ndarray) else dict(stored)
    except Exception as error:  # a damaged header raises whatever its parser meets
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read ({reason}); replace it") from None


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
            rows = [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file, restkey="")]
        if any("" in row for row in rows):
            raise ValueError("a line has more cells than the header")
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
    """Return one of the tables that `evaluate` writes to outputs/<name>/.

    Raises `InputError` if any of them is damaged, or if they are not about the same operators.
    """
    from pdunroll.schema import ROWS, check

    again = command("evaluate", folder.name)
    tables = {}
    for part in RESULTS:
        path = folder / f"{part}.csv"
        tables[part] = read_table(path, again, columns=KEY)
        try:
            check(list[ROWS[part]], tables[part])
            require_whole_tables(tables)
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); make it again with `{again}`") from None
    return tables[name]


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return what made the tables of results, the provenance.json beside them."""
    from pdunroll.schema import Origin

    return read_json(folder / "provenance.json", kind=Origin)


def require_whole_tables(tables: Mapping[str, list[dict[str, Any]]]) -> None:
    """Raise `ValueError` if rows are missing or double in the tables of results that are given, evaluation first."""
    curves: dict[tuple, list[int]] = {}
    for row in tables["evaluation"]:
        curves.setdefault(tuple(row[name] for name in KEY), []).append(row["l_inference"])
    operators = [key for key in curves if key[0] != "none"]
    trained = [key for key in operators if key[0] != "dct"]
    grid = next(iter(curves.values()))
    norms = {key[2] for key in operators}
    if any(sorted(set(counts)) != sorted(counts) or set(counts) != set(grid) for counts in curves.values()):
        raise ValueError("rows of an operator are missing or double")
    if not trained or {key[2] for key in operators if key[0] == "dct"} != norms or len(curves) != len(operators) + 1:
        raise ValueError("it lacks trained operators, the untrained ones or the quantized frames")
    if not {key[3] for key in trained} <= set(grid):
        raise ValueError("a trained operator has no row for its own number of iterations")
    for part, wanted in (("optima", operators), ("training", trained)):
        if part in tables and sorted(map(_key_text, tables[part])) != sorted(map(str, wanted)):
            raise ValueError("its operators are not those of evaluation.csv")


def _key_text(row: Mapping[str, Any]) -> str:
    return str(tuple(row[name] for name in KEY))


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
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # of a package that is not there, of no name at all
            found = None
        if found is None or not str(found.origin).endswith(".py"):
            raise InputError(f"the module {module!r} of a _target_ has no source file; give one that has")
        path = Path(found.origin)
    return path.read_text(encoding="utf-8")
