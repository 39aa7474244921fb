"""Uniform mid-rise quantization of signals in [-1, 1].

With `bits` bits there are 2^bits cells of width Delta = 2 / 2^bits; x is the centre of the cell that y lies in, so
|y - x| <= Delta / 2. Zero is a border: y = 0 (and -0.0) belongs to the cell above it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pdunroll.errors import InputError, require_integer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def radius(bits: int) -> float:
    """Half the width of a cell, Delta / 2 = 2^-bits: the radius of the box that y is known to lie in."""
    return 2.0 ** -require_integer("bits", bits, 1, 32)


def encode(signal: Any, bits: int) -> Any:
    """The number of each sample's cell, 0 .. 2^bits - 1, as float64; `signal` is a float64 array or tensor.

    Samples at or beyond the ends of [-1, 1] go to the outermost cells, so y = 1 is in the highest one.
    """
    half = 1.0 / (2.0 * radius(bits))  # 2^(bits - 1), the number of cells below zero
    return (signal * half // 1).clip(-half, half - 1) + half


def decode(codes: Any, bits: int) -> Any:
    """The centres of the cells with these numbers (float64 in, float64 out)."""
    return (2.0 * codes + 1.0) * radius(bits) - 1.0


def quantize(signal: ArrayLike, bits: int) -> Any:
    """Quantize samples in [-1, 1] to `bits` bits (1 .. 32): the observation x of a ground truth y.

    Takes an array (or what NumPy makes one of) or a tensor, of any shape, and returns its like: same shape,
    device and floating dtype. Computes in float64, because rounding y first would move samples across borders.
    Raises `InputError` for NaN or infinite samples and for bits out of range.
    """
    if hasattr(signal, "double"):  # a tensor, without importing torch for those who have none
        wide, dtype = signal.double(), signal.dtype
        if not dtype.is_floating_point:
            raise InputError(f"signal must hold floating-point samples in [-1, 1], got {dtype}")
        finite = bool(wide.isfinite().all())
    else:
        array = np.asarray(signal)
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"signal must hold floating-point samples in [-1, 1], got {array.dtype}")
        wide, dtype = array.astype(np.float64), array.dtype
        finite = bool(np.isfinite(wide).all())
    if not finite:
        raise InputError("signal holds NaN or infinite samples, which have no quantization cell")
    centres = decode(encode(wide, bits), bits)
    return centres.to(dtype) if hasattr(signal, "double") else centres.astype(dtype)
