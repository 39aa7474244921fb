"""Artefacts on disk: atomic writes, tidy tables, digests, and the record of one training run."""

from __future__ import annotations

import ast
import csv
import errno
import glob
import hashlib
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pdunroll.errors import InputError
from pdunroll.processes import command

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

    What a killed process of this machine has left there of the same file is removed. Errors of the system name `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
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


def _temporary(path: Path) -> Path:
    """A hidden name beside `path` for this process; removes what killed processes of this machine have left of it."""
    start = f".{path.name}.{platform.node().replace('.', '-')}."
    for stale in path.parent.glob(glob.escape(start) + "*.partial"):
        if not _alive(stale.name.split(".")[-2]):
            _remove(stale)
    return path.with_name(f"{start}{os.getpid()}.partial")


def _remove(path: Path) -> None:
    """Remove a file or a folder of ours, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(process: str) -> bool:
    """Whether a process of this number is running, as far as can be told."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        pass
    return True


class Layout(NamedTuple):
    """How a folder that is replaced as a whole is known to be ours: by an index that lists all other files in it."""

    index: str  # name of a JSON file
    listed: Callable[[Any], Iterable[str]]  # what it says -> names of the other files


@contextmanager
def replacing(folder: Path, layout: Layout) -> Iterator[Path]:
    """Give a new folder to write to; it takes the place of `folder` when all went well, and is removed otherwise.

    Raises `InputError` as `require_replaceable` does. A link stays, and the folder that it leads to is replaced. Errors
    of the system name `folder`.
    """
    target = require_replaceable(folder, layout)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary(target)
    new, old = partial / "new", partial / "old"
    try:
        new.mkdir(parents=True)
        yield new
        while True:  # another process may be replacing it, too: both move whole folders only
            try:
                os.rename(new, target)  # takes the place of an empty folder, too
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            require_replaceable(folder, layout)
            _remove(old)
            with suppress(FileNotFoundError):
                os.rename(target, old)
    except OSError as error:
        raise _naming(error, folder, partial) from None
    finally:
        _remove(partial)


def require_replaceable(folder: Path, layout: Layout) -> Path:
    """Return the folder that `folder` is or leads to; raise `InputError` unless it is missing, empty or wholly ours."""
    target = Path(os.path.realpath(folder))
    shown = str(folder) if str(target) == os.path.abspath(folder) else f"{folder}, which is {target},"
    if target in (here := Path.cwd(), *here.parents):
        raise InputError(f"{shown} holds the folder that you are in and would be replaced; give another folder")
    held: dict[str, bool] = {}
    ours: set[str] = set()
    try:
        with os.scandir(target) as entries:
            held = {entry.name: entry.is_symlink() or entry.is_file() for entry in entries}
        if layout.index in held:
            ours = {layout.index, *layout.listed(json.loads((target / layout.index).read_text(encoding="utf-8")))}
    except FileNotFoundError:  # there is none, or another process is replacing it
        return target
    except NotADirectoryError:
        raise InputError(f"{shown} is no folder; remove it, or give another folder") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise InputError(
            f"{shown} has a damaged {layout.index} and is not replaced; remove the folder, or give another one"
        ) from None
    if strange := sorted(name for name, is_file in held.items() if name not in ours or not is_file):
        raise InputError(
            f"{shown} holds {strange[0]!r}, which pdunroll did not write, and is not replaced; give another folder"
        )
    return target


def write_json(path: Path, content: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """An object that has these keys; raises `InputError` naming the file if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {missing[0]!r}")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; make it first") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it and make it again") from None
    return content


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
    return read_table(folder / f"{name}.csv", command("evaluate", folder.name), columns=KEY, numbers=RESULTS[name])


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
