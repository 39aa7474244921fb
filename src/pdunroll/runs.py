"""Artefacts on disk: atomic writes, tidy tables, digests, and the record of one training run."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdunroll.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; it takes the place of `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
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


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV; floats with all their digits."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path, made_by: str) -> list[dict[str, Any]]:
    """Rows of a CSV file, numbers as int or float, empty cells as None.

    Raises `InputError` that says which command makes the file if it is missing or empty.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; make it with `{made_by}`")
    try:
        with path.open(newline="") as file:
            rows = [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); make it again with `{made_by}`") from None
    if not rows:
        raise InputError(f"{path} is empty; make it again with `{made_by}`")
    return rows


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


def source_digest(modules: Sequence[str]) -> str:
    """SHA-256 of what these modules of the package do: comments, docstrings and layout do not count."""
    programs = []
    for module in modules:
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        programs.append(ast.dump(tree))
    return digest(programs)
