"""A digest of the code that a result depends on."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

from pdunroll.errors import InputError
from pdunroll.files import digest

PACKAGE, HOME = "pdunroll", Path(__file__).parents[1]
# Modules whose effect shows in the settings and the data, or that decide no number.
WITHOUT = ("errors", "files", "processes", "speech.frames", "training.history", "training.run_key")


@cache
def source_digest(*modules: str, without: tuple[str, ...] = ()) -> str:
    """SHA-256 of what modules do, with all that they import of the package: comments, docstrings, layout do not count.

    Modules of the package by their names in it, others ("mine.strategies") by their full ones; modules and packages of
    `without`, and what only they import, are left out.
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
        programs[module] = ast.dump(tree)
        waiting += imported(tree)
    return digest([programs[module] for module in sorted(programs)])


def imported(tree: ast.Module) -> set[str]:
    """The modules of the package that a program imports anywhere in it, by their names in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:  # what is imported may be a module itself
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    plain = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
    return {name for name in plain if (HOME / f"{name.replace('.', '/')}.py").is_file()}


def _source(module: str) -> str:
    path = HOME / f"{module.replace('.', '/')}.py"
    if not path.is_file():
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # of a package that is not there, of no name at all
            found = None
        if found is None or found.origin is None or not found.origin.endswith(".py"):
            raise InputError(f"the module {module!r} of a _target_ has no source file; give one that has")
        path = Path(found.origin)
    return path.read_text(encoding="utf-8")
