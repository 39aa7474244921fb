"""Prepared frames are exactly the recordings' samples over their peak, quantized; storage is checked and whole."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

import pdunroll
from pdunroll.errors import InputError
from pdunroll.files import digest
from pdunroll.speech import quantizer
from pdunroll.speech.frames import Frames, load, prepare, read_manifest
from pdunroll.speech.sources import SPLITS, Recording

N = 16  # samples a frame


def int16(seed: int, count: int, *, quiet: int = 0) -> np.ndarray:
    """Noise whose loudest sample is negative; the first `quiet` samples are very quiet."""
    samples = np.random.default_rng(seed).integers(-20_000, 20_000, count).astype(np.int16)
    samples[:quiet] //= 100
    samples[quiet] = -21_000 - seed
    return samples


def float32(seed: int, count: int, *, quiet: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, count).astype(np.float32)
    samples[:quiet] /= 100
    samples[quiet] = 0.3 + 0.01 * seed
    return samples


def speech(kind=int16) -> list[Recording]:
    """Six recordings, with tails of 5, 0 and 15 samples; the splits come mixed."""
    return [
        Recording("test", "t/0", kind(0, 4 * N + 5, quiet=N)),
        Recording("train", "a/0", kind(1, 10 * N, quiet=3 * N)),
        Recording("validation", "v/0", kind(2, 2 * N + 15)),
        Recording("train", "a/1", kind(3, 7 * N + 15, quiet=2 * N + 3)),
        Recording("test", "t/1", kind(4, N)),
        Recording("train", "b/0", kind(5, N + 1)),
    ]


def mixed() -> list[Recording]:
    """Recordings of both kinds within a split."""
    return [(one if number % 2 else other) for number, (one, other) in enumerate(zip(speech(), speech(float32)))]  # noqa: B905


SOURCES = pytest.mark.parametrize("source", [speech, lambda: speech(float32), mixed], ids=["int16", "float32", "mixed"])


def expected(recordings: list[Recording], split: str, n: int = N) -> tuple[np.ndarray, list[int]]:
    """y (frames, n) in float64 and the file number of each frame, one sample after the other."""
    truth, numbers = [], []
    for number, recording in enumerate(recording for recording in recordings if recording.split == split):
        samples = [float(sample) for sample in recording.samples]
        peak = max(abs(sample) for sample in samples)
        for start in range(0, len(samples) - n + 1, n):
            truth.append([sample / peak for sample in samples[start : start + n]])
            numbers.append(number)
    return np.array(truth), numbers


def refusal(function, *arguments, **settings) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **settings)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@SOURCES
@pytest.mark.parametrize("bits", [1, 4, 8, 12])
def test_frames_are_exact(tmp_path, source, bits):
    recordings = source()
    prepare(recordings, tmp_path / "prepared", frame_length=N, bits=bits)
    for split in SPLITS:
        truth, numbers = expected(recordings, split)
        observation = pdunroll.quantize(truth, bits)
        step = 2.0 / 2**bits
        naive = [
            [(min(math.floor(sample / step), 2 ** (bits - 1) - 1) + 0.5) * step for sample in row] for row in truth
        ]
        np.testing.assert_array_equal(observation, naive)
        assert np.abs(truth - observation).max() <= quantizer.radius(bits)

        with np.load(tmp_path / "prepared" / f"{split}.npz") as stored:
            assert stored["codes"].dtype == (np.uint8 if bits <= 8 else np.uint16)
            np.testing.assert_array_equal(quantizer.decode(stored["codes"].astype(float), bits), observation)
            peak = stored["peak"][stored["file_number"], None]
            np.testing.assert_array_equal(stored["samples"].astype(np.float64) / peak, truth)

        frames = load(tmp_path / "prepared", split)
        assert isinstance(frames, Frames)
        assert frames.truth.dtype == frames.observation.dtype == np.float32
        assert frames.file.dtype == np.int64
        np.testing.assert_array_equal(frames.truth, truth.astype(np.float32))
        np.testing.assert_array_equal(frames.observation, observation.astype(np.float32))
        np.testing.assert_array_equal(frames.file, numbers)
        for number in set(numbers):
            assert np.abs(frames.truth[frames.file == number]).max() == 1.0


def test_recordings_are_stored_as_recorded(tmp_path):
    prepare(speech(), tmp_path / "prepared", frame_length=N, bits=4)
    for split in SPLITS:
        with np.load(tmp_path / "prepared" / f"{split}.npz") as stored:
            assert stored["samples"].dtype == np.int16
    prepare(speech(float32), tmp_path / "prepared", frame_length=N, bits=4)
    for split in SPLITS:
        with np.load(tmp_path / "prepared" / f"{split}.npz") as stored:
            assert stored["samples"].dtype == np.float32


def test_the_most_negative_sample_is_a_peak(tmp_path):
    recordings = [Recording(split, split, int16(number, N)) for number, split in enumerate(SPLITS)]
    recordings[0].samples[3] = -(2**15)
    manifest = prepare(recordings, tmp_path / "prepared", frame_length=N, bits=4)
    assert manifest["splits"]["train"]["files"][0]["peak"] == 2.0**15
    assert load(tmp_path / "prepared", "train").truth[0, 3] == -1.0


@SOURCES
@pytest.mark.parametrize("bits", [3, 4])
def test_manifest(tmp_path, source, bits):
    recordings = source()
    manifest = prepare(recordings, tmp_path / "prepared", frame_length=N, bits=bits)
    assert read_manifest(tmp_path / "prepared") == manifest
    assert manifest["settings"] == {"frame_length": N, "bits": bits, "sample_rate": 16_000}
    assert list(manifest["splits"]) == ["train", "validation", "test"]
    assert manifest["digest"] == digest({key: value for key, value in manifest.items() if key != "digest"})
    for split, content in manifest["splits"].items():
        own = [recording for recording in recordings if recording.split == split]
        assert [entry["name"] for entry in content["files"]] == [recording.name for recording in own]
        for entry, recording in zip(content["files"], own, strict=True):
            assert entry["samples"] == len(recording.samples)
            assert entry["frames"] == len(recording.samples) // N
            assert entry["peak"] == np.abs(recording.samples.astype(float)).max()
            assert entry["sha256"] == hashlib.sha256(recording.samples.tobytes()).hexdigest()

        truth, _ = expected(recordings, split)
        error = truth - pdunroll.quantize(truth, bits)
        assert content["frames"] == len(truth) == sum(entry["frames"] for entry in content["files"])
        assert content["quantized_mse"] == pytest.approx(float((error**2).sum() / error.size), rel=1e-12)
        snr = 10 * math.log10(float((truth**2).sum() / (error**2).sum()))
        assert content["quantized_snr_db"] == pytest.approx(snr, rel=1e-12)

        step = 2.0 / 2**bits
        trivial = 0
        for row in truth:
            trivial += all(-step <= sample < step for sample in row)
        assert content["trivial_share"] == trivial / len(truth)
    shares = [content["trivial_share"] for content in manifest["splits"].values()]
    assert 0 < shares[0] < 1
    assert shares[1] == 0


def test_frames_on_the_border_of_trivial(tmp_path):
    """At 4 bits Delta = 1/8, here 2000: the two middle cells hold -2000 but not 2000."""
    frames = np.zeros((4, N), np.int16)
    frames[0, 3] = -2000
    frames[1, 3] = 2000
    frames[2, 3] = 1999
    frames[3, 3] = 16_000
    recordings = [recording for recording in speech() if recording.split != "validation"]
    manifest = prepare(
        [*recordings, Recording("validation", "v", frames.ravel())], tmp_path / "prepared", frame_length=N, bits=4
    )
    assert manifest["splits"]["validation"]["trivial_share"] == 0.5


def test_samples_just_below_a_border_stay_below(tmp_path):
    """They would be on it, and in the cell above, if y were rounded to float32 before it is quantized."""
    peaks = np.random.default_rng(0).uniform(0.5, 1, 1000).astype(np.float32)
    below = np.nextafter((0.375 * peaks.astype(float)).astype(np.float32), np.float32(0))
    exact = below.astype(float) / peaks.astype(float)
    rounded = exact.astype(np.float32)
    (chosen,) = np.nonzero((exact < 0.375) & (rounded == 0.375))
    assert len(chosen) > 0
    samples = np.zeros(N, np.float32)
    samples[3], samples[5] = peaks[chosen[0]], below[chosen[0]]
    recordings = [recording for recording in speech() if recording.split != "validation"]
    prepare([*recordings, Recording("validation", "v", samples)], tmp_path / "prepared", frame_length=N, bits=4)
    assert load(tmp_path / "prepared", "validation").observation[0, 5] == 0.3125


@pytest.mark.parametrize("bits", [1, 4])
def test_all_cells_are_in_the_middle_at_one_bit(tmp_path, bits):
    manifest = prepare(speech(), tmp_path / "prepared", frame_length=N, bits=bits)
    assert (manifest["splits"]["validation"]["trivial_share"] == 1.0) == (bits == 1)


def test_same_recording_in_two_splits_is_refused(tmp_path):
    recordings = [*speech(), Recording("test", "copy", speech()[1].samples)]
    text = refusal(prepare, recordings, tmp_path / "prepared", frame_length=N, bits=4)
    for word in ("copy", "a/0", "train", "test"):
        assert word in text


def test_same_recording_twice_in_a_split_is_allowed(tmp_path):
    recordings = [*speech(), Recording("train", "copy", speech()[1].samples)]
    manifest = prepare(recordings, tmp_path / "prepared", frame_length=N, bits=4)
    assert [entry["name"] for entry in manifest["splits"]["train"]["files"]] == ["a/0", "a/1", "b/0", "copy"]
    frames = load(tmp_path / "prepared", "train")
    np.testing.assert_array_equal(frames.truth[frames.file == 0], frames.truth[frames.file == 3])


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("silent", np.zeros(3 * N, np.int16)),
        ("silent float", np.zeros(3 * N, np.float32)),
        ("short", int16(9, N - 1)),
        ("nothing", np.zeros(0, np.int16)),
    ],
)
def test_recordings_without_a_frame_of_sound_are_refused(tmp_path, name, samples):
    text = refusal(
        prepare, [*speech(), Recording("train", name, samples)], tmp_path / "prepared", frame_length=N, bits=4
    )
    assert text.startswith(f"{name} ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_needs_a_recording(tmp_path, split):
    recordings = [recording for recording in speech() if recording.split != split]
    assert split in refusal(prepare, recordings, tmp_path / "prepared", frame_length=N, bits=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"frame_length": 0, "bits": 4}, "data.frame_length"),
        ({"frame_length": 2.5, "bits": 4}, "data.frame_length"),
        ({"frame_length": N, "bits": 0}, "bits"),
        ({"frame_length": N, "bits": 33}, "bits"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, named):
    assert named in refusal(prepare, speech(), tmp_path / "prepared", **settings)


def test_same_recordings_give_the_same_bytes(tmp_path):
    first = prepare(speech(), tmp_path / "one", frame_length=N, bits=4)
    second = prepare(iter(speech()), tmp_path / "deep" / "two", frame_length=N, bits=4)
    assert first == second
    assert contents(tmp_path / "one") == contents(tmp_path / "deep" / "two")
    assert set(contents(tmp_path / "one")) == {"manifest.json", "train.npz", "validation.npz", "test.npz"}
    with zipfile.ZipFile(tmp_path / "one" / "train.npz") as archive:  # no dates that would differ the next day
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_digest_depends_on_samples_and_settings(tmp_path):
    def made(recordings, **settings):
        return prepare(recordings, tmp_path / "prepared", **{"frame_length": N, "bits": 4} | settings)["digest"]

    changed = speech()
    changed[1].samples[5] += 1
    renamed = [recording._replace(name=f"x/{recording.name}") for recording in speech()]
    digests = [made(speech()), made(changed), made(renamed), made(speech(), bits=5), made(speech(), frame_length=8)]
    assert len(set(digests)) == 5
    assert made(speech()) == digests[0]


def test_prepare_replaces_the_folder_as_a_whole(tmp_path):
    folder = tmp_path / "prepared"
    prepare(speech(), folder, frame_length=N, bits=4)
    prepare(speech(float32), folder, frame_length=N, bits=5)
    prepare(speech(float32), tmp_path / "fresh", frame_length=N, bits=5)
    assert contents(folder) == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "prepared"]


def test_a_refused_source_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "prepared"
    prepare(speech(), folder, frame_length=N, bits=4)
    before = contents(folder)

    def broken():
        yield from speech(float32)
        raise InputError("the last file is damaged")

    assert "damaged" in refusal(prepare, broken(), folder, frame_length=N, bits=4)
    refusal(prepare, [*speech(float32), Recording("test", "s", np.zeros(N))], folder, frame_length=N, bits=4)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_failing_to_write_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = tmp_path / "prepared"
    prepare(speech(), folder, frame_length=N, bits=4)
    before = contents(folder)
    savez = np.savez

    def full_disk(path, **arrays):
        if Path(path).name == "test.npz":
            raise OSError("No space left on device")
        savez(path, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full_disk)
        with pytest.raises(OSError, match="No space"):
            prepare(speech(float32), folder, frame_length=N, bits=4)
    assert contents(folder) == before
    prepare(speech(float32), folder, frame_length=N, bits=4)  # what the failed one left is no obstacle
    assert contents(folder) != before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.fixture
def prepared(tmp_path):
    prepare(speech(), tmp_path / "prepared", frame_length=N, bits=4)
    return tmp_path / "prepared"


@pytest.mark.parametrize("split", SPLITS)
def test_missing_or_damaged_frames_name_the_file(prepared, split):
    path = prepared / f"{split}.npz"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (bytes(flipped), content[:-10], b""):
        path.write_bytes(damaged)
        assert str(path) in refusal(load, prepared, split)
    path.unlink()
    text = refusal(load, prepared, split)
    assert str(path) in text
    assert "pdunroll prepare" in text
    for other in set(SPLITS) - {split}:
        assert len(load(prepared, other).truth)


def test_missing_manifest_names_the_file(prepared):
    (prepared / "manifest.json").unlink()
    for text in (refusal(load, prepared, "train"), refusal(read_manifest, prepared)):
        assert str(prepared / "manifest.json") in text
        assert "pdunroll prepare" in text


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe", b"half", b"[]", b"{}"])
def test_damaged_manifest_names_the_file(prepared, damaged):
    path = prepared / "manifest.json"
    path.write_bytes(path.read_bytes()[:-200] if damaged == b"half" else damaged)
    assert str(path) in refusal(load, prepared, "train")


def test_manifest_is_plain_json(prepared):
    def refuse(name):
        raise AssertionError(name)

    content = json.loads((prepared / "manifest.json").read_text(), parse_constant=refuse)
    assert content["splits"]["train"]["frames"] == 18


def test_a_split_whose_only_peak_is_in_the_dropped_tail(tmp_path):
    """Peaks are the file's, not the frames'; a split may hold hardly any signal."""
    samples = np.ones(N + 1, np.int16)
    samples[N] = 20_000
    recordings = [recording for recording in speech() if recording.split != "validation"]
    manifest = prepare(
        [*recordings, Recording("validation", "tail", samples)], tmp_path / "prepared", frame_length=N, bits=4
    )
    assert manifest["splits"]["validation"]["trivial_share"] == 1.0
    np.testing.assert_array_equal(load(tmp_path / "prepared", "validation").truth, np.float32(1 / 20_000))
