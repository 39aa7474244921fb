"""Ways to drive the command line, and one smoke chain that many tests look at."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hypothesis import settings
from joblib.externals.loky import reusable_executor
from omegaconf.basecontainer import BaseContainer
from torch.fx.experimental.proxy_tensor import make_fx

import pdunroll
from pdunroll.commands.entry import CONF, Config
from pdunroll.commands.entry import settings as settings_from
from pdunroll.commands.start import run
from pdunroll.core import engine, graphed

settings.register_profile("same", derandomize=True)  # the same examples at each run
settings.load_profile("same")
collect_ignore = ["restore/fuzz_audio.py"]  # a program of its own that needs atheris
torch.set_num_threads(1)  # for matrices as small as those here, more threads only wait for each other
# The tests run side by side already: trainings run one after the other, unless a test sets hydra.launcher.n_jobs.
os.environ["LOKY_MAX_CPU_COUNT"] = "1"


ROOT = Path(__file__).parents[1]
SMOKE_RUNS = [f"{mode}-active_set-frobenius-L{depth}-seed0" for mode in ("full", "truncated30") for depth in (3, 10)]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Call an entry point in this process, as `pdunroll NAME ARGUMENTS` in an empty folder would."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str, cwd: Path | str = ".") -> Outcome:
        capfd.readouterr()
        return Outcome(called(name, *arguments, cwd=cwd), *capfd.readouterr())

    return call


def called(name: str, *arguments: str, cwd: Path | str) -> int:
    """Call an entry point in this process, which saves the seconds of its imports; return its status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [f"pdunroll {name}", *arguments])
        for owner, state in ((Singleton, "_instances"), (BaseContainer, "_resolvers")):
            patch.setattr(owner, state, getattr(owner, state))  # put back what joblib's launcher replaces
        try:
            run(name)
        except SystemExit as leaving:
            return leaving.code
        finally:
            patch.undo()
            GlobalHydra.instance().clear()
            if reusable_executor._executor is not None:  # workers stay in the folder in which they were started
                reusable_executor._executor.shutdown(wait=True)
    return 0


def settings_of(*overrides: str) -> Config:
    """The settings that a command with these arguments has."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return settings_from(compose("config", list(overrides)))


def state(folder: Path) -> dict[str, str]:
    """Names and contents of all files but the logs."""
    return {
        path.relative_to(folder).as_posix(): "link"
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.suffix != ".log" and path.name not in (".lock", "fifo.wav")
    }


def copy_results(smoke: Path, folder: Path, *left_out: str) -> None:
    """Copy what the stages of the smoke chain wrote, without the repository and files whose names match a pattern."""
    for part in ("multirun", "outputs"):
        shutil.copytree(smoke / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns(*left_out))


def refused(outcome, *named: str) -> None:
    assert outcome.status == 2, outcome
    lines = [line for line in outcome.err.splitlines() if line.startswith("pdunroll: ")]
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    for text in named:
        assert text in lines[0], lines[0]
    assert len(lines[0]) < 600


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, as text."""
    with path.open() as file:
        return list(csv.DictReader(file))


def command(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `pdunroll NAME ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pdunroll", name, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process makes the smoke chain while the others run what does not need it."""
    waiting = [item for item in items if "smoke" in item.fixturenames]
    others = [item for item in items if "smoke" not in item.fixturenames]
    items[:] = waiting[:1] + others + waiting[1:]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, worker_id) -> Path:
    """A copy of the repository in which `dvc repro` ran the smoke chain, once for all processes of the tests.

    What each stage printed is in STAGE.out.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "smoke"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            compile_loops()
            copy_repository(folder)
            for part in repro(folder).split("Running stage '")[1:]:
                first, printed = part.split("\n", 1)
                stage = re.match(r"\w+", first)[0]
                (folder / f"{stage}.out").write_text(printed)
    return folder


@pytest.fixture
def folder(smoke, tmp_path) -> Path:
    """A copy of the results of the smoke chain, to be changed."""
    copy_results(smoke, tmp_path)
    return tmp_path


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the repository, its chain set to the smoke preset."""
    copy_repository(tmp_path)
    return tmp_path


def compile_loops() -> None:
    """Have numba compile all loops and keep them beside the source, where `copy_repository` finds them."""
    operator, x = torch.eye(2).requires_grad_(), torch.ones(1, 2)
    for backprop in (pdunroll.Full(), pdunroll.Full(primal_mask="released"), pdunroll.Truncated()):
        pdunroll.unroll(operator, x, radius=0.5, iterations=2, backprop=backprop).sum().backward()


def copy_repository(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        left_out = name.startswith(("tests/", "multirun/", "outputs/")) or name == "dvc.lock"
        if (ROOT / name).is_file() and not left_out:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    compiled = ROOT.glob("src/pdunroll/core/__pycache__/*.nb[ci]")  # by numba, which takes ten seconds
    (folder / "src/pdunroll/core/__pycache__").mkdir()
    for path in compiled:
        shutil.copy(path, folder / path.relative_to(ROOT))
    replace(folder / "conf/chain.yaml", "experiment: demo", "experiment: smoke")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


def repro(project: Path, *stages: str) -> str:
    """Run `dvc repro`; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *stages],
        cwd=project, env={**environment(project), "LOKY_MAX_CPU_COUNT": "2"},  # two trainings side by side
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def environment(project: Path) -> dict[str, str]:
    """For commands that are to run the code in `project`."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return {
        "PATH": path, "PYTHONPATH": str(project / "src"), "HOME": str(project), "PYTHONUNBUFFERED": "1",
        "LOKY_MAX_CPU_COUNT": "1",
    }  # fmt: skip


@pytest.fixture
def captures(monkeypatch):
    """The loops captured so far; like a graph, a recording is right only if all that changes is in its inputs."""
    names = []

    def captured(function, inputs):
        names.append(function.func.__name__)
        recording = make_fx(function)(*(tensor.clone() for tensor in inputs))
        outputs = tuple(
            torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0) for tensor in recording(*inputs)
        )

        def replay():
            for place, tensor in zip(outputs, recording(*inputs), strict=True):
                place.copy_(tensor)

        return replay, outputs

    monkeypatch.setattr(graphed, "captured", captured)
    monkeypatch.setattr(graphed, "_graphs", OrderedDict())
    monkeypatch.setattr(engine, "SEGMENT", 5)
    return names
