"""Misuse from outside: settings that lead elsewhere, signals, closed pipes, machines without git or a GPU."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import soundfile
import torch

import pdunroll
from conftest import Outcome, command, refused, state
from pdunroll.errors import InputError
from pdunroll.files import read_json
from pdunroll.training.module import UnrolledTraining
from pdunroll.training.run_folder import environment

PREPARE = ("experiment=smoke", "data=folder", "data.root=audio", "~data.source.minutes", "tracking=off")
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)


@pytest.fixture
def audio(tmp_path) -> Path:
    """A folder of recordings."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", np.random.default_rng(number).uniform(-0.5, 0.5, 8000), 16000)
    return folder


@pytest.fixture
def prepared(call, tmp_path, audio) -> Path:
    """A folder in which the smoke preset can be trained."""
    assert call("prepare", *PREPARE).status == 0
    return tmp_path


@pytest.mark.parametrize("setting", ["name", "run"])
@pytest.mark.parametrize("value", ["../../x", "/abs", ".", "..", "''", "a/b", '"a\\nb"'])
@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_names_that_lead_elsewhere_write_nothing(call, monkeypatch, tmp_path, setting, value, mode):
    (tmp_path / "in").mkdir()

    monkeypatch.chdir(tmp_path / "in")
    refused(call("train", *mode, "experiment=smoke", f"{setting}={value}"), f"{setting} must be the name of a folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


@pytest.mark.slow
def test_hydra_in_another_folder_changes_nothing(call, tmp_path, audio):
    outcomes = {}
    for chdir in ("False", "True"):
        folder = tmp_path / chdir
        folder.mkdir()
        (folder / "audio").symlink_to(audio)
        common = (*PREPARE, f"hydra.job.chdir={chdir}", "network.iterations=3")
        for name, *own in (
            ("settings",), ("prepare",), ("train",), ("train", "-m", "backprop=full", "backprop.primal_mask=released"),
            ("evaluate", "evaluation.jobs=2"), ("quality", "quality.sentences=1"), ("figures",),
        ):  # fmt: skip
            done = call(name, *own, *common, cwd=folder)
            assert done.status == 0, (name, done.err)
        outcomes[chdir] = {name for name in state(folder) if "offline" not in name}
    assert outcomes["True"] == outcomes["False"]
    assert "outputs/smoke/evaluation.csv" in outcomes["True"]


LONG = ("network.iterations=10", "optimization.epochs=2000", "optimization.validations_per_epoch=4")


@pytest.fixture
def sweep(prepared):
    """A sweep of two trainings that has begun and goes on for a minute; it is killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pdunroll", "train", "-m", *PREPARE, *LONG, "backprop=full,truncated",
         "backprop.primal_mask=active_set", "hydra.launcher.n_jobs=2"],
        cwd=prepared, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "step 4 of" in line:
            break
    else:
        raise AssertionError("".join(lines))
    reader = threading.Thread(target=process.stdout.read)  # a full pipe would hold up all that write to it
    reader.start()
    yield process
    for other in members(process.pid):
        os.kill(other, signal.SIGKILL)
    reader.join()
    process.communicate()


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_a_second_sweep_stops_and_says_what_differs_and_workers_end_with_the_first(sweep, prepared, call):
    cells = sorted((prepared / "multirun/smoke").glob("*/run.json"))
    before = {path: path.read_text() for path in cells}
    second = ("-m", *PREPARE, *LONG, "backprop.primal_mask=active_set")
    for changed in ("optimization.learning_rate=1e-3", "optimization.epochs=1"):
        outcome = call("train", *second, changed, "backprop=full,truncated")
        refused(outcome, "another sweep", str(sweep.pid), changed.split("=")[0], "not", "`name`")
    assert {path: path.read_text() for path in cells} == before
    assert sweep.poll() is None
    assert len(members(sweep.pid)) > 2
    os.kill(sweep.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (left := members(sweep.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def piped(name: str, *arguments: str, cwd: Path, close: str) -> tuple[int, str]:
    """Run a command whose standard output, or errors too, nobody reads; its status and what it said there."""
    command = [sys.executable, "-m", "pdunroll", name, *arguments]
    if close == "closed":
        done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], cwd=cwd, check=False)
        return done.returncode, ""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        errors = writer if close == "both" else subprocess.PIPE
        done = subprocess.run(command, cwd=cwd, stdout=writer, stderr=errors, text=True, check=False)
    finally:
        os.close(writer)
    return done.returncode, done.stderr or ""


ENDS = ["output", *(pytest.param(name, marks=pytest.mark.slow) for name in ("both", "closed"))]


@pytest.mark.parametrize("close", ENDS)
def test_a_reader_that_leaves_takes_no_result_along(prepared, audio, close):
    soundfile.write(prepared / "coarse.wav", pdunroll.quantize(soundfile.read(audio / "0.wav")[0], 3), 16000)
    for name, arguments, result in (
        ("restore", ("coarse.wav", "out.wav"), "out.wav"),
        ("restore", ("--help",), None),
        ("prepare", (*PREPARE, "prepared=again"), "again/manifest.json"),
    ):
        leaves(prepared, close, name, arguments, result)
    assert piped("restore", "none.wav", "x.wav", cwd=prepared, close=close)[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("close", ENDS)
def test_a_reader_that_leaves_takes_no_result_of_workers_along(prepared, close):
    sweep = (
        "-m", *PREPARE, "network.iterations=3", "backprop=full,truncated", "backprop.primal_mask=active_set",
        "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    for name, arguments, result in (
        ("train", sweep, "multirun/smoke/sweep.csv"),
        ("evaluate", (*PREPARE, "evaluation.jobs=2"), "outputs/smoke/metrics.json"),
        ("figures", PREPARE, "outputs/smoke/results.txt"),
    ):
        leaves(prepared, close, name, arguments, result)


def leaves(folder: Path, close: str, name: str, arguments: tuple[str, ...], result: str | None) -> None:
    status, errors = piped(name, *arguments, cwd=folder, close=close)
    assert (name, status) == (name, 0), errors
    assert "BrokenPipe" not in errors
    assert "Traceback" not in errors
    assert result is None or (folder / result).is_file()


HUGE = str(10**30)


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("train", ["trainer=gpu"], ["trainer=gpu", "trainer=cpu"]),
        ("train", ["-m", "trainer=gpu"], ["trainer=gpu", "trainer=cpu"]),
        ("train", ["data=null"], ["data must be one of folder, ieee, synthetic"]),
        ("train", ["backprop=null"], ["backprop must be one of full, implicit, lastiterations, ", "truncated"]),
        ("evaluate", ["algorithm=3"], ["algorithm must be one of chambolle_pock, halpern"]),
        ("prepare", ["data.source=null"], ["data.source", "_target_"]),
        ("train", ["backprop.strategy=null"], ["backprop.strategy", "_target_"]),
        ("train", ["=5"], ["name", "'=5'"]),
        ("train", [f"network.iterations={HUGE}"], ["network.iterations", HUGE]),
        ("train", [f"optimization.batch_size={HUGE}"], ["optimization.batch_size", HUGE]),
        ("train", [f"optimization.epochs={HUGE}"], ["optimization.epochs", HUGE]),
        ("train", ["-m", "hydra.launcher.n_jobs=0"], ["hydra.launcher.n_jobs"]),
        ("train", ["-m", "hydra.launcher.n_jobs=x"], ["n_jobs"]),
        ("train", ["-m", "seed=range(0,0)"], ["no training", "seed=range(0,0)"]),
        ("train", ["hydra.run.dir=/dev/null/x"], ["hydra.run.dir=/dev/null/x"]),
        ("train", ["-m", "hydra.sweep.dir=/dev/null/x"], ["hydra.sweep.dir=/dev/null/x"]),
        ("train", ["network.step_ratio=1e300"], ["network.step_ratio"]),
        ("train", ["optimization.final_learning_rate=1"], ["optimization.final_learning_rate"]),
    ],
    ids=lambda part: " ".join(part)[:60],
)
def test_settings_out_of_this_world(prepared, call, monkeypatch, name, arguments, named):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = state(prepared)
    mode = [part for part in arguments if part == "-m"]
    refused(call(name, *mode, *PREPARE, *arguments[len(mode) :]), *named)
    assert state(prepared) == before


def test_more_threads_than_cores_are_not_started(prepared, call, monkeypatch):
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    done = call("train", *PREPARE, "network.iterations=3", "trainer.threads=100000")
    assert done.status == 0
    assert f"trainer.threads=100000: {os.cpu_count()} are used" in done.out
    assert set(threads) == {os.cpu_count()}
    (record,) = (prepared / "outputs/smoke").glob("*/run.json")
    assert json.loads(record.read_text())["results"]["threads"] == os.cpu_count()


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] == "unknown"


ODD = b"a\nb.wav", b"a\xff.wav", "ä\u2028\x1b[31m.wav".encode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_odd_file_names_are_read_and_refused_on_one_line(tmp_path, audio, name, encoding):
    variables = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}

    def run(module: str, *arguments: str | bytes) -> Outcome:
        program = [sys.executable, "-m", "pdunroll", module, *arguments]
        done = subprocess.run(program, cwd=tmp_path, env=variables, capture_output=True, check=False)
        return Outcome(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))

    path = os.fsencode(tmp_path) + b"/audio/" + name
    soundfile.write(tmp_path / "x.wav", pdunroll.quantize(soundfile.read(audio / "0.wav")[0], 3), 16000)
    os.rename(tmp_path / "x.wav", path)
    odd = os.fsencode(tmp_path) + b"/" + name
    for source, output in ((path, os.fsencode(tmp_path / "out.wav")), (path, odd)):
        assert run("restore", source, output) == (0, mock.ANY, mock.ANY)
        assert os.path.isfile(output)
    assert run("prepare", *PREPARE) == (0, mock.ANY, mock.ANY)
    with open(path, "wb") as file:
        file.write(b"no audio")
    refused(run("restore", path, tmp_path / "out.wav"), "cannot be read as audio")
    refused(run("prepare", *PREPARE), "cannot be read as audio")


def test_prepare_twice_at_once(tmp_path, audio):
    program = [sys.executable, "-m", "pdunroll", "prepare", *PREPARE]
    processes = [
        subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.parametrize("to", ["all", pytest.param("parent", marks=pytest.mark.slow)])
def test_prepare_interrupted(tmp_path, to):
    program = [sys.executable, "-m", "pdunroll", "prepare", "experiment=smoke", "data.source.minutes=500"]
    process = subprocess.Popen(
        program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while sum(psutil.Process(number).cpu_times().user for number in members(process.pid)) < 8:
        assert time.monotonic() < deadline  # until it speaks
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT) if to == "all" else process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 130
    assert errors == "pdunroll: interrupted; the same command continues\n"
    assert not members(process.pid)
    assert not list(tmp_path.rglob("*.npz"))


def test_hints_repeat_the_overrides_that_were_used(prepared, call):
    own = (*PREPARE, "name=own", "prepared=outputs/smoke/prepared")
    given = shlex.join(own)
    refused(call("evaluate", *own), f"`python -m pdunroll train -m {given}`")
    refused(call("figures", *own), f"`python -m pdunroll evaluate {given}`")
    refused(call("report", *own), f"`python -m pdunroll evaluate {given}`")
    one = ("-m", *own, "network.iterations=3", "backprop=full", "backprop.primal_mask=active_set")
    assert call("train", *one).status == 0
    assert call("evaluate", *own).status == 0
    refused(call("report", *own), f"`python -m pdunroll figures {given}`")
    done = call("figures", *own)
    assert f"python -m pdunroll evaluate {given}   seed 0" in done.out
    assert call("report", *own).status == 0  # with the frames in another folder


def test_a_missing_file_is_not_called_damaged(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read_json(tmp_path / "none.json")


def test_a_training_that_cannot_begin_is_not_blamed_on_the_learning_rate():
    module = UnrolledTraining(frame_length=8, radius=0.1, iterations=2)
    with pytest.raises(InputError, match="both be float32 or float64"):
        module.training_step((torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.float64)), 0)


def test_a_result_of_silence_is_announced(tmp_path, call):
    soundfile.write(tmp_path / "coarse.wav", pdunroll.quantize(NOISE, 1), 16000)
    done = call("restore", "coarse.wav", "out.wav")
    assert "silence" in done.out
    soundfile.write(tmp_path / "finer.wav", pdunroll.quantize(1.9 * NOISE, 2), 16000)
    assert "silence" not in call("restore", "finer.wav", "out.wav").out


def test_settings_edited_by_hand_are_not_ignored_without_a_word(call, tmp_path):
    assert call("settings", "experiment=smoke").status == 0
    path = tmp_path / "outputs/smoke/settings.yaml"
    assert call("settings", "experiment=smoke", "evaluation.frames=5").status == 0  # written anew
    path.write_text(path.read_text().replace("frames: 5", "frames: 6"))
    refused(call("settings", "experiment=smoke"), str(path.relative_to(tmp_path)), "no effect", "conf/")
    path.write_text("damaged: [")
    assert call("settings", "experiment=smoke").status == 0


def test_flags_may_follow_the_overrides(prepared):
    one = (*PREPARE, "backprop=full", "backprop.primal_mask=active_set")
    done = command("train", *one, "-m", "network.iterations=3", cwd=prepared)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 trainings finished" in done.stdout


def test_no_such_command_names_those_that_there_are(tmp_path):
    done = command("trane", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("pdunroll: there is no command 'trane'; there are prepare, train, ")
