"""No folder that a command did not write is ever removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from pdunroll.errors import InputError
from pdunroll.files import replaced

DATA = ("data=folder", "data.frame_length=64", "data.source.validation_share=0.3", "data.source.test_share=0.3")


@pytest.fixture
def audio(tmp_path):
    """Ten recordings of a user's own."""
    folder = tmp_path / "audio"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(1600), 16000)
    return folder


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_source_recordings_are_not_removed(call, audio, tmp_path):
    before = content(audio)
    done = call("prepare", *DATA, "data.root=audio", "prepared=audio")
    assert done.status == 2
    assert "prepared: audio holds '0.wav', which this command did not write" in done.err.splitlines()[-1]
    assert content(audio) == before
    assert not [*tmp_path.glob(".*partial")]


def test_links_are_resolved_and_named(call, audio, tmp_path):
    before = content(audio)
    (tmp_path / "link").symlink_to(audio)
    done = call("prepare", *DATA, "data.root=audio", "prepared=link")
    assert done.status == 2
    assert f"prepared: link ({audio}) holds" in done.err
    assert content(audio) == before


def test_a_prepared_folder_with_a_file_of_the_users_own_is_left(call, audio, tmp_path):
    assert call("prepare", *DATA, "data.root=audio", "prepared=frames").status == 0
    assert call("prepare", *DATA, "data.root=audio", "prepared=frames").status == 0  # its own is replaced
    (tmp_path / "frames/notes.txt").write_text("mine")
    done = call("prepare", *DATA, "data.root=audio", "prepared=frames")
    assert done.status == 2
    assert "holds 'notes.txt'" in done.err
    assert (tmp_path / "frames/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "..", "audio/.."])
def test_the_folder_that_the_command_runs_in_is_left(call, audio, place):
    before = content(audio)
    done = call("prepare", *DATA, "data.root=audio", f"prepared={place}")
    assert done.status == 2
    assert "is the folder that this command runs in" in done.err
    assert content(audio) == before


def test_a_manifest_of_somebody_elses_does_not_give_a_folder_away(call, audio, tmp_path):
    (audio / "manifest.json").write_text(json.dumps({"settings": {}, "splits": {}, "digest": ""}))
    before = content(audio)
    assert call("prepare", *DATA, "data.root=audio", "prepared=audio").status == 2
    assert content(audio) == before


def test_a_refusal_or_an_error_leaves_no_partial_folder(tmp_path):
    def fill():
        with replaced(tmp_path / "new", "prepared", lambda folder: set()) as partial:
            (partial / "half").write_text("written")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert [*tmp_path.iterdir()] == []


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(tmp_path):
    with replaced(tmp_path / "new", "prepared", lambda folder: set()) as partial:
        stale = partial.with_name(partial.name.replace(str(os.getpid()), "999999999"))
        own = tmp_path / ".new.partial"
    for folder in (stale, own):
        folder.mkdir()
    shutil.rmtree(tmp_path / "new")
    with replaced(tmp_path / "new", "prepared", lambda folder: set()):
        pass
    assert not stale.exists()
    assert own.exists()


def test_a_folder_of_the_same_name_that_appears_meanwhile_is_left(tmp_path):
    def fill():
        with replaced(tmp_path / "new", "prepared", lambda folder: set()) as partial:
            (partial / "ours").write_text("")
            (tmp_path / "new").mkdir()
            (tmp_path / "new/theirs").write_text("kept")

    with pytest.raises(InputError, match="holds 'theirs'"):
        fill()
    assert (tmp_path / "new/theirs").read_text() == "kept"


REPLACING = """
import sys
from pathlib import Path
from pdunroll.files import replaced

def ours(folder):
    return set("abcdefgh") if (folder / "a").is_file() else set()  # as a manifest says what else is there

for _ in range(300):
    with replaced(Path("new"), "prepared", ours) as partial:
        for name in "abcdefgh":
            (partial / name).write_text("written")
"""


def test_processes_that_replace_one_folder_never_see_half_of_it(tmp_path):
    program = [sys.executable, "-c", REPLACING]
    running = [subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate()[1] for process in running]
    assert errors == ["", "", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert len(list((tmp_path / "new").iterdir())) == 8


@pytest.mark.parametrize("cell", ["../../x", "/abs", ".", "..", "a/b", ""])
def test_a_cell_is_the_name_of_a_folder(call, cell):
    done = call("train", f"run='{cell}'")
    assert done.status == 2
    assert f"run must be the name of a folder, got {cell!r}" in done.err


def test_an_operator_without_its_record_is_not_overwritten(call, smoke, tmp_path):
    folder = tmp_path / "outputs/smoke/mine"
    folder.mkdir(parents=True)
    (folder / "operator.npy").write_bytes(b"precious")
    done = call("train", "experiment=smoke", "run=mine", "tracking=off", f"prepared={smoke}/outputs/smoke/prepared")
    assert done.status == 2
    assert "operator.npy is there, but no run.json beside it" in done.err
    assert (folder / "operator.npy").read_bytes() == b"precious"


def test_a_command_that_changes_its_folder_finds_the_same_files(call, smoke, tmp_path):
    arguments = ("experiment=smoke", "tracking=off", "hydra.job.chdir=True")
    shutil.copytree(smoke / "outputs/smoke/prepared", tmp_path / "outputs/smoke/prepared")
    assert call("train", *arguments, "run=one").status == 0
    assert (tmp_path / "outputs/smoke/one/operator.npy").is_file()
    assert call("train", "-m", *arguments, "network.iterations=3", "backprop=full").status == 0
    assert call("evaluate", *arguments).status == 0
    assert (tmp_path / "outputs/smoke/evaluation.csv").is_file()
