"""What is known of degraded samples holds of the true ones, whatever the settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pdunroll
from pdunroll.speech.degradation import Degradation
from pdunroll.speech.frames import load, prepare, read_manifest
from pdunroll.speech.sources import Recording

N = 64
SETTINGS = {
    "quantized": {"bits": 4},
    "clipped": {"bits": 16, "level": 0.2},
    "incomplete": {"bits": 16, "missing": 0.5},
    "quantized and clipped": {"bits": 4, "level": 0.2},
}


def speech():
    wave = np.sin(np.arange(12 * N) / 7) * np.linspace(0.1, 1, 12 * N)
    return [
        Recording(split, f"{split}.wav", np.rint(20_000 * wave * factor).astype(np.int16))
        for split, factor in (("train", 1.0), ("validation", 0.9), ("test", 0.8))
    ]


@given(
    bits=st.integers(1, 20),
    level=st.none() | st.floats(0.01, 0.99),
    missing=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 99),
)
def test_true_samples_are_within_the_bounds(bits, level, missing, seed):
    y = np.random.default_rng(seed).uniform(-1, 1, (5, 30))
    degradation = Degradation(bits, level, missing)
    codes = degradation.encode(y, seed)
    x, lower, upper = degradation.decode(codes)
    assert np.array_equal(codes, degradation.encode(y, seed))
    assert ((lower <= y) & (y <= upper) & (lower < upper)).all()
    assert ((lower <= x) & (x <= upper)).all()
    if level is not None:
        at, lost = np.abs(y) >= level, (lower == -1) & (upper == 1) & (x == 0)
        assert np.array_equal(np.abs(x[at & ~lost]), np.full(int((at & ~lost).sum()), level))
    if not degradation.beyond_quantization:
        assert np.array_equal(x, pdunroll.quantize(y, bits))


def test_names_say_what_was_done():
    assert {Degradation(**settings).name for settings in SETTINGS.values()} == set(SETTINGS)
    assert Degradation(16).name == "quantized"
    for settings in ({"level": 1.0}, {"level": 0.0}, {"missing": 1.0}, {"bits": 0}):
        with pytest.raises(pdunroll.InputError, match=next(iter(settings))):
            Degradation(**settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_prepared_frames_have_boxes_that_hold_the_truth(tmp_path, name):
    manifest = prepare(speech(), tmp_path / "prepared", frame_length=N, **SETTINGS[name])
    assert SETTINGS[name].items() <= read_manifest(tmp_path / "prepared")["settings"].items()
    frames = load(tmp_path / "prepared", "test")
    box, truth = frames.box(np.arange(12)), torch.from_numpy(frames.truth)
    assert ((truth >= box.lower - 1e-6) & (truth <= box.upper + 1e-6)).all()
    torch.testing.assert_close(box.start, torch.from_numpy(frames.observation), rtol=0, atol=1e-6)
    assert box.uniform == (name == "quantized")
    assert manifest["splits"]["test"]["quantized_mse"] == pytest.approx(
        np.mean((frames.truth - frames.observation) ** 2)
    )
    trivial = ((box.lower <= 0) & (box.upper >= 0)).all(dim=1).double().mean()
    assert manifest["splits"]["test"]["trivial_share"] == pytest.approx(float(trivial))
    found = pdunroll.solve(pdunroll.dct_operator(N, N), box, tolerance=1e-4)
    assert (found.gap <= 1e-4).all()


def test_what_is_lost_depends_on_the_recording_only(tmp_path):
    first = prepare(speech(), tmp_path / "one", frame_length=N, bits=16, missing=0.3)
    second = prepare(speech()[::-1], tmp_path / "two", frame_length=N, bits=16, missing=0.3)
    assert first["splits"]["test"] == second["splits"]["test"]
    assert first["digest"] != prepare(speech(), tmp_path / "two", frame_length=N, bits=16, missing=0.4)["digest"]
