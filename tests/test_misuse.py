"""Misuse from outside: settings that lead elsewhere, signals, closed pipes, machines without git or a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import command, refused, state

PREPARE = ("experiment=smoke", "data=folder", "data.root=audio", "~data.source.minutes", "tracking=off")


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


@pytest.mark.parametrize("setting", ["name", "cell"])
@pytest.mark.parametrize("value", ["../../x", "/abs", ".", "..", "''", "a/b", '"a\\nb"'])
@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_names_that_lead_elsewhere_write_nothing(call, monkeypatch, tmp_path, setting, value, mode):
    (tmp_path / "in").mkdir()

    monkeypatch.chdir(tmp_path / "in")
    refused(call("train", *mode, "experiment=smoke", f"{setting}={value}"), f"{setting} must be the name of a folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_hydra_in_another_folder_changes_nothing(tmp_path, audio):
    outcomes = {}
    for chdir in ("False", "True"):
        folder = tmp_path / chdir
        folder.mkdir()
        (folder / "audio").symlink_to(audio)
        common = (*PREPARE, f"hydra.job.chdir={chdir}", "network.iterations=3")
        for name, *own in (
            ("settings",), ("prepare",), ("train",), ("train", "-m", "backprop=full", "backprop.primal_mask=active_set"),
            ("evaluate", "evaluation.jobs=2"), ("quality", "quality.sentences=1"), ("figures",),
        ):  # fmt: skip
            done = command(name, *own, *common, cwd=folder)
            assert done.returncode == 0, (name, done.stderr)
        outcomes[chdir] = {name for name in state(folder) if "offline" not in name}
    assert outcomes["True"] == outcomes["False"]
    assert "outputs/smoke/evaluation.csv" in outcomes["True"]
