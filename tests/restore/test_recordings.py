"""Recordings and operator files at the ends of their formats are restored within their cells, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import pdunroll
from pdunroll.errors import InputError
from pdunroll.restore import operator_file as operators
from pdunroll.restore.restore import restore_file

WAVE = 0.9 * np.sin(np.arange(320) / 9)
DCT = pdunroll.dct_operator(16, 16).numpy()


@pytest.fixture
def restored(tmp_path):
    """Restore samples that are stored in float64: returns them as they are after it."""
    np.save(tmp_path / "dct.npy", DCT)

    def restored(samples, name: str = "in.wav", **options):
        soundfile.write(tmp_path / name, samples, 16_000, subtype="DOUBLE")
        options.setdefault("operator", tmp_path / "dct.npy")
        restore_file(tmp_path / "in.wav", tmp_path / "out.wav", **options)
        return soundfile.read(tmp_path / "out.wav", always_2d=True)[0]

    return restored


@pytest.mark.parametrize("scale", [1e-29, 1e-12, 1e12, 1e29])
def test_samples_stay_in_their_cells_whatever_the_scale(restored, scale):
    x = scale * pdunroll.quantize(WAVE, 4)
    assert (np.abs(restored(x)[:, 0] - x) <= scale / 16 * (1 + 1e-6)).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-40, 1e40, 1e200, 1e300])
@pytest.mark.parametrize("channels", [1, 2])
def test_scales_beyond_those_of_the_output_are_refused(restored, tmp_path, scale, channels):
    x = np.stack([pdunroll.quantize(WAVE, 4)] * channels, axis=1)
    x[:, -1] *= scale
    with pytest.raises(InputError, match=r"in\.wav has a channel with a peak of .*; scale it to a peak of 1 first"):
        restored(x)
    assert not (tmp_path / "out.wav").exists()


def test_a_reference_of_such_a_scale_is_refused(restored, tmp_path):
    soundfile.write(tmp_path / "reference.wav", 1e200 * WAVE, 16_000, subtype="DOUBLE")
    with pytest.raises(InputError, match=r"reference\.wav has a channel"):
        restored(pdunroll.quantize(WAVE, 4), reference=tmp_path / "reference.wav")


def test_the_optimum_at_one_bit_is_said_to_be_silence(restored, capsys):
    x = np.stack([0 * WAVE, pdunroll.quantize(WAVE, 1), pdunroll.quantize(WAVE, 4)], axis=1)
    assert (restored(x, weight=1.0)[:, :2] == 0).all()
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert notes == ["note: every cell of channel 2 contains 0, so that its optimum is silence"]
    restored(pdunroll.quantize(WAVE, 2))
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f8", "f2", np.longdouble])
def test_operators_of_any_floating_point_type_are_read(restored, tmp_path, dtype):
    np.save(tmp_path / "own.npy", DCT.astype(dtype))
    matrix = operators.load(tmp_path / "own.npy").matrix
    assert matrix.dtype in (np.float32, np.float64)
    assert matrix.dtype.isnative
    np.testing.assert_allclose(matrix, DCT, atol=1e-3)
    x = pdunroll.quantize(WAVE, 4)
    assert (np.abs(restored(x, operator=tmp_path / "own.npy")[:, 0] - x) <= 1 / 16).all()


def header_alone(path: Path) -> None:
    with path.open("wb") as file:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.write(bytes(100))


def provenance(text: str):
    def write(path: Path) -> None:
        np.savez(path.with_suffix(".npz"), operator=DCT, provenance=np.array(text))
        path.with_suffix(".npz").rename(path)

    return write


@pytest.mark.parametrize(
    "write",
    [
        header_alone,
        lambda path: np.save(path, np.full((4, 4), np.longdouble("1e4000"))),
        lambda path: np.save(path, np.full((4, 4), "text")),
        lambda path: np.save(path, np.eye(4, dtype=np.complex64)),
        provenance('{"data": "mine", "bits": "four"}'),
        provenance("[1, 2]"),
        provenance("[" * 100_000 + "]" * 100_000),
    ],
    ids=["1e6 x 1e6", "beyond float64", "text", "complex", "bits", "list", "nested"],
)
def test_operators_that_are_none_are_refused_in_one_line(tmp_path, write):
    path = tmp_path / "operator.npy"
    write(path)
    with pytest.raises(InputError) as caught:
        operators.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
