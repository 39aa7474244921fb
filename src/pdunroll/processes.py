"""Commands as processes: closed output pipes, printable text, the command line, workers whose parent has ended."""

from __future__ import annotations

import io
import os
import shlex
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import parent_process
from typing import Any


class Pipe(io.FileIO):
    """A pipe for writing that drops the output once its reader has closed it."""

    def write(self, data: Any) -> int:
        """Write the data, or drop them if the pipe is closed; return the number of bytes."""
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return memoryview(data).nbytes


@contextmanager
def patient_streams() -> Iterator[None]:
    """Let a command finish without an error if stdout or stderr is closed, before or during its run.

    Characters that the terminal cannot show are escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # else the next opened file would get this number
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_patient(stream, number) for number, stream in enumerate(before, start=1))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _patient(stream: Any, number: int) -> Any:
    if stream is not None and not stat.S_ISFIFO(os.fstat(number).st_mode):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    encoding = "utf-8" if stream is None else stream.encoding
    raw = io.BufferedWriter(Pipe(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=number == 2)


def command(stage: str, name: str | None = None, *flags: str) -> str:
    """Return the command line of a stage, with the overrides of the running command, else with `experiment=name`."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        given = list(HydraConfig.get().overrides.task)
    else:
        given = [f"experiment={name}"] if name else []
    return shlex.join(["python", "-m", "pdunroll", stage, *flags, *given])


def printable(text: str) -> str:
    """Return the text on one line, with escapes for all characters that are not printable."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


@cache
def end_with_parent() -> None:
    """If this process is a worker, end it soon after the process that started it has ended."""
    if (parent := parent_process()) is None:
        return

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end_with_parent").start()
