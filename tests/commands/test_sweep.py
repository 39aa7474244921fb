"""What a sweep says beforehand, what it refuses, how it fails, and how it is interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from conftest import SMOKE_RUNS, command, refused, table
from pdunroll import unroll
from pdunroll.evaluation.evaluate import drawn

ARGUMENTS = ("-m", "experiment=smoke", "tracking=off")


@pytest.fixture
def prepared(smoke, tmp_path) -> Path:
    shutil.copytree(smoke / "outputs/smoke/prepared", tmp_path / "outputs/smoke/prepared")
    return tmp_path


def said(text: str) -> tuple[int, int, float]:
    """Trainings, finished ones and megabytes in the line that a sweep begins with."""
    found = re.search(r"(\d+) trainings, (\d+) of them finished, .*at most (\d+) MB", text)
    return int(found[1]), int(found[2]), float(found[3])


def test_it_says_counts_and_room_beforehand_and_keeps_to_the_room(smoke):
    assert said((smoke / "sweep.out").read_text()) == (4, 0, pytest.approx(2, abs=1))
    cells = smoke / "multirun/smoke"
    assert sum(path.stat().st_size for path in cells.rglob("*") if path.is_file()) < 2.5e6
    assert not list(cells.rglob("*.ckpt"))
    assert "4 of 4 trainings finished" in (smoke / "sweep.out").read_text()
    assert [row["status"] for row in table(cells / "sweep.csv")] == 4 * ["finished"]


def test_a_failed_training_lets_the_others_go_on(prepared, call):
    done = call(
        "train", *ARGUMENTS, "backprop=full", "network.iterations=3", "network.step_norm=spectral",
        "prepared=outputs/smoke/prepared", "optimization.learning_rate=1e-4,1e30,3",
        "name=rate${optimization.learning_rate}", "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert done.status == 1
    assert "Traceback" not in done.out + done.err
    cell = "full-active_set-spectral-L3-seed0"
    rows = {name: table(prepared / f"multirun/rate{name}/sweep.csv")[0] for name in ("0.0001", "1e+30", "3.0")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "0.0001": "finished", "1e+30": "failed", "3.0": "failed",
    }  # fmt: skip
    assert "lower optimization.learning_rate" in rows["1e+30"]["reason"]
    lines = [line for line in done.err.splitlines() if line.startswith("pdunroll: ")]
    assert [line.split(" failed: ")[0] for line in lines] == [
        f"pdunroll: multirun/rate{name}/{cell}" for name in ("1e+30", "3.0")
    ]
    # alone it is one line, too
    done = call(
        "train", "experiment=smoke", "tracking=off", "optimization.learning_rate=1e30", "name=rate1e+30",
        "prepared=outputs/smoke/prepared", "network.iterations=3",
    )  # fmt: skip
    assert (done.status, done.err.count("pdunroll: training diverged")) == (2, 1)


def test_two_trainings_of_one_folder_are_refused(prepared, call):
    done = call("train", *ARGUMENTS, "optimization.learning_rate=1e-4,1e-3")
    assert done.status == 2
    assert done.err.startswith(
        "pdunroll: two trainings of the sweep would go to multirun/smoke/full-active_set-frobenius-L3-"
    )
    assert "`name`" in done.err
    assert not list((prepared / "multirun").rglob("run.json"))


def test_without_room_it_does_not_begin(prepared, call, monkeypatch):
    monkeypatch.setattr(
        "pdunroll.training.sweep.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**5)
    )
    done = call("train", *ARGUMENTS)
    assert done.status == 2
    assert "the sweep may need 2 MB; make room" in done.err


@pytest.mark.parametrize("mode", [pytest.param("sweep", marks=pytest.mark.slow), "alone"])
def test_an_interrupt_ends_at_once_and_the_same_command_goes_on(prepared, mode):
    arguments = ("network.iterations=10", "optimization.epochs=80", "optimization.validations_per_epoch=2")
    if mode == "sweep":
        arguments = ("-m", *arguments, "backprop=full,truncated", "hydra.launcher.n_jobs=2")
    else:
        arguments = (*arguments, "backprop=full")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pdunroll", "train", *arguments, "experiment=smoke", "tracking=off"],
        cwd=prepared, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "step 120 of 640" in line:
            break
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    rest = process.communicate()[0]
    assert time.monotonic() - start < 2.0
    assert process.returncode == 130, "".join(lines) + rest
    assert rest.count("pdunroll: interrupted; the same command continues") == 1
    assert "Traceback" not in rest
    done = command("train", *arguments, "experiment=smoke", "tracking=off", cwd=prepared)
    assert done.returncode == 0
    assert "full-active_set-frobenius-L10-seed0  step 4 of 640" not in done.stdout
    assert "full-active_set-frobenius-L10-seed0  step 640 of 640" in done.stdout


def test_the_second_process_in_a_cell_waits(prepared):
    from pdunroll.training.run_folder import claimed

    cell = prepared / "outputs/smoke" / SMOKE_RUNS[0]
    with claimed(cell):
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pdunroll", "train", "experiment=smoke", "tracking=off",
             "network.iterations=3"],
            cwd=prepared, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        first = process.stdout.readline()
        assert "another process trains in" in first
        assert not (cell / "run.json").exists()
    assert "step 16 of 16" in process.communicate()[0]
    assert process.returncode == 0


@pytest.mark.parametrize("launcher", ["basic", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_launchers_train_a_sweep(prepared, call, launcher):
    done = call("train", *ARGUMENTS, f"hydra/launcher={launcher}", "network.iterations=3")
    assert done.status == 0, done.err
    assert [row["status"] for row in table(prepared / "multirun/smoke/sweep.csv")] == 2 * ["finished"]


@pytest.mark.slow
def test_a_job_that_is_told_that_its_time_is_over_is_sent_again_and_goes_on(prepared):
    arguments = ("backprop=full", "network.iterations=10", "optimization.epochs=160")
    process = subprocess.Popen(
        [sys.executable, "-m", "pdunroll", "train", *ARGUMENTS, *arguments, "hydra/launcher=submitit_local"],
        cwd=prepared, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    history = prepared / "multirun/smoke" / SMOKE_RUNS[1] / "training.csv"
    while process.poll() is None and not (history.is_file() and len(table(history)) > 20):
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    (job,) = (child for child in children if "submitit.core._submit" in child.cmdline() and not child.children())
    job.send_signal(signal.SIGUSR2)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    printed = "".join(path.read_text() for path in (prepared / "multirun/smoke/.submitit").rglob("*.out"))
    assert printed.count("step 0 of 1280") == 1
    assert printed.count("step 1280 of 1280") == 1
    logs = "".join(path.read_text() for path in (prepared / "multirun/smoke/.submitit").rglob("*.err"))
    assert "Caught signal SIGUSR2" in logs
    assert len(table(history)) == 161


def test_optimizer_schedule_and_loggers_are_settings_of_a_training(prepared, call):
    own = ("experiment=smoke", "tracking=off", "backprop=full", "network.iterations=3")
    done = call("train", *own, "optimizer=sgd", "schedule=constant", "logger=csv")
    assert done.status == 0, done.err
    folder = prepared / "outputs/smoke" / SMOKE_RUNS[0]
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["optimizer"]["_target_"] == "torch.optim.SGD"
    ours, lightnings = table(folder / "training.csv"), table(folder / "csv/version_0/metrics.csv")
    assert [row["validation_mse"] for row in lightnings] == [row["validation_mse"] for row in ours]
    assert {float(row["learning_rate"]) for row in ours} == {1e-4}
    refused(call("train", *own, "+optimizer.nothing=1"), "optimizer or schedule do not take their settings")


def test_later_stages_take_the_settings_of_the_trainings(prepared, call):
    own = ("experiment=smoke", "tracking=off")
    sweep = ("backprop=full", "network.iterations=3", "network.step_ratio=3", "network.rows=48")
    done = call("train", "-m", *own, *sweep)
    assert done.status == 0, done.err
    done = call("evaluate", *own)  # without the overrides of the training
    assert done.status == 0, done.err
    rows = table(prepared / "outputs/smoke/evaluation.csv")
    found = [float(row["mse"]) for row in rows if (row["backprop"], row["l_inference"]) == ("full", "3")]
    _, truth, box = drawn(prepared / "outputs/smoke/prepared", "test", 64, 0)
    operator = torch.from_numpy(np.load(prepared / "multirun/smoke/full-active_set-frobenius-L3-seed0/operator.npy"))
    restored = unroll(operator, box, iterations=3, step_ratio=3.0)
    assert operator.shape == (48, 64)
    assert found == [pytest.approx(float((restored - torch.from_numpy(truth)).square().mean()), rel=1e-5)]
    refused(call("evaluate", *own, "network.step_ratio=10"), "network.step_ratio=3.0, not 10.0")


def test_callbacks_and_options_of_the_trainer_are_settings_of_a_training(prepared, call):
    own = ("experiment=smoke", "tracking=off", "backprop=full", "network.iterations=3")
    stopped = (
        "callbacks=early_stopping",
        "+callbacks.early_stopping.min_delta=1",
        "callbacks.early_stopping.patience=1",
    )
    done = call("train", *own, *stopped, "optimization.epochs=4", "+trainer.options.gradient_clip_val=0.5")
    assert done.status == 0, done.err
    record = json.loads((prepared / "outputs/smoke" / SMOKE_RUNS[0] / "run.json").read_text())
    assert record["settings"]["trainer"] == {"gradient_clip_val": 0.5}
    assert record["settings"]["callbacks"]["early_stopping"]["monitor"] == "validation_mse"
    assert record["results"]["steps"] == 16  # two passes of four
    refused(call("train", *own, "+trainer.options.nothing=1"), "trainer.options {'nothing': 1}")
