"""No folder that holds anything of others is removed or replaced, and no partial one is left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import refused, state
from pdunroll import runs
from pdunroll.cell import Cell
from pdunroll.errors import InputError
from pdunroll.frames import prepare, read_manifest
from pdunroll.quality import listen
from pdunroll.runs import Layout, replacing
from pdunroll.speech import Recording

SETTINGS = {"frame_length": 16, "bits": 4}
OWN = Layout("index.json", lambda names: names)
SIGNALS = [
    ({"restoration": "original", "primal_mask": None, "step_norm": None, "cell": None}, [np.zeros(320, np.float32)])
]


def speech(seed: int = 0) -> list[Recording]:
    rng = np.random.default_rng(seed)
    return [
        Recording(split, split, rng.integers(-9999, 9999, 64).astype(np.int16))
        for split in ("train", "validation", "test")
    ]


@pytest.fixture
def audio(tmp_path) -> Path:
    """A folder of recordings."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", np.random.default_rng(number).uniform(-0.5, 0.5, 8000), 16000)
    return folder


@pytest.mark.parametrize("kind", ["source", "link", "dots", "here", "parent", "file", "broken manifest", "foreign npz"])
def test_prepare_refuses_folders_of_others(call, tmp_path, audio, kind):
    (tmp_path / "link").symlink_to("audio")
    (tmp_path / "file").write_text("kept")
    for name, manifest in (("broken manifest", "{"), ("foreign npz", '{"splits": {"train": 1}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(manifest)
        (tmp_path / name / "train.npz").write_text("kept")
    prepared = {"source": "audio", "dots": "outputs/../audio", "here": ".", "parent": ".."}.get(kind, kind)
    before = state(tmp_path)
    done = call("prepare", "data=folder", "data.root=audio", f"prepared={prepared}", "name=mine")
    refused(done, str(audio) if kind == "link" else prepared)
    assert state(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "audio", "broken manifest", "file", "foreign npz", "link", "outputs"
    ]  # fmt: skip


def test_a_stray_file_or_folder_in_a_prepared_one_keeps_it(tmp_path):
    folder = tmp_path / "prepared"
    prepare(speech(), folder, **SETTINGS)
    for stray in (folder / "notes.txt", folder / "sub"):
        stray.mkdir() if stray.name == "sub" else stray.write_text("kept")
        before = state(tmp_path)
        with pytest.raises(InputError, match=stray.name):
            prepare(speech(1), folder, **SETTINGS)
        assert state(tmp_path) == before
        stray.rmdir() if stray.name == "sub" else stray.unlink()
    prepare(speech(1), folder, **SETTINGS)


def test_an_empty_folder_and_a_link_to_our_own_are_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for seed in (0, 1):
        manifest = prepare(speech(seed), tmp_path / "link", **SETTINGS)
        assert (tmp_path / "link").is_symlink()
        assert read_manifest(tmp_path / "disk") == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_partial_folder_of_others_stays_and_that_of_a_killed_process_goes(tmp_path, monkeypatch):
    (tmp_path / ".prepared.partial").mkdir()
    (tmp_path / ".prepared.partial" / "kept").write_text("kept")
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # more than any process has
    killed = runs._temporary(tmp_path / "prepared")
    killed.mkdir()
    monkeypatch.undo()
    prepare(speech(), tmp_path / "prepared", **SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".prepared.partial", "prepared"]


def test_a_refusal_or_a_full_disk_leaves_no_partial_folder(tmp_path):
    def write(error: Exception) -> None:
        with replacing(tmp_path / "own", OWN) as partial:
            (partial / "index.json").write_text("[]")
            raise error

    with pytest.raises(InputError):
        write(InputError("refused"))
    with pytest.raises(OSError, match="No space") as caught:
        write(OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.filename == str(tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_of_the_file(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, runs.atomic(tmp_path / "table.csv"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "table.csv")


def test_listen_keeps_audio_of_others(tmp_path):
    folder = tmp_path / "audio"
    listen(folder, SIGNALS, ["one"], 16000)
    listen(folder, SIGNALS, [], 16000)
    listen(folder, SIGNALS, ["one"], 16000)
    assert sorted(path.name for path in folder.iterdir()) == ["0-original.wav", "index.json"]
    (folder / "mine.wav").write_text("kept")
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"mine\.wav"):
        listen(folder, SIGNALS, ["one"], 16000)
    assert state(tmp_path) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_the_same_folder_can_be_made_by_two_processes_at_once(tmp_path):
    program = (
        "import json; from pathlib import Path; from pdunroll.runs import Layout, replacing\n"
        "for _ in range(300):\n"
        "    with replacing(Path('own'), Layout('index.json', lambda names: names)) as partial:\n"
        "        [(partial / name).write_text('') for name in 'abc']\n"
        "        (partial / 'index.json').write_text(json.dumps(list('abc')))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert state(tmp_path).keys() == {"own/a", "own/b", "own/c", "own/index.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_training_keeps_files_of_others(tmp_path):
    for name in ("operator.npy", "training.csv", "last.ckpt"):
        (tmp_path / name).write_text("kept")
        with pytest.raises(InputError, match=name):
            Cell(tmp_path, {"settings": {}}).begin()
        assert (tmp_path / name).read_text() == "kept"
        (tmp_path / name).unlink()
