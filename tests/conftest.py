"""Ways to drive the command line, and one smoke chain that many tests look at."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pdunroll.config import run

torch.set_num_threads(1)  # for matrices as small as those here, more threads only wait for each other


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Call an entry point in this process, as `python -m pdunroll.NAME ARGUMENTS` in an empty folder would."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"pdunroll.{name}", *arguments])
        capfd.readouterr()
        status = 0
        try:
            run(importlib.import_module(f"pdunroll.{name}").main)
        except SystemExit as leaving:
            status = leaving.code
        return Outcome(status, *capfd.readouterr())

    return call


def command(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m pdunroll.NAME ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"pdunroll.{name}", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """A folder in which the smoke chain ran by the command line."""
    folder = tmp_path_factory.mktemp("smoke")
    for name, arguments in (
        ("prepare", ()),
        ("train", ("-m",)),
        ("evaluate", ()),
        ("theory", ()),
        ("figures", ()),
    ):
        done = command(name, *arguments, "experiment=smoke", cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.out").write_text(done.stdout + done.stderr)
    return folder
