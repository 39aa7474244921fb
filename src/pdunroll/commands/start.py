"""Start of a command: errors of its input or of the system give one line on stderr and exit status 2.

This imports no package of the pipeline, which `pdunroll restore` does not need.
"""

from __future__ import annotations

import errno
import importlib
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pdunroll.errors import InputError
from pdunroll.processes import patient_streams, printable

CONFIGURATION = {"hydra", "omegaconf", "antlr4", "yaml"}  # packages whose errors are about the settings
# Errors of the system, and what the user can do about them.
SYSTEM_ERRORS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "go to a folder that can be written to",
    errno.EACCES: "see to its permissions",
    errno.EPERM: "see to its permissions",
    errno.ENOTDIR: "remove the file that is in the way",
    errno.EISDIR: "remove the folder that is in the way",
    errno.EEXIST: "remove the file that is in the way",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ELOOP: "remove the link that points to itself",
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn invalid input and errors of the system into one line on stderr and exit status 2.

    Other exceptions are bugs and keep their traceback. An interrupt kills all child processes and exits at once, which
    leaves no incomplete files, since writes are atomic.
    """
    logging.raiseExceptions = False  # no traceback if the log cannot be written
    try:
        yield
    except KeyboardInterrupt:
        end_children()
        if multiprocessing.parent_process() is None:
            print("pdunroll: interrupted; the same command continues", file=sys.stderr, flush=True)
        os._exit(130)  # without waiting for threads
    except Exception as error:
        if (line := _explained(error)) is None:
            raise
        print(printable(f"pdunroll: {line}"), file=sys.stderr)
        raise SystemExit(2) from None


def _explained(error: Exception) -> str | None:
    """Return a line about an error that is not a bug, and its remedy; None for a bug."""
    if isinstance(error, MemoryError):
        return f"out of memory ({error}); take smaller settings"
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        what = error.filename or "the output"
        return f"{what} cannot be read or written ({error.strerror}); {SYSTEM_ERRORS[error.errno]}"
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_by = str(frame.f_globals.get("__name__")).partition(".")[0]
    involved = {raised_by, *(kind.__module__.partition(".")[0] for kind in type(error).__mro__)}
    return _message(error) if isinstance(error, InputError) or involved & CONFIGURATION else None


def end_children() -> None:
    """Kill all child processes."""
    try:
        import psutil
    except ImportError:  # commands outside of the pipeline start no processes
        return
    for child in psutil.Process().children(recursive=True):
        child.kill()


def require_clone() -> None:
    """Raise `InputError` if the settings or the packages of the pipeline are missing."""
    if find_spec("hydra") is None:
        raise InputError("this command is part of the pipeline; install it from a clone: pip install -e '.[pipeline]'")
    from pdunroll.commands.config import CONF

    if not Path(CONF).is_dir():
        raise InputError(f"{CONF} is missing; the pipeline runs from a clone: pip install -e 'FOLDER[pipeline]'")


def run(name: str) -> None:
    """Run a command by its name; errors in composing its settings give one line, too."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them
    with patient_streams(), one_line_errors():
        if name != "restore":
            require_clone()
        try:
            importlib.import_module(f"pdunroll.commands.{name}").main()
        except ValueError as error:
            if str(error).startswith("Config group override"):  # Hydra does not name it
                raise _not_an_option(sys.argv[1:]) from None
            raise


def _not_an_option(arguments: list[str]) -> InputError:
    """Return the error for the first argument that selects a file which its group does not have."""
    from pdunroll.commands.config import CONF

    for argument in arguments:
        group, _, option = argument.partition("=")
        folder = Path(CONF) / group
        if "=" in argument and folder.is_dir() and not (folder / f"{option}.yaml").is_file():
            options = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            wanted = f"{group} must be one of {options}" if group else "a setting must have a name"
            return InputError(f"{wanted}, got {argument!r}")
    return InputError(f"a group must be one of the files in {CONF}/GROUP; --help lists them")


def _message(error: BaseException) -> str:
    """Return the message of the first `InputError` among the causes, else those of OmegaConf and Hydra."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    chosen = next((cause for cause in causes if isinstance(cause, InputError)), None)
    if chosen is not None:
        return str(chosen)
    text = " | ".join(str(cause).split("Config search path")[0].split("object_type=")[0] for cause in causes)
    return " ".join(text.split())
