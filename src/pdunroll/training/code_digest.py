"""A digest of the code that a result depends on."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from pdunroll.errors import InputError
from pdunroll.files import digest

PACKAGE, HOME = "pdunroll", Path(__file__).parents[1]
# Modules left out of the digests of trainings: their effect is in the settings or the data, or they change no number.
WITHOUT = ("errors", "files", "processes", "speech.frames", "training.history", "training.run_key")


@cache
def source_digest(*modules: str, without: tuple[str, ...] = ()) -> str:
    """Return the SHA-256 of modules and of all that they import of the package, the same by all versions of Python.

    Comments and layout do not count.

    Args:
        modules: modules of the package by their names in it, others ("mine.strategies") by their full names.
        without: modules and packages that are left out, with all that only they import.
    """
    programs: dict[str, str] = {}
    waiting = [module.removeprefix(f"{PACKAGE}.") for module in modules]
    while waiting:
        module = waiting.pop()
        if module in programs or any(f"{module}.".startswith(f"{part}.") for part in without):
            continue
        tree = ast.parse(_source(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        programs[module] = dump(tree)
        waiting += imported(tree)
    return digest([programs[module] for module in sorted(programs)])


def dump(node: Any) -> str:
    """Return a syntax tree as text without empty fields, of which newer versions of Python have more."""
    if isinstance(node, list):
        return f"[{', '.join(map(dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # some have empty strings beside nested fields (CPython issue 110309)
        parts = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
        return f"JoinedStr(values={dump(parts)})"
    fields = [f"{name}={dump(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({', '.join(fields)})"


def imported(tree: ast.Module) -> set[str]:
    """Return the modules of the package that a program imports anywhere, by their names in the package."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:  # the imported name may be a module itself
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    plain = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
    return {name for name in plain if (HOME / f"{name.replace('.', '/')}.py").is_file()}


def _source(module: str) -> str:
    path = HOME / f"{module.replace('.', '/')}.py"
    if not path.is_file():
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # a package that does not exist, or an empty name
            found = None
        if found is None or found.origin is None or not found.origin.endswith(".py"):
            raise InputError(f"the module {module!r} of a _target_ has no source file; give one that has")
        path = Path(found.origin)
    return path.read_text(encoding="utf-8")
