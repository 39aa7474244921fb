"""Folders that a command writes as a whole, and the rule that no other folder is ever removed."""

from __future__ import annotations

import glob
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pdunroll.errors import InputError


@contextmanager
def replaced(folder: Path, setting: str, ours: Callable[[Path], set[str]]) -> Iterator[Path]:
    """Yield an empty folder to write to; it takes the place of `folder` when all went well, else it is removed.

    `ours` returns the names that this command has written to a folder of its own, nothing if it is not one. Raises
    `InputError` naming `setting` and the folder, with links resolved, if `folder` holds anything else.
    """
    target = folder.resolve()
    refuse_foreign(folder, setting, ours)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.{platform.node().replace('.', '-')}."
    for stale in target.parent.glob(f"{glob.escape(prefix)}*.partial"):
        if not running(stale.name.split(".")[-2]):
            shutil.rmtree(stale, ignore_errors=True)  # of a command that was killed
    partial = target.with_name(f"{prefix}{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        refuse_foreign(folder, setting, ours)
        while True:
            shutil.rmtree(target, ignore_errors=True)
            try:
                partial.rename(target)
                break
            except OSError:  # another process has just put its own there
                if not target.is_dir() or not partial.is_dir():
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_foreign(folder: Path, setting: str, ours: Callable[[Path], set[str]]) -> None:
    """Raise `InputError` if replacing `folder` would remove what `ours` does not name."""
    target = folder.resolve()
    place = f"{folder}" if target == folder.absolute() else f"{folder} ({target})"
    if target == Path.cwd() or target in Path.cwd().parents:
        raise InputError(f"{setting}: {place} is the folder that this command runs in; name one for its results alone")
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{setting}: {place} is a file; name a folder")
    names = {path.name for path in target.iterdir()}
    if foreign := sorted(names - ours(target)):
        raise InputError(
            f"{setting}: {place} holds {foreign[0]!r}, which this command did not write; it is left as it is, "
            "name another folder"
        )


def running(process: str) -> bool:
    """Return whether a process of this number is running, as far as can be told."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        pass
    return True
