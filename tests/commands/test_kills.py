"""Kill the sweep and the chain at any moment, start them again: in the end stands, bit for bit, what an undisturbed run
gives. Minutes: `pytest -m slow tests/commands/test_kills.py`."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import environment, replace

pytestmark = pytest.mark.slow

KILLS = 20
SWEEP = [sys.executable, "-m", "pdunroll", "train", "-m", "experiment=smoke"]
CHAIN = [sys.executable, "-m", "dvc", "repro"]
TIMES = {"seconds", "seconds_per_epoch"}  # what no two runs share


@pytest.fixture
def long(project) -> Path:
    """The project with trainings of a few seconds."""
    replace(project / "conf/experiment/smoke.yaml", "epochs: 2\n", "epochs: 200\n  validations_per_epoch: 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "pdunroll", "prepare", "experiment=smoke"],
        cwd=project,
        env=environment(project),
        check=False,
    )
    assert done.returncode == 0
    return project


def copy(project: Path, name: str) -> Path:
    folder = project.with_name(f"{project.name}-{name}")
    shutil.copytree(project, folder, symlinks=True)
    return folder


def start(command: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, env={**environment(folder), **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def finish(command: list[str], folder: Path) -> float:
    """Run to the end; the seconds it took."""
    begun = time.monotonic()
    process = start(command, folder)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return time.monotonic() - begun


def killed_after(command: list[str], folder: Path, seconds: float) -> bool:
    """Start, kill the process group after `seconds`; False if it was done by then."""
    process = start(command, folder)
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, output
    return False


def killed_at_write(command: list[str], folder: Path, number: int) -> bool:
    """Start, and have the process group killed at its `number`-th write; False if it came to its end before."""
    counter = folder / "writes"
    counter.unlink(missing_ok=True)
    path = os.pathsep.join((str(Path(__file__).parent / "killing"), str(folder / "src")))
    process = start(command, folder, PYTHONPATH=path, PDUNROLL_KILL_AT=f"{number},{counter}")
    output = process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode != 0


def results(folder: Path) -> dict[str, object]:
    """All that the commands left, but for times."""
    found: dict[str, object] = {}
    for path in sorted(part for top in ("outputs", "multirun") for part in (folder / top).rglob("*") if part.is_file()):
        name = path.relative_to(folder).as_posix()
        assert ".partial" not in name
        if path.suffix in (".log", ".lock", ".html", ".txt") or path.stem in ("regimes", "multirun") or "wandb" in name:
            continue  # with times or folders in them
        if path.name in ("training.csv", "sweep.csv", "verdicts.csv"):
            with path.open() as file:
                rows = [{key: row[key] for key in row if key not in TIMES} for row in csv.DictReader(file)]
            found[name] = [row for row in rows if "time" not in row.get("claim", "")]
        elif path.name == "run.json":
            record = json.loads(path.read_text())
            record["results"] = {key: value for key, value in record["results"].items() if key not in TIMES}
            found[name] = record
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("command", [SWEEP, CHAIN], ids=["sweep", "chain"])
@pytest.mark.parametrize("how", ["at a random moment", "while it writes"])
def test_killed_and_started_again(long, command, how):
    undisturbed = copy(long, "undisturbed")
    seconds = finish(command, undisturbed)
    expected = results(undisturbed)
    if how == "while it writes":
        counted = copy(long, "counted")
        assert not killed_at_write(command, counted, 10**9)
        writes = (counted / "writes").stat().st_size
        assert writes > KILLS

    kills, number, folder = 0, 0, copy(long, "0")
    rng = random.Random(0)
    while kills < KILLS:
        if how == "while it writes":
            killed = killed_at_write(command, folder, rng.randint(1, writes // 3))
        else:
            killed = killed_after(command, folder, rng.uniform(0.0, seconds))
        kills += killed
        if not killed:  # to its end: compare, and begin anew
            assert results(folder) == expected
            number += 1
            folder = copy(long, str(number))
    finish(command, folder)
    assert results(folder) == expected


def test_two_sweeps_in_one_folder(long):
    undisturbed, shared = copy(long, "undisturbed"), copy(long, "shared")
    finish(SWEEP, undisturbed)
    processes = [start(SWEEP, shared) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert results(shared) == results(undisturbed)
    assert any("another process trains in" in output for output in outputs)
