"""Bad input to every command: status 2, one line that names the file or setting, nothing written, nothing lost."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pdunroll
from conftest import copy_results, refused, state
from pdunroll.errors import InputError
from pdunroll.files import write_json
from pdunroll.speech.sources import read_audio

CELL = "full-active_set-frobenius-L3-seed0"
RUN, PREPARED = f"multirun/smoke/{CELL}", "outputs/smoke/prepared"
SMOKE = "experiment=smoke"


# ---------------------------------------------------------------- settings

SETTINGS = [
    ("train", ["seed=-1"], ["seed"]),
    ("train", ["seed=1.5"], ["seed"]),
    ("train", ["seed=4294967296"], ["seed"]),
    ("train", ["seed=null"], ["seed"]),
    ("train", ["network.rows=0"], ["network.rows (m)"]),
    ("train", ["network.rows=-3"], ["network.rows (m)"]),
    ("train", ["network.step_ratio=0"], ["network.step_ratio"]),
    ("train", ["network.step_ratio=nan"], ["network.step_ratio"]),
    ("train", ["network.step_ratio=inf"], ["network.step_ratio"]),
    ("train", ["network.extrapolation=1.5"], ["network.extrapolation"]),
    ("train", ["network.extrapolation=nan"], ["network.extrapolation"]),
    ("train", ["network.iterations=[10,30]"], ["network.iterations"]),
    ("train", ["network.sigma=2"], ["sigma"]),
    ("train", ["data.frame_length=0"], ["data.frame_length"]),
    ("train", ["data.bits=true"], ["data.bits"]),
    ("train", ["optimization.learning_rate=inf"], ["optimization.learning_rate"]),
    ("train", ["optimization.final_learning_rate=0"], ["optimization.final_learning_rate"]),
    ("train", ["optimization.epochs=0"], ["optimization.epochs"]),
    ("train", ["optimization.batch_size=-1"], ["optimization.batch_size"]),
    ("train", ["optimization.decay_counts=epochs"], ["optimization.decay_counts", "steps", "frames"]),
    ("train", ["trainer=tpu"], ["trainer/tpu", "cpu"]),
    ("train", ["trainer.threads=0"], ["trainer.threads"]),
    ("train", ["tracking.mode=loud"], ["tracking.mode", "offline"]),
    ("train", ["name=a/b"], ["name", "a/b"]),
    ("train", ["name=''"], ["name"]),
    ("train", ["name=.."], ["name"]),
    ("train", ["nothing=1"], ["nothing"]),
    ("train", ["+more=1"], ["more"]),
    ("train", ["experiment="], ["experiment"]),
    ("train", ["network.iterations"], ["network.iterations"]),
    ("train", ["network.iterations=${nowhere}"], ["nowhere"]),
    ("train", ["backprop=implicit", "backprop.primal_mask=released"], ["active_set"]),
    ("train", ["backprop=implicit", "backprop.tolerance=-1"], ["tolerance"]),
    ("train", ["backprop=truncated", "backprop.iterations=null"], ["iterations"]),
    ("train", ["backprop.strategy._target_=pdunroll.Half"], ["Half"]),
    ("train", ["backprop.strategy._target_=nowhere.Mode"], ["nowhere"]),
    ("train", ["+network.more=1"], ["network.more"]),
    ("evaluate", ["evaluation.iterations=0"], ["evaluation.iterations"]),
    ("evaluate", ["evaluation.frames=0"], ["evaluation.frames"]),
    ("evaluate", ["evaluation.tolerance=0"], ["evaluation.tolerance"]),
    ("evaluate", ["algorithm=newton"], ["algorithm/newton", "halpern"]),
    ("theory", ["theory.iterations=10"], ["theory.iterations"]),
    ("figures", ["figures.regime_borders=high"], ["figures.regime_borders"]),
    ("verdicts", ["verdicts.margin=2"], ["verdicts.margin"]),
    ("quality", ["quality.tolerance=-1"], ["quality.tolerance"]),
    ("settings", ["data.bits=99"], ["data.bits"]),
    ("report", ["experiment=small"], ["experiment/small"]),
    ("dashboard", ["tracking=loud"], ["tracking/loud"]),
    ("prepare", ["data.source.minutes=0"], ["data.source.minutes"]),
    ("prepare", ["data.source.minutes=many"], ["data.source.minutes"]),
    ("prepare", ["data.source.voices={train:[en],validation:[en],test:[en]}"], ["data.source.voices"]),
    ("prepare", ["data.source.voices={train:[nobody],validation:[en],test:[en-us]}"], ["nobody"]),
    ("prepare", ["data.source.seed=x"], ["seed"]),
    ("prepare", ["data=folder", "data.root=."], ["audio files"]),
    ("prepare", ["data=folder", "data.root=.", "data.source.test_share=0"], ["test_share"]),
    ("prepare", ["data=folder", "data.root=.", "data.source.test_share=0.95"], ["test_share"]),
]


@pytest.mark.parametrize(("name", "arguments", "named"), SETTINGS, ids=lambda part: str(part)[:60])
def test_settings(call, tmp_path, name, arguments, named):
    refused(call(name, *arguments), *named)
    assert state(tmp_path) == {}


# ---------------------------------------------------------------- audio


def wav(samples: np.ndarray, rate: int = 16000, **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **options)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
COARSE = pdunroll.quantize(NOISE, 3)
WHOLE = wav(COARSE)


def folder_called(path: Path) -> None:
    path.mkdir()


def link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere.wav")


def unreadable(path: Path) -> None:
    path.write_bytes(WHOLE)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads all files")


def pipe(path: Path) -> None:
    os.mkfifo(path)


AUDIO: dict[str, bytes | Callable[[Path], None]] = {
    "text": b"this is no audio at all, whatever its name says\n" * 40,
    "empty file": b"",
    "header cut": WHOLE[:20],
    "no data": WHOLE[:44],
    "data cut": WHOLE[:5000],
    "no samples": wav(NOISE[:0]),
    "inf": wav(np.where(np.arange(8000) == 7000, np.inf, NOISE), subtype="FLOAT"),
    "nan": wav(np.where(np.arange(8000) == 7000, np.nan, NOISE), subtype="DOUBLE"),
    "silent": wav(np.zeros(8000)),
    "rate 0": WHOLE[:24] + bytes(4) + WHOLE[28:],
    "channels 0": WHOLE[:22] + bytes(2) + WHOLE[24:],
    "huge chunk": WHOLE[:40] + struct.pack("<I", 2**31) + WHOLE[44:],
    "a zip": b"PK\x03\x04" + bytes(2000),
    "flac cut": b"fLaC" + bytes(100),
    "folder": folder_called,
    "link loop": link_loop,
    "broken link": broken_link,
    "unreadable": unreadable,
    "pipe": pipe,
}


def put(path: Path, content: bytes | Callable[[Path], None]) -> Path:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", AUDIO)
def test_audio_to_prepare(call, tmp_path, kind):
    audio = tmp_path / "audio"
    audio.mkdir()
    for number in range(3):
        soundfile.write(audio / f"good{number}.wav", np.roll(NOISE, number), 16000)
    put(audio / "bad.wav", AUDIO[kind])
    before = state(tmp_path)
    refused(call("prepare", "data=folder", "data.root=audio", "name=mine"), "bad.wav")
    assert state(tmp_path) == before


@pytest.mark.parametrize("kind", AUDIO)
def test_audio_to_dequantize(call, tmp_path, kind):
    put(tmp_path / "bad.wav", AUDIO[kind])
    (tmp_path / "out.wav").write_bytes(b"kept")
    before = state(tmp_path)
    refused(call("restore", "bad.wav", "out.wav"), "bad.wav")
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["input"]),
        (["in.wav"], ["output"]),
        (["in.wav", "out.mp3"], ["out.mp3", ".wav"]),
        (["in.wav", "in.wav"], ["in.wav"]),
        (["in.wav", "nowhere/out.wav"], ["nowhere/out.wav"]),
        (["in.wav", "out.wav", "--bits", "0"], ["--bits"]),
        (["in.wav", "out.wav", "--bits", "17"], ["--bits"]),
        (["in.wav", "out.wav", "--bits", "four"], ["--bits"]),
        (["in.wav", "out.wav", "--bit", "4"], ["--bit"]),
        (["in.wav", "out.wav", "--operator", "none.npy"], ["none.npy"]),
        (["in.wav", "out.wav", "--operator", "in.wav"], ["in.wav"]),
        (["in.wav", "out.wav", "--operator", "bomb.npy"], ["bomb.npy"]),
        (["in.wav", "out.wav", "--operator", "flat.npy"], ["flat.npy"]),
        (["in.wav", "out.wav", "--operator", "nan.npy"], ["nan.npy"]),
        (["in.wav", "out.wav", "--operator", "zero.npy"], ["zero.npy"]),
        (["in.wav", "out.wav", "--reference", "none.wav"], ["none.wav"]),
        (["in.wav", "out.wav", "--reference", "long.wav"], ["long.wav"]),
        (["fine.wav", "out.wav"], ["fine.wav", "--bits"]),
    ],
    ids=lambda part: " ".join(part),
)
def test_arguments_of_dequantize(call, tmp_path, arguments, named):
    (tmp_path / "in.wav").write_bytes(WHOLE)
    (tmp_path / "long.wav").write_bytes(wav(np.tile(NOISE, 2)))
    (tmp_path / "fine.wav").write_bytes(wav(NOISE, subtype="PCM_24"))
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.ones(5, dtype=np.float32))
    np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan, dtype=np.float32))
    np.save(tmp_path / "zero.npy", np.zeros((8, 8), dtype=np.float32))
    before = state(tmp_path)
    refused(call("restore", *arguments), *named)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [(16000, 1, "PCM_24"), (96000, 1, "PCM_16"), (16000, 8, "PCM_16"), (8000, 2, "FLOAT"), (44100, 1, "PCM_U8")],
)
def test_unusual_audio_is_read(tmp_path, rate, channels, subtype):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.repeat(NOISE[:, None], channels, axis=1), rate, subtype=subtype)
    assert abs(len(read_audio(path)) - len(NOISE) * 16000 / rate) <= 1


# ---------------------------------------------------------------- states


class Bomb:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch exploded",))


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def no_checkpoint(path: Path) -> None:
    path.write_text("no checkpoint")
    unfinished(path.parent)


def matrix(value: float) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.full((64, 64), value, np.float32))


def edit(**changes) -> Callable[[Path], None]:
    """Change keys of a JSON file; ... removes one."""

    def change(path: Path) -> None:
        content = {**json.loads(path.read_text()), **changes}
        write_json(path, {key: value for key, value in content.items() if value is not ...})

    return change


def column(name: str, value: str | None) -> Callable[[Path], None]:
    """Set a column of a CSV file; None removes it."""

    def change(path: Path) -> None:
        header, *rows = [line.split(",") for line in path.read_text().splitlines()]
        number = header.index(name)
        for row in rows:
            row[number] = value or ""
        if value is None:
            header[number] = "other"
        path.write_text("\n".join(map(",".join, [header, *rows])) + "\n")

    return change


def checkpoint(content: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save(content, path)
        unfinished(path.parent)

    return write


def unfinished(cell: Path) -> None:
    edit(status="training", results=None)(cell / "run.json")
    (cell / "operator.npy").unlink()


def zip_without_content(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass
    unfinished(path.parent)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_checkpoint(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1000)}}, path)
    cut(path)
    unfinished(path.parent)


def pickle_bomb(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))
    unfinished(path.parent)


STATES = [
    ("train", f"{PREPARED}/manifest.json", Path.unlink, ["manifest.json", "pdunroll prepare"]),
    ("train", f"{PREPARED}/manifest.json", text("{"), ["manifest.json"]),
    ("train", f"{PREPARED}/manifest.json", edit(settings={}), ["manifest.json"]),
    ("train", f"{PREPARED}/manifest.json", edit(splits={}), ["manifest.json"]),
    ("train", f"{PREPARED}/train.npz", Path.unlink, ["train.npz", "pdunroll prepare"]),
    ("train", f"{PREPARED}/train.npz", cut, ["train.npz", "pdunroll prepare"]),
    ("train", f"{RUN}/run.json", text("[1]"), ["run.json"]),
    ("train", f"{RUN}/run.json", edit(status=...), ["run.json"]),
    ("train", f"{RUN}/last.ckpt", no_checkpoint, ["last.ckpt"]),
    ("train", f"{RUN}/last.ckpt", checkpoint({}), ["last.ckpt"]),
    ("train", f"{RUN}/last.ckpt", checkpoint(5), ["last.ckpt"]),
    ("train", f"{RUN}/last.ckpt", checkpoint(Bomb()), ["last.ckpt"]),
    ("train", f"{RUN}/last.ckpt", checkpoint({key: {} for key in (
        "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")}), ["last.ckpt"]),
    ("train", f"{RUN}/last.ckpt", pickle_bomb, ["last.ckpt"]),
    ("train", f"{RUN}/last.ckpt", cut_checkpoint, ["last.ckpt"]),
    ("train", f"{RUN}/last.ckpt", zip_without_content, ["last.ckpt"]),
    ("evaluate", f"{PREPARED}/test.npz", cut, ["test.npz"]),
    ("evaluate", f"{RUN}/run.json", text(""), ["run.json"]),
    ("evaluate", f"{RUN}/run.json", edit(settings={}), ["run.json"]),
    ("evaluate", f"{RUN}/run.json", edit(results=None), ["run.json"]),
    ("evaluate", f"{RUN}/operator.npy", Path.unlink, ["operator.npy"]),
    ("evaluate", f"{RUN}/operator.npy", cut, ["operator.npy"]),
    ("evaluate", f"{RUN}/operator.npy", matrix(np.nan), ["operator.npy"]),
    ("evaluate", f"{RUN}/operator.npy", matrix(0.0), ["operator.npy"]),
    ("theory", "multirun/smoke/full-active_set-frobenius-L10-seed0/operator.npy", cut, ["operator.npy"]),
    ("quality", "multirun/smoke", lambda path: [cut(file) for file in path.glob("*/operator.npy")], ["operator.npy"]),
    ("figures", "outputs/smoke/evaluation.csv", Path.unlink, ["evaluation.csv", "pdunroll evaluate"]),
    ("figures", "outputs/smoke/evaluation.csv", text("a,b\n1,2\n"), ["evaluation.csv"]),
    ("figures", "outputs/smoke/evaluation.csv", column("mse", "high"), ["evaluation.csv", "mse"]),
    ("figures", "outputs/smoke/evaluation.csv", column("l_training", None), ["evaluation.csv", "l_training"]),
    ("figures", "outputs/smoke/training.csv", column("seconds", "long"), ["training.csv", "seconds"]),
    ("figures", "outputs/smoke/provenance.json", text("{}"), ["provenance.json"]),
    ("verdicts", "outputs/smoke/optima.csv", column("optimum_mse", "x"), ["optima.csv", "optimum_mse"]),
    ("verdicts", "outputs/smoke/errors/dct-frobenius.npz", cut, ["dct-frobenius.npz"]),
    ("verdicts", "outputs/smoke/errors/dct-frobenius.npz", Path.unlink, ["dct-frobenius.npz"]),
    ("report", "outputs/smoke/evaluation.csv", column("mse", "high"), ["evaluation.csv", "mse"]),
    ("dashboard", "outputs/smoke/evaluation.csv", column("l_inference", "x"), ["evaluation.csv", "l_inference"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "path", "change", "named"), STATES, ids=[f"{s[0]}-{Path(s[1]).name}-{k}" for k, s in enumerate(STATES)]
)
def test_states(smoke, call, tmp_path, name, path, change, named):
    copy_results(smoke, tmp_path)
    change(tmp_path / path)
    before = state(tmp_path)
    arguments = ["hydra.run.dir=multirun/smoke", f"run={CELL}", "network.iterations=3"] if name == "train" else []
    if path.endswith("train.npz"):
        arguments.append("seed=7")  # a training that is still to be done
    refused(call(name, SMOKE, "tracking=off", *arguments), *named)
    after = state(tmp_path)
    assert not (tmp_path / "exploded").exists()
    assert {key: after.get(key) for key in before} == before
    assert set(after) - set(before) <= {"dashboard.json"}


def test_installed_without_the_repository(call, tmp_path, monkeypatch):
    importlib.import_module("pdunroll.commands.prepare")  # whose decorator takes CONF for good
    monkeypatch.setattr("pdunroll.commands.config.CONF", str(tmp_path / "conf"))
    refused(call("prepare", SMOKE), "conf is missing", "clone")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("name", "bytes_left"),
    [
        ("prepare", 200_000), ("train", 20_000), ("evaluate", 4_096), ("figures", 20_000), ("verdicts", 0),
        pytest.param("theory", 8_192, marks=pytest.mark.slow), pytest.param("quality", 60_000, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_full_disk(smoke, small_disk, call, name, bytes_left):
    copy_results(smoke, small_disk, "wandb", "*.log")
    shutil.rmtree(small_disk / "outputs/smoke/errors") if name == "evaluate" else None
    before = state(small_disk)
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - bytes_left))
    refused(call(name, SMOKE, "tracking=off", *(["seed=5"] if name == "train" else []), cwd=small_disk), "space")
    (small_disk / "filler").unlink()
    after = state(small_disk)
    assert {key: after.get(key) for key in before} == before
    assert not [key for key in after if key.endswith(".partial")]


# ---------------------------------------------------------------- any input at all


def one_line(error: InputError, named: str = "") -> None:
    assert named in str(error)
    assert "\n" not in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8), st.integers(0, len(WHOLE)))
def test_a_damaged_recording_is_read_or_refused(tmp_path, start, patch, end):
    content = WHOLE[:start] + patch + WHOLE[start + len(patch) :]
    path = tmp_path / "x.wav"
    path.write_bytes(content[: max(end, len(WHOLE) // 2) if end % 2 else None])
    try:
        samples = read_audio(path)
    except InputError as error:
        one_line(error, str(path))
    else:
        assert samples.ndim == 1
        assert np.isfinite(samples).all()


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(width=32)),
    st.integers(-2, 40),
)
def test_quantize_gives_cells_or_refuses(signal, bits):
    try:
        x = pdunroll.quantize(signal, bits)
    except InputError as error:
        one_line(error)
        refused = True
    else:
        refused = False
        assert x.shape == signal.shape
        assert (np.abs(x.astype(float) - signal.clip(-1, 1)) <= 2.0**-bits * (1 + 1e-6) + 6e-8).all()
    assert refused != bool(1 <= bits <= 32 and np.isfinite(signal).all())


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.integers(0, 5)), elements=st.floats(-1e300, 1e300)),
    hnp.arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(0, 5)), elements=st.floats(-1, 1)),
    st.floats(),
    st.integers(-1, 20),
)
@example(np.array([[1e-308]]), np.zeros((1, 1)), 1.0, 1)  # step sizes of infinity
@example(np.array([[1e308]]), np.zeros((1, 1)), 1.0, 1)
def test_unroll_restores_within_the_cells_or_refuses(operator, x, radius, iterations):
    try:
        y = pdunroll.unroll(torch.from_numpy(operator), torch.from_numpy(x), radius=radius, iterations=iterations)
    except InputError as error:
        one_line(error)
    else:
        assert y.shape == x.shape
        assert bool(((y - torch.from_numpy(x)).abs() <= radius * (1 + 1e-12) + 1e-12).all())
