"""Tracking: offline means no attempt to reach the network, and a training leaves one run with one axis of steps."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import Logger

from pdunroll import quantize
from pdunroll.speech.frames import Frames
from pdunroll.training.data import FrameData
from pdunroll.training.fit import fit
from pdunroll.training.module import UnrolledTraining

TRAIN = ("experiment=smoke", "backprop=truncated", "network.iterations=3", "optimization.epochs=1")

WATCH = """
import os, socket

def watched(name, original, host):
    def call(*arguments, **options):
        if (found := host(arguments)) is not None:
            with open(os.environ["ATTEMPTS"], "a") as file:
                file.write(f"{name} {found}\\n")
        return original(*arguments, **options)
    return call

def address(arguments):
    return arguments[1] if arguments[0].family != socket.AF_UNIX else None

socket.getaddrinfo = watched("getaddrinfo", socket.getaddrinfo, lambda arguments: arguments[0])
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, watched(name, getattr(socket.socket, name), address))
"""


@pytest.fixture
def folder(smoke, tmp_path) -> Path:
    """A folder with the prepared frames and results of the smoke chain, and a module that every Python imports."""
    shutil.copytree(smoke / "outputs/smoke", tmp_path / "outputs/smoke", ignore=shutil.ignore_patterns("wandb"))
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH)
    return tmp_path


def attempts(folder: Path, name: str, *arguments: str, before: tuple[str, ...] = ()) -> list[str]:
    """Run `python -m pdunroll.NAME ARGUMENTS`; what it, or a Python that it started, tried to reach."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    path = os.pathsep.join(filter(None, (str(folder / "watch"), variables.get("PYTHONPATH"))))
    done = subprocess.run(
        [*before, sys.executable, "-m", "pdunroll", name, *arguments], cwd=folder,
        env={**variables, "PYTHONPATH": path, "ATTEMPTS": str(folder / "attempts"), "HOME": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = folder / "attempts"
    return log.read_text().splitlines() if log.is_file() else []


def offline_runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def test_the_hook_sees_attempts(folder):
    program = "import socket; socket.getaddrinfo('localhost', 80)"
    variables = {**os.environ, "PYTHONPATH": str(folder / "watch"), "ATTEMPTS": str(folder / "attempts")}
    subprocess.run([sys.executable, "-c", program], env=variables, check=True)
    assert (folder / "attempts").read_text() == "getaddrinfo localhost\n"


def test_an_offline_training_makes_no_attempt_and_trained_again_leaves_one_run(folder):
    cell = folder / "outputs/smoke/truncated30-active_set-frobenius-L3-seed0"
    alone = ("unshare", "--map-root-user", "--net")  # without a network, where this is allowed
    allowed = (
        shutil.which("unshare") and not subprocess.run([*alone, "true"], capture_output=True, check=False).returncode
    )
    assert attempts(folder, "train", *TRAIN, before=alone if allowed else ()) == []
    (first,) = offline_runs(cell)
    assert attempts(folder, "train", *TRAIN, "optimization.learning_rate=2e-4") == []
    (second,) = offline_runs(cell)
    assert first != second
    assert b"\x0a\x04step" in next(second.glob("*.wandb")).read_bytes()  # the metric "step" is defined
    assert attempts(folder, "train", *TRAIN, "tracking=off") == []
    assert offline_runs(cell) == []


@pytest.mark.slow
def test_an_offline_sweep_makes_no_attempt(folder):
    assert attempts(folder, "train", "-m", *TRAIN, "seed=0,1", "hydra.launcher.n_jobs=2") == []
    assert len(list(folder.glob("multirun/smoke/*/wandb/offline-run-*"))) == 2


@pytest.mark.parametrize("tracking", ["offline", "off"])
def test_an_offline_dashboard_makes_no_attempt(folder, tracking):
    pytest.importorskip("wandb_workspaces")
    assert attempts(folder, "dashboard", "experiment=smoke", f"tracking={tracking}") == []


class Kept(Logger):
    """Keeps what it is given."""

    name, version = "kept", 0

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        assert step == metrics["step"]
        self.rows.append(metrics)

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_loggers_get_numbers_only_and_all_rows_of_a_training_that_goes_on(tmp_path):
    truth = np.random.default_rng(0).uniform(-1, 1, (40, 16)).astype(np.float32)
    frames = Frames(truth, quantize(truth, 3), np.zeros(40, dtype=np.int64))

    def trained(epochs: int) -> list[dict[str, float]]:
        module, kept = UnrolledTraining(frame_length=16, radius=1 / 8, iterations=2), Kept()
        fit(module, FrameData(frames, frames, batch_size=8), tmp_path, epochs=epochs, title="test", loggers=[kept])
        return kept.rows

    first, whole = trained(1), trained(2)
    assert [row["step"] for row in whole] == [0, 5, 10]
    assert whole[:2] == first
    assert "train_mse" not in whole[0]
    assert {"train_mse", "gradient_norm"} <= set(whole[1])
    assert all(math.isfinite(value) for row in whole for value in row.values())
