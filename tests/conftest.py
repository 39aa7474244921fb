"""Ways to drive the command line, and one smoke chain that many tests look at."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pdunroll.config import run

torch.set_num_threads(1)  # for matrices as small as those here, more threads only wait for each other


ROOT = Path(__file__).parents[1]


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


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the repository, its chain set to the smoke preset."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/") and name != "dvc.lock":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    replace(tmp_path / "conf/chain.yaml", "experiment: demo", "experiment: smoke")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def environment(project: Path) -> dict[str, str]:
    """For commands that are to run the code in `project`."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return {"PATH": path, "PYTHONPATH": str(project / "src"), "HOME": str(project)}
