"""The quantizer against exact fractions, and the package's front door."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

import pdunroll
from pdunroll.speech.quantizer import radius


def exact(y: float, bits: int) -> Fraction:
    """The centre of the cell of y, in exact arithmetic; the outermost cells take what lies beyond."""
    delta = Fraction(2, 2**bits)
    cell = math.floor(Fraction(y) / delta)
    cell = min(max(cell, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    return (cell + Fraction(1, 2)) * delta


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16, 24, 32])
def test_against_exact_fractions(bits):
    delta = 2.0 / 2**bits
    borders = [k * delta for k in (-3, -2, -1, 0, 1, 2, 3) if abs(k * delta) <= 1]
    samples = [1.0, -1.0, 0.0, -0.0, 1.5, -7.0, 0.3, -0.3, 1 / 3, 5e-324, -5e-324]
    samples += [value for border in borders for value in (border, np.nextafter(border, -2), np.nextafter(border, 2))]
    samples += [np.nextafter(1.0, 0), np.nextafter(-1.0, 0), *np.random.default_rng(0).uniform(-1, 1, 200)]
    y = np.array(samples)
    assert pdunroll.quantize(y, bits).tolist() == [float(exact(value, bits)) for value in samples]
    inside = np.abs(y) <= 1
    assert (np.abs(y - pdunroll.quantize(y, bits))[inside] <= radius(bits)).all()


def test_there_are_as_many_levels_as_bits_allow():
    y = np.linspace(-1.2, 1.2, 10_001)
    for bits in (1, 4, 6):
        levels = np.unique(pdunroll.quantize(y, bits))
        assert len(levels) == 2**bits
        assert levels[-1] == 1 - radius(bits) == -levels[0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_arrays_and_tensors_of_any_shape_keep_their_kind(dtype, shape):
    y = np.random.default_rng(1).uniform(-1, 1, shape).astype(dtype)
    array, tensor = pdunroll.quantize(y, 4), pdunroll.quantize(torch.as_tensor(y), 4)
    assert array.shape == tensor.shape == shape
    assert array.dtype == dtype
    assert tensor.dtype == getattr(torch, dtype)
    assert np.array_equal(tensor.numpy(), array)
    assert np.array_equal(array, pdunroll.quantize(y.astype(np.float64), 4).astype(dtype))


def test_lists_are_arrays():
    assert pdunroll.quantize([0.0, -0.9], 1).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("bits", [0, 33, -1, 4.0, True, "4", None])
def test_bad_bits(bits):
    with pytest.raises(pdunroll.InputError, match="bits"):
        pdunroll.quantize(np.zeros(3), bits)


@pytest.mark.parametrize("signal", [[0.1, math.nan], [math.inf], [-math.inf]])
def test_samples_that_are_not_finite(signal):
    for kind in (np.array, torch.tensor):
        with pytest.raises(pdunroll.InputError, match="NaN or infinite"):
            pdunroll.quantize(kind(signal), 4)


@pytest.mark.parametrize("signal", [np.array([1, 2]), torch.tensor([1, 2]), np.array(["a"])])
def test_samples_that_are_no_floating_point_numbers(signal):
    with pytest.raises(pdunroll.InputError, match="floating-point"):
        pdunroll.quantize(signal, 4)


def test_import_is_light_and_names_are_there():
    program = (
        "import sys, pdunroll; assert not {'torch', 'numpy', 'hydra'} & set(sys.modules); "
        "assert set(pdunroll.__all__) <= set(dir(pdunroll)); [getattr(pdunroll, name) for name in pdunroll.__all__]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="unrol"):
        pdunroll.unrol  # noqa: B018
