"""A user's recording is restored within its own quantization cells, frame by frame as `solve` does it."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

import pdunroll
from conftest import command
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.errors import InputError
from pdunroll.restore import operator_file as operators
from pdunroll.restore.depths import CHOICES, choose
from pdunroll.restore.grid import infer_grid, mid_rise
from pdunroll.restore.recordings import Distortion, storable

n = 32  # of the operator that most tests use: the shipped one takes ten times as long


def sound(samples: int, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Plucked harmonic tones with peak 1, three a second, (samples,)."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    phase = 2 * np.pi * (100 * time + 10 * time**2)
    waves = [a * np.sin(k * phase + generator.uniform(0, 6)) for k, a in ((1, 1.0), (2, 0.7), (3, 0.5), (4, 0.2))]
    wave = np.sum(waves, axis=0) * np.exp(-6 * (3 * time % 1)) + 1e-4
    return wave / np.abs(wave).max()


def ladder(kind: str, wave: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The levels of a quantizer of some kind, and the middles of the cells."""
    step = 2.0 ** (1 - bits)
    if kind == "mid-rise":
        x = pdunroll.quantize(wave, bits)
        return x, x
    if kind == "mid-tread":
        x = step * np.floor(wave / step + 0.5)
        return x, x
    x = step * np.floor(wave / step)
    return x, x + step / 2


@pytest.fixture
def folder(tmp_path):
    """A folder with an operator of 32 samples."""
    np.save(tmp_path / "dct.npy", pdunroll.dct_operator(n, n).numpy())
    return tmp_path


def written(path, x, rate=16_000, subtype="PCM_16"):
    soundfile.write(path, x, rate, subtype=subtype)
    return soundfile.read(path, always_2d=True)[0]


# ---------------------------------------------------------------- the cells


CELLS = [
    (kind, bits, scale, storage)
    for kind in ("mid-rise", "mid-tread", "cut off")
    for bits in (1, 2, 4, 6, 8)
    for scale in (1.0, 0.731, 0.05)
    for storage in ("float32", "int16")
    if (bits > 1 or kind == "mid-rise")  # of the others, two or three levels are too few to tell them apart
    and (storage == "float32" or 2.0 ** (1 - bits) * scale > 16 * 2.0**-15)  # steps far above the rounding
]


@pytest.mark.parametrize(("kind", "bits", "scale", "storage"), CELLS)
def test_cells_are_found(kind, bits, scale, storage):
    x, centre = (scale * part for part in ladder(kind, sound(20_000) * 0.97, bits))
    held = x.astype(np.float32).astype(float) if storage == "float32" else np.rint(x * 32767) / 32768
    grid = infer_grid(*np.unique(held, return_counts=True), 2.0**-15)
    assert grid.kind == kind
    assert grid.step == pytest.approx(scale * 2.0 ** (1 - bits), rel=1e-3 if storage == "int16" else 1e-6)
    tolerance = 2.0**-15 if storage == "int16" else 1e-6
    np.testing.assert_allclose(grid.centres(held), centre, rtol=0, atol=tolerance)


def test_full_scale_cells_are_exact():
    held = np.rint(pdunroll.quantize(sound(5000), 4) * 32767) / 32768  # 2047.9 is stored as 2048
    grid = infer_grid(*np.unique(held, return_counts=True), 2.0**-15)
    assert "4-bit" in str(grid)
    assert set(grid.centres(held)) <= set(mid_rise(4).centres(np.linspace(-1, 1, 99)))


def test_levels_that_do_not_occur_are_bridged():
    step = 0.1234
    for numbers in ([-0.5, 2.5], [-4.5, 0.5, 3.5], [-9.5, -3.5, -0.5, 1.5, 14.5]):
        levels = step * np.array(numbers)
        grid = infer_grid(levels, np.ones(len(levels)), 1e-9)
        np.testing.assert_allclose(grid.centres(levels), levels, atol=1e-9)
        parts = (step * np.diff(numbers)).min() / grid.step
        assert parts == pytest.approx(round(parts))
    grid = infer_grid(step * np.array([-2.5, -0.5, 1.5, 2.5, 5.5]), np.ones(5), 2.0**-15)
    assert (grid.kind, grid.count) == ("mid-rise", 9)
    assert grid.step == pytest.approx(step)


def test_shifted_levels_are_the_middles_of_their_cells():
    held = pdunroll.quantize(sound(5000), 4) * 0.9 + 0.0171
    grid = infer_grid(*np.unique(held, return_counts=True), 2.0**-15)
    assert grid.kind == "shifted"
    np.testing.assert_allclose(grid.centres(held), held, atol=1e-9)


def test_digital_silence_does_not_make_cut_off_levels_rounded():
    x = ladder("cut off", np.append(np.zeros(30_000), sound(5000)), 4)[0]
    assert infer_grid(*np.unique(x, return_counts=True), 2.0**-15).kind == "cut off"


def test_what_has_no_levels_has_no_grid():
    generator = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 50, 3000):
        values = np.unique(generator.integers(-30_000, 30_000, count)) / 32768 + (0.0001 if count < 3 else 0.0)
        assert infer_grid(values, np.ones(len(values)), 2.0**-15) is None
        values = np.unique(generator.uniform(-1, 1, count).astype(np.float32)).astype(float)
        assert infer_grid(values, np.ones(len(values)), 2.0**-15) is None
    companded = np.sign(np.arange(-15.5, 16)) * 2.0 ** (np.abs(np.arange(-15.5, 16)) / 2 - 8)  # levels, not even ones
    assert infer_grid(companded, np.ones(32), 2.0**-15) is None


def test_given_bits_are_the_quantizer():
    wave = np.append(np.random.default_rng(1).uniform(-1, 1, 1000), [-1.0, 1.0, 0.0, -0.0, 0.125, -0.125])
    for bits in (1, 4, 9):
        np.testing.assert_array_equal(mid_rise(bits).centres(wave), pdunroll.quantize(wave, bits))


@pytest.mark.parametrize("bits", [1, 4, 12])
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_storage_does_not_leave_the_cells(tmp_path, bits, name):
    x = pdunroll.quantize(np.random.default_rng(0).uniform(-1, 1, (3000, 2)), bits)
    scaled = x * 0.7717  # borders that no format holds
    step = 0.7717 * 2.0 ** (1 - bits)
    grid = infer_grid(*np.unique(scaled, return_counts=True), 1e-9)
    border = scaled + np.random.default_rng(1).choice([-0.5, 0.5], x.shape) * step
    subtype = {"a.wav": "FLOAT", "a.flac": "PCM_24"}[name]
    soundfile.write(tmp_path / name, storable(scaled, [grid, grid], border, subtype), 8000, subtype=subtype)
    back = soundfile.read(tmp_path / name)[0]
    assert (np.abs(back - grid.centres(scaled)) <= grid.radius + 1e-15).all()  # of this sum's own rounding
    np.testing.assert_allclose(back, border, atol=2.0**-22)


# ---------------------------------------------------------------- the result


@pytest.mark.parametrize("samples", [1, 5, n - 1, n, n + 1, 3 * n, 4 * n + 7])
def test_frames_are_solved_as_they_stand(folder, call, monkeypatch, samples):
    monkeypatch.setattr("pdunroll.restore.restore.BLOCK", 2)
    x = written(folder / "in.wav", pdunroll.quantize(sound(samples), 4), subtype="FLOAT")[:, 0]
    done = call(
        "restore", "in.wav", "out.wav", *"--operator dct.npy --bits 4 --shifts 1 --tolerance 1e-6 --weight 1".split()
    )
    assert done.status == 0, done.err
    assert f"{-(-samples // n)} of {-(-samples // n)} frames certified" in done.out

    starts = list(range(0, samples - n + 1, n))
    frames = [x[start : start + n] for start in starts]
    if rest := samples % n:
        frames.append(x[-n:] if samples > n else np.pad(x, (n - samples, 0), mode="symmetric"))
    found = pdunroll.solve(pdunroll.dct_operator(n, n), torch.from_numpy(np.stack(frames)), radius=1 / 16)
    expected = found.primal.numpy()
    expected = np.append(expected[: len(starts)], expected[-1][n - rest :] if rest else [])
    out, rate = soundfile.read(folder / "out.wav")
    assert rate == 16_000
    np.testing.assert_allclose(out, expected, atol=2e-4)  # certified to 1e-6 each, in batches of other sizes
    assert (np.abs(out - x) <= 1 / 16).all()


@pytest.mark.parametrize(
    ("rate", "source", "subtype", "target", "kind"),
    [
        (8000, "in.wav", "PCM_16", "out.wav", "mid-rise"),
        (11_025, "in.wav", "PCM_U8", "out.wav", "mid-tread"),
        (16_000, "in.flac", "PCM_16", "out.flac", "mid-rise"),
        (22_050, "in.wav", "FLOAT", "out.flac", "cut off"),
        (44_100, "in.wav", "PCM_24", "out.wav", "mid-tread"),
        (48_000, "in.flac", "PCM_24", "out.WAV", "cut off"),
        (48_000, "in.wav", "DOUBLE", "out.wav", "mid-rise"),
    ],
)
def test_every_sample_stays_in_its_cell(folder, call, rate, source, subtype, target, kind):
    truth = 0.9 * np.stack([sound(200 * n + 3, rate, seed) for seed in (0, 1)], axis=1)
    x, centre = ladder(kind, truth, 4)
    written(folder / source, x, rate, subtype)
    done = call("restore", source, target, "--operator", "dct.npy")
    assert done.status == 0, done.err
    assert f"channel 2: {kind}, " in done.out
    frames = 2 * (1 + (200 * n + 3 - n) // 4 + 1)  # 8 shifts of 4 samples, and a last frame that ends with the channel
    assert f"{frames} of {frames} frames certified" in done.out
    info = soundfile.info(folder / target)
    assert (info.samplerate, info.frames, info.channels) == (rate, len(x), 2)
    assert info.subtype == {"wav": "FLOAT", "flac": "PCM_24"}[target[-4:].strip(".").lower()]
    out = soundfile.read(folder / target)[0]
    assert (np.abs(out - centre) <= 1 / 16).all()


def test_shifts_average_the_optima_of_overlapping_frames(folder, call):
    x = written(folder / "in.wav", pdunroll.quantize(sound(6 * n), 4), subtype="FLOAT")[:, 0]
    done = call(
        "restore", "in.wav", "out.wav", *"--operator dct.npy --bits 4 --shifts 4 --tolerance 1e-6 --weight 1".split()
    )
    assert done.status == 0, done.err
    assert "21 of 21 frames certified" in done.out
    starts = range(0, 5 * n + 1, n // 4)
    frames = torch.from_numpy(np.stack([x[start : start + n] for start in starts]))
    found = pdunroll.solve(pdunroll.dct_operator(n, n), frames, radius=1 / 16).primal.numpy()
    results = np.full((len(starts), len(x)), np.nan)
    for row, start, frame in zip(results, starts, found, strict=True):
        row[start : start + n] = frame
    np.testing.assert_allclose(soundfile.read(folder / "out.wav")[0], np.nanmean(results, axis=0), atol=2e-4)


def test_blocks_do_not_change_the_result(folder, call, monkeypatch):
    written(folder / "in.wav", pdunroll.quantize(np.stack([sound(7 * n + 5), sound(7 * n + 5, seed=1)], axis=1), 4))
    written(folder / "clean.wav", np.stack([sound(7 * n + 5), sound(7 * n + 5, seed=1)], axis=1), subtype="DOUBLE")
    results = []
    for block in (1, 6, 1000):
        monkeypatch.setattr("pdunroll.restore.restore.BLOCK", block)
        options = "--operator dct.npy --tolerance 1e-7 --reference clean.wav"
        done = call("restore", "in.wav", "out.wav", *options.split())
        assert done.status == 0, done.err
        results.append((soundfile.read(folder / "out.wav")[0], re.findall(r"^SDR.*|^SI-SDR.*", done.out, re.M)))
    for out, scores in results[1:]:
        np.testing.assert_allclose(out, results[0][0], atol=2e-4)
        assert scores == results[0][1]


def test_listening_is_a_few_iterations_in_the_cells(folder, call):
    x = written(folder / "in.wav", pdunroll.quantize(sound(4 * n), 4), subtype="FLOAT")[:, 0]
    done = call("restore", "in.wav", "out.wav", *"--operator dct.npy --bits 4 --shifts 1 --for listening".split())
    assert done.status == 0, done.err
    assert "8 iterations for each of 4 frames, for listening" in done.out
    algorithm = chambolle_pock(pdunroll.dct_operator(n, n), radius=1 / 16, step_ratio=60.0, step_norm="spectral")
    iterates = algorithm.iterates(pdunroll.dct_operator(n, n), torch.from_numpy(x.reshape(4, n)).float())
    expected = next(itertools.islice(iterates, 7, None)).primal.numpy().ravel()
    out = soundfile.read(folder / "out.wav")[0]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert (np.abs(out - x) <= 1 / 16).all()


def test_scaled_recording_gives_the_scaled_result(folder, call):
    x = pdunroll.quantize(sound(10 * n), 4)
    results = []
    for scale in (1.0, 1 / 0.9375, 0.01):
        written(folder / "in.wav", scale * x, subtype="FLOAT")
        assert call("restore", "in.wav", "out.wav", "--operator", "dct.npy", "--tolerance", "1e-6").status == 0
        out = soundfile.read(folder / "out.wav")[0]
        assert (np.abs(out - scale * x) <= scale * (1 / 16 + 1e-6)).all()
        results.append(out / scale)
    np.testing.assert_allclose(results[1:], [results[0]] * 2, atol=2e-4)


def test_channels_have_cells_of_their_own(folder, call):
    wave = sound(4 * n)
    silence, one = np.zeros(4 * n), np.full(4 * n, 1.5 / 8)
    x = np.stack([pdunroll.quantize(wave, 4), 0.3 * pdunroll.quantize(wave, 2), silence, one], axis=1)
    written(folder / "in.wav", x, subtype="FLOAT")
    done = call("restore", "in.wav", "out.wav", "--operator", "dct.npy")
    assert done.status == 0, done.err
    for line in (r"1: mid-rise, \d+ levels 0\.125 ", "2: mid-rise, 4 levels 0.15 ", "3: silent", "4: mid-rise"):
        assert re.search(f"^channel {line}", done.out, re.M)
    out = soundfile.read(folder / "out.wav")[0]
    assert (out[:, 2] == 0).all()
    assert (np.abs(out - x) <= [1 / 16, 0.075 + 1e-8, 0, 1 / 16]).all()


def test_operator_that_comes_with_the_package(folder):
    """As a user would: in a process of its own, with the gain measured by hand."""
    truth = sound(16_000)
    x = written(folder / "in.wav", pdunroll.quantize(truth, 4))[:, 0]
    soundfile.write(folder / "truth.wav", truth, 16_000, subtype="DOUBLE")
    done = command("restore", "in.wav", "out.wav", "--reference", "truth.wav", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "393 of 393 frames certified to a relative duality gap of 0.01 " in done.stdout
    assert "trained on ieee at 4 bits and 16000 Hz\n" in done.stdout
    assert "393/393" in done.stderr  # the progress bar
    out = soundfile.read(folder / "out.wav")[0]
    measured = [10 * np.log10(np.sum(truth**2) / np.sum((truth - part) ** 2)) for part in (x, out)]
    numbers = re.search(r"^SDR +input +(\S+) dB, restored +(\S+) dB, gain \+(\S+) dB$", done.stdout, re.M).groups()
    assert [float(number) for number in numbers] == pytest.approx([*measured, measured[1] - measured[0]], abs=0.006)
    assert measured[1] > measured[0] + 3.0
    assert {path.name for path in folder.iterdir()} == {"dct.npy", "in.wav", "out.wav", "truth.wav"}


def test_distortion_in_blocks():
    truth = np.stack([sound(900), sound(900, seed=1)], axis=1)
    noise = np.random.default_rng(0).normal(size=truth.shape)
    noise -= truth * (noise * truth).sum(axis=0) / (truth**2).sum(axis=0)  # orthogonal, so that the best scale is known
    score = Distortion(2)
    for part in np.array_split(np.arange(900), 7):
        score.add(truth[part], 0.5 * truth[part] + 0.01 * noise[part])
    ratio = np.sum(truth**2) / np.sum(noise**2)
    assert score.scale_invariant_sdr() == pytest.approx(10 * np.log10(0.25 / 0.01**2 * ratio))
    assert score.sdr() == pytest.approx(10 * np.log10(1 / (0.25 + 0.01**2 / ratio)))
    perfect = Distortion(2)
    perfect.add(truth, truth)
    assert perfect.sdr() == pytest.approx(200)


@pytest.mark.parametrize("kind", ["mid-rise", "mid-tread", "cut off"])
@pytest.mark.parametrize(("bits", "scale"), [(2, 1.0), (3, 0.05), (4, 0.731), (6, 1.0), (8, 0.9)])
def test_the_cells_choose_weight_and_operator(kind, bits, scale):
    x = scale * ladder(kind, sound(20_000) * 0.99, bits)[0]
    choice = choose([infer_grid(*np.unique(x, return_counts=True), 1e-9), mid_rise(2)])
    assert choice == CHOICES[bits]
    assert 0 < choice.weight <= 1
    assert operators.load(choice.operator).matrix.shape == (320, 320)


def test_one_operator_serves_recordings_of_one_bit_too():
    assert choose([mid_rise(1)]) == CHOICES[2]._replace(bits=1)


@pytest.mark.parametrize(
    ("source", "target", "subtype"), [("in.wav", "out.flac", "PCM_16"), ("in.flac", "out.wav", "PCM_24")]
)
@pytest.mark.parametrize("options", ["", "--for listening"])
@pytest.mark.parametrize("kind", ["mid-rise", "cut off"])
def test_recordings_that_restoration_harms_are_passed_through(folder, call, kind, options, source, target, subtype):
    truth = np.stack([sound(70_000), 0.1 * sound(70_000, seed=1)], axis=1)
    x = written(folder / source, 0.99 * ladder(kind, truth, max(CHOICES) + 1)[0], subtype=subtype)
    written(folder / "clean.wav", truth, subtype="FLOAT")
    done = call("restore", source, target, "--reference", "clean.wav", *options.split())
    assert done.status == 0, done.err
    assert "passed through unchanged" in done.out
    assert re.search(r"^SDR +input .*, gain \+0\.00 dB$", done.out, re.M)
    assert "certified" not in done.out
    np.testing.assert_array_equal(soundfile.read(folder / target)[0], x)
    done = call("restore", source, target, *"--operator dct.npy --weight 0.5 --shifts 1".split(), *options.split())
    assert done.status == 0, done.err
    assert "passed through" not in done.out
    assert not np.array_equal(soundfile.read(folder / target)[0], x)


def test_a_weight_moves_the_result_to_the_middles_of_the_cells(folder, call):
    x = written(folder / "in.wav", pdunroll.quantize(sound(4 * n), 4), subtype="FLOAT")[:, 0]
    results = {}
    for weight in (None, 0, 0.5, 1):
        given = [] if weight is None else ["--weight", str(weight)]
        done = call("restore", "in.wav", "out.wav", "--operator", "dct.npy", "--bits", "4", *given)
        assert done.status == 0, done.err
        results[weight] = soundfile.read(folder / "out.wav")[0]
    np.testing.assert_array_equal(results[0], x)
    for weight in (0.5, None):
        share = CHOICES[4].weight if weight is None else weight
        np.testing.assert_allclose(results[weight], x + share * (results[1] - x), atol=1e-6)


def test_uncertified_frames_are_said(folder, call, monkeypatch):
    monkeypatch.setattr("pdunroll.core.solve.solve.__kwdefaults__", {"max_iterations": 30, "algorithm": None})
    x = written(folder / "in.wav", pdunroll.quantize(sound(3 * n), 4))[:, 0]
    done = call("restore", "in.wav", "out.wav", *"--operator dct.npy --shifts 1 --tolerance 1e-30".split())
    assert done.status == 0, done.err
    assert "0 of 3 frames certified" in done.out
    assert (np.abs(soundfile.read(folder / "out.wav")[0] - x) <= 1 / 16 + 2.0**-15).all()


def test_help_needs_no_torch():
    program = (
        "import sys; from pdunroll.__main__ import main; sys.argv = ['pdunroll', 'restore', '--help']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'librosa', 'soundfile'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in (
        "--operator FILE",
        "--bits N",
        "--reference FILE",
        "--shifts S",
        "--tolerance GAP",
        "--weight W",
        "--for {accuracy,listening}",
        "in its quantization cell",
    ):
        assert word in " ".join(done.stdout.replace("within", "in").split())


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def bad(folder):
    """The folder with good and bad files; a good call would be in.wav out.wav."""
    x = pdunroll.quantize(sound(4 * n), 4)
    written(folder / "in.wav", x)
    written(folder / "other.wav", x[:-1])
    written(folder / "fast.wav", x, rate=8000)
    written(folder / "stereo.wav", np.stack([x, x], axis=1))
    written(folder / "silent.wav", 0 * x)
    written(folder / "empty.wav", x[:0])
    written(folder / "constant.wav", 0 * x + 0.3)
    written(folder / "full.wav", sound(9000))
    written(folder / "loud.wav", 4 * x, subtype="FLOAT")
    written(folder / "nan.wav", np.where(np.arange(4 * n) == 77, np.nan, x), subtype="FLOAT")
    (folder / "cut.wav").write_bytes((folder / "in.wav").read_bytes()[:-50])
    (folder / "text.wav").write_text("no audio")
    np.save(folder / "vector.npy", np.ones(5, np.float32))
    np.save(folder / "whole.npy", np.ones((n, n), int))
    np.save(folder / "zero.npy", np.zeros((n, n)))
    np.save(folder / "object.npy", np.array([[{}]]), allow_pickle=True)
    np.savez(folder / "nameless.npz", np.ones((n, n)))
    (folder / "damaged.npz").write_bytes(operators.SHIPPED.read_bytes()[:2000])
    (folder / "folder.wav").mkdir()
    return folder


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", "input, output"),
        ("in.wav", "output"),
        ("in.wav out.wav more", "more"),
        ("in.wav out.wav --bit 4", "--bit"),
        ("in.wav out.wav --bits four", "--bits"),
        ("in.wav out.wav --bits 0", "--bits"),
        ("in.wav out.wav --bits 17", "--bits"),
        ("missing.wav out.wav", "missing.wav"),
        ("folder.wav out.wav", "folder.wav"),
        ("text.wav out.wav", "text.wav"),
        ("cut.wav out.wav", "cut.wav"),
        ("silent.wav out.wav", "silent"),
        ("silent.wav out.wav --bits 4", "silent"),
        ("empty.wav out.wav", "empty.wav is empty"),
        ("nan.wav out.wav", "nan.wav"),
        ("constant.wav out.wav", "--bits"),
        ("full.wav out.wav", "--bits"),
        ("loud.wav out.flac", "out.flac"),
        ("in.wav out.mp3", "out.mp3"),
        ("in.wav out", "out must"),
        ("in.wav folder.wav", "folder.wav"),
        ("in.wav nowhere/out.wav", "nowhere"),
        ("in.wav in.wav", "in.wav"),
        ("in.wav ./folder.wav/../in.wav", "in.wav"),
        ("in.wav other.wav --reference other.wav", "other.wav"),
        ("in.wav out.wav --operator missing.npy", "missing.npy"),
        ("in.wav out.wav --operator vector.npy", "vector.npy"),
        ("in.wav out.wav --operator whole.npy", "whole.npy"),
        ("in.wav out.wav --operator zero.npy", "zero.npy"),
        ("in.wav out.wav --operator object.npy", "object.npy"),
        ("in.wav out.wav --operator nameless.npz", "nameless.npz"),
        ("in.wav out.wav --operator damaged.npz", "damaged.npz"),
        ("in.wav out.wav --operator text.wav", "text.wav"),
        ("in.wav out.wav --reference missing.wav", "missing.wav"),
        ("in.wav out.wav --reference other.wav", "other.wav"),
        ("in.wav out.wav --reference fast.wav", "fast.wav"),
        ("in.wav out.wav --reference stereo.wav", "stereo.wav"),
        ("in.wav out.wav --shifts 0", "--shifts"),
        ("in.wav out.wav --operator dct.npy --shifts 33", "--shifts"),
        ("in.wav out.wav --shifts two", "--shifts"),
        ("in.wav out.wav --tolerance 0", "--tolerance"),
        ("in.wav out.wav --tolerance nan", "--tolerance"),
        ("in.wav out.wav --for listening --tolerance 1e-3", "--tolerance"),
        ("in.wav out.wav --weight 1.1", "--weight"),
        ("in.wav out.wav --weight nan", "--weight"),
        ("in.wav out.wav --declip --weight 1", "--weight"),
        ("in.wav out.wav --for fun", "--for"),
    ],
)
def test_bad_input_is_one_line(bad, call, arguments, named):
    before = {path: path.read_bytes() for path in bad.iterdir() if path.is_file()}
    done = call("restore", *arguments.split())
    assert done.status == 2
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("pdunroll: ")
    assert named in line
    assert {path: path.read_bytes() for path in bad.iterdir() if path.is_file()} == before


def test_interrupted_restoration_leaves_the_old_output(bad, call, monkeypatch):
    monkeypatch.setattr("pdunroll.restore.restore.BLOCK", 2)
    from pdunroll.restore.restore import restore

    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("no space left on device")
        return restore(*arguments)

    monkeypatch.setattr("pdunroll.restore.restore.restore", failing)
    (bad / "out.wav").write_bytes(b"old")
    before = sorted(bad.iterdir())
    done = call("restore", "in.wav", "out.wav", "--operator", "dct.npy")
    assert done.status == 2
    assert "out.wav cannot be written (no space left on device)" in done.err.splitlines()[-1]
    assert sorted(bad.iterdir()) == before
    assert (bad / "out.wav").read_bytes() == b"old"


# ---------------------------------------------------------------- operators as files


@pytest.mark.parametrize(
    ("path", "bits", "low", "high"),
    [
        (operators.SHIPPED, 4, 6e-4, 8e-4),
        (operators.LISTENING, 4, 7e-4, 9e-4),
        (CHOICES[7].operator, 7, 2e-5, 3e-5),
    ],
)
def test_shipped_operators_say_what_made_them(path, bits, low, high):
    shipped = operators.load(path)
    assert (shipped.matrix.shape, shipped.matrix.dtype) == ((320, 320), np.float32)
    for key in ("command", "data", "commit", "torch", "seed", "settings"):
        assert shipped.provenance[key] not in ("", None)
    assert (shipped.provenance["sample_rate"], shipped.provenance["bits"]) == (16_000, bits)
    assert low < shipped.provenance["validation_mse"] < high
    assert np.linalg.norm(shipped.matrix - pdunroll.dct_operator(320, 320).numpy()) > 1  # it has learned something


def test_operator_of_a_training(smoke, folder, call):
    cell = smoke / "multirun/smoke/full-active_set-frobenius-L10-seed0"
    record = json.loads((cell / "run.json").read_text())
    made = operators.from_run(cell, "the command")
    operators.save(folder / "own.npz", made)
    back = operators.load(folder / "own.npz")
    assert back.provenance == made.provenance
    assert back.provenance["command"] == "the command"
    assert back.provenance["validation_mse"] == record["results"]["validation_mse"]
    assert back.provenance["commit"] == record["environment"]["commit"]
    np.testing.assert_array_equal(back.matrix, np.load(cell / "operator.npy"))
    operators.save(folder / "small.npz", made, small=True)
    small = operators.load(folder / "small.npz").matrix
    assert small.dtype == np.float32
    np.testing.assert_array_equal(small, back.matrix.astype(np.float16))
    assert (folder / "small.npz").stat().st_size < 0.6 * (folder / "own.npz").stat().st_size

    written(folder / "in.wav", pdunroll.quantize(sound(200), 4))
    outputs = []
    for path in (folder / "own.npz", cell / "operator.npy"):
        done = call("restore", "in.wav", "out.wav", "--operator", str(path))
        assert done.status == 0, done.err
        assert "64 x 64, trained on synthetic at 4 bits and 16000 Hz\n" in done.out
        outputs.append((folder / "out.wav").read_bytes())
    assert outputs[0] == outputs[1]
    peaks = outputs[0].index(b"PEAK")
    assert outputs[0][peaks + 12 : peaks + 16] == bytes(4)  # where libsndfile writes the time of day


def test_unfinished_training_has_no_operator(folder):
    np.save(folder / "operator.npy", np.eye(4))
    assert operators.load(folder / "operator.npy").provenance == {}
    settings = {
        "seed": 0, "data": {"name": "mine", "bits": 4, "frame_length": 64}, "optimization": {},
        "network": {"iterations": 10, "step_norm": "frobenius"},
        "backprop": {"name": "full", "primal_mask": "active_set", "strategy": {"_target_": "pdunroll.Full"}},
    }  # fmt: skip
    record = {
        "status": "training", "digest": "", "settings": settings, "data": "", "code": "", "results": None,
        "environment": {},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    for attempt in (lambda: operators.load(folder / "operator.npy"), lambda: operators.from_run(folder, "c")):
        with pytest.raises(InputError, match="not a finished training"):
            attempt()
