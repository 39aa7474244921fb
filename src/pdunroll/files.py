"""Files and folders: atomic writes, CSV tables, JSON that is checked by a schema, and replacement of whole folders."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import json
import os
import platform
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pdunroll.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to, and rename it to `path` unless an exception is raised.

    Temporary files that killed processes of this machine have left of the same file are removed. An `OSError` names
    `path`.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _naming(error, path, temporary) from None
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Return a hidden path beside `path` for this process; remove those that killed processes have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{machine()}."
    for stale in path.parent.glob(f"{glob.escape(prefix)}*.partial"):
        if not running(stale.name.split(".")[-2]):
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{os.getpid()}.partial")


def machine() -> str:
    """Return the name of this machine without dots, for use in file names."""
    return platform.node().replace(".", "-")


def _naming(error: OSError, path: Path, temporary: Path) -> OSError:
    """Return the error naming `path`, if it names the temporary file or none."""
    if error.errno is not None and str(error.filename or temporary).startswith(str(temporary)):
        error.filename = str(path)
    return error


@contextmanager
def replaced(folder: Path, setting: str, ours: Callable[[Path], set[str]]) -> Iterator[Path]:
    """Yield an empty folder to write to, and replace `folder` by it unless an exception is raised.

    `ours` returns the names of the files in a folder that this command has written. Raises `InputError` naming
    `setting` if `folder` holds anything else.
    """
    target = folder.resolve()
    refuse_foreign(folder, setting, ours)
    partial = _temporary(target)
    partial.mkdir()
    try:
        yield partial
        refuse_foreign(folder, setting, ours)
        _swap(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, target: Path) -> None:
    """Replace `target` by `partial`; other processes never see an incomplete folder."""
    aside = partial.with_name(f"{partial.stem}.old.{os.getpid()}.partial")
    while True:
        with suppress(FileNotFoundError):
            target.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            partial.rename(target)
            return
        except OSError as error:  # another process has just created it
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def refuse_foreign(folder: Path, setting: str, ours: Callable[[Path], set[str]]) -> None:
    """Raise `InputError` if replacing `folder` would remove files that `ours` does not name."""
    target = folder.resolve()
    place = f"{folder}" if target == folder.absolute() else f"{folder} ({target})"
    if target == Path.cwd() or target in Path.cwd().parents:
        raise InputError(f"{setting}: {place} is the folder that this command runs in; name one for its results alone")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise InputError(f"{setting}: {place} is a file; name a folder")
    if foreign := _foreign(target, ours):
        raise InputError(
            f"{setting}: {place} holds {foreign[0]!r}, which this command did not write; it is left as it is, "
            "name another folder"
        )


def _foreign(target: Path, ours: Callable[[Path], set[str]]) -> list[str]:
    """Return the files of `target` that `ours` does not name; repeat if another process replaces it meanwhile."""
    while True:
        try:
            before = target.stat().st_ino
            names = {path.name for path in target.iterdir()}
            found = sorted(names - ours(target))
            if not found or target.stat().st_ino == before:
                return found
        except FileNotFoundError:
            if not target.exists():
                return []


def running(process: str) -> bool:
    """Return whether a process with this number is running, True if that cannot be told."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        pass
    return True


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path, keys: Sequence[str] = (), kind: Any = None) -> Any:
    """Return the content of a JSON file, which must have `keys` and the type `kind` (checked by pydantic, if given).

    Raises `InputError` naming the file if it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {missing[0]!r}")
        if kind is not None:
            check(kind, content)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; make it first") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it and make it again") from None
    return content


def check(kind: Any, content: Any) -> None:
    """Raise a one-line `ValueError` unless plain data has the type `kind`, a pydantic model or made of such models."""
    from pydantic import TypeAdapter, ValidationError  # not at the top, since it takes time to load

    try:
        TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(f"row {part + 1}" if isinstance(part, int) else part for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


def read_array(path: Path) -> Any:
    """Return the array of an npy file or the arrays of an npz file by name; raise `InputError` if it is damaged."""
    import numpy as np

    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            return stored if isinstance(stored, np.ndarray) else dict(stored)
    except Exception as error:  # the parser of the header raises various types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read ({reason}); replace it") from None


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, floats with all digits."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(
    path: Path, made_by: str, *, columns: Sequence[str] = (), numbers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows of a CSV file, numbers as int or float, empty cells as None.

    Raises `InputError` naming the command `made_by` if the file is missing, damaged or empty, or lacks one of `columns`
    or a number in one of the columns `numbers`.
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


def _value(text: Any) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            pass
    return text or None


def digest(content: Any) -> str:
    """Return the SHA-256 of plain data (JSON with sorted keys)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
