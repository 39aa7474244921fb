"""Clipped recordings: where they clip is found, clipped samples go beyond the level, all others stay as they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile

import pdunroll
from conftest import refused
from pdunroll.errors import InputError
from pdunroll.restore import recordings
from pdunroll.restore.declip import HEADROOM, TOLERANCE, Levels, declip_file, find_levels, restore_clipped

TIME = np.arange(1000)  # no multiple of a frame
WAVE = 0.5 * np.sin(TIME / 9) + 0.3 * np.sin(TIME / 5 + 1) + 0.15 * np.sin(TIME / 17)
LOUD = WAVE / np.abs(WAVE).max()


@pytest.fixture
def declipped(tmp_path):
    """Store samples in 16 bits and declip them: return input and output, (samples, channels) each."""
    np.save(tmp_path / "dct.npy", pdunroll.dct_operator(64, 64).numpy())

    def declipped(samples, subtype="PCM_16", **options):
        soundfile.write(tmp_path / "in.wav", samples, 16_000, subtype=subtype)
        declip_file(tmp_path / "in.wav", tmp_path / "out.wav", operator=tmp_path / "dct.npy", **options)
        return tuple(soundfile.read(tmp_path / name, always_2d=True)[0] for name in ("in.wav", "out.wav"))

    return declipped


def levels(samples, tmp_path, subtype="PCM_16"):
    soundfile.write(tmp_path / "levels.wav", samples, 16_000, subtype=subtype)
    return find_levels(recordings.scan(tmp_path / "levels.wav"))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_only_clipped_samples_change_and_go_beyond_the_level(declipped, subtype, scale):
    x, y = declipped(scale * LOUD.clip(-0.4, 0.4), subtype)
    low, high = x.min(), x.max()
    beyond = (x <= low) | (x >= high)
    assert 100 < beyond.sum() < 600
    assert np.array_equal(y[~beyond], x[~beyond])
    assert (y[x >= high] >= high).all()
    assert (y[x <= low] <= low).all()
    assert np.abs(y).max() <= HEADROOM * max(high, -low) * (1 + 1e-6)
    truth = scale * LOUD[:, None]
    assert ((y - truth) ** 2).sum() < 0.9 * ((x - truth) ** 2).sum()


def test_blocks_and_the_rest_at_the_end_change_nothing(declipped, monkeypatch):
    samples = np.stack((LOUD.clip(-0.4, 0.4), LOUD[::-1].clip(-0.3, 0.9)), axis=1)
    whole = declipped(samples)[1]
    monkeypatch.setattr("pdunroll.restore.declip.BLOCK", 4)
    np.testing.assert_allclose(declipped(samples)[1], whole, rtol=0, atol=1e-3)
    assert len(whole) == len(samples)


def test_levels_are_those_of_each_channel_and_side(tmp_path):
    below, above = LOUD.clip(-0.3, 2.0), LOUD.clip(-2.0, 0.25)
    found = levels(np.stack((below, above, LOUD.clip(-0.3, 0.25), 0.5 * LOUD, 0 * LOUD), axis=1), tmp_path, "FLOAT")
    low, high = float(np.float32(-0.3)), 0.25
    assert found == [
        Levels(low, math.inf), Levels(-math.inf, high), Levels(low, high),
        Levels(-math.inf, math.inf), Levels(-math.inf, math.inf),
    ]  # fmt: skip
    assert [str(own) for own in found[1:4]] == [
        "clipped above 0.25", "clipped below -0.3 and above 0.25", "not clipped",
    ]  # fmt: skip


def test_runs_across_the_blocks_that_are_read_are_seen(tmp_path):
    samples = np.zeros(3 * (1 << 16))
    for border in (1 << 16, 2 << 16):
        samples[border - 1 : border + 2] = 0.5
    assert levels(samples, tmp_path) == [Levels(-math.inf, 0.5)]
    samples[: 1 << 16] = 0.0
    samples[1 << 16] = 0.0
    assert levels(samples, tmp_path) == [Levels(-math.inf, math.inf)]  # one run is chance


def test_clipped_on_one_side_only():
    frames = LOUD[:960].reshape(-1, 64)
    clipped = np.minimum(frames, 0.4)
    beyond = (clipped >= 0.4).any(axis=1)
    y, gaps = restore_clipped(
        pdunroll.dct_operator(64, 64).numpy(), clipped[beyond], Levels(-math.inf, 0.4), precision=2.0**-16
    )
    assert (gaps <= TOLERANCE).all()
    assert np.array_equal(y[clipped[beyond] < 0.4], clipped[beyond][clipped[beyond] < 0.4])
    assert ((y - frames[beyond]) ** 2).sum() < ((clipped - frames)[beyond] ** 2).sum()


def test_the_level_can_be_said(declipped, tmp_path):
    with pytest.raises(InputError, match=r"in\.wav does not clip: .* by --level"):
        declipped(0.9 * LOUD)
    x, y = declipped(0.9 * LOUD, level=0.6)
    assert (np.abs(x[x != y]) >= 0.6).all()
    assert (x != y).any()


def test_the_summary_has_levels_and_scores(declipped, tmp_path, capsys):
    soundfile.write(tmp_path / "truth.wav", LOUD, 16_000, subtype="FLOAT")
    declipped(LOUD.clip(-0.5, 0.5), reference=tmp_path / "truth.wav")
    out = capsys.readouterr().out
    assert "channel 1: clipped below -0.5 and above 0.5" in out
    assert "clipped samples in" in out
    assert float(out.partition("gain ")[2].split()[0]) > 0.5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["in.wav", "out.flac", "--declip"], ["out.flac", ".wav"]),
        (["in.wav", "out.wav", "--declip", "--bits", "4"], ["--bits", "--declip"]),
        (["in.wav", "out.wav", "--level", "0.5"], ["--level", "--declip"]),
        (["in.wav", "out.wav", "--declip", "--level", "0"], ["--level"]),
        (["in.wav", "out.wav", "--declip", "--level", "nan"], ["--level"]),
        (["fine.wav", "out.wav", "--declip"], ["fine.wav", "does not clip"]),
    ],
    ids=lambda part: " ".join(part),
)
def test_misuse_is_one_line(call, tmp_path, arguments, named):
    soundfile.write(tmp_path / "in.wav", LOUD.clip(-0.5, 0.5), 16_000)
    soundfile.write(tmp_path / "fine.wav", 0.9 * LOUD, 16_000)
    refused(call("restore", *arguments), *named)
    assert not (tmp_path / "out.wav").exists()
