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
    from torch import Tensor


def radius(bits: int) -> float:
    """Return half the width of a cell, Delta / 2 = 2^-bits: the radius of the box that y is known to lie in.

    Args:
        bits: 1 to 32.

    Raises:
        InputError: for bits out of range.

    Examples:
        >>> from pdunroll.speech.quantizer import radius
        >>> radius(4)
        0.0625
    """
    return 2.0 ** -require_integer("bits", bits, 1, 32)


def encode(signal: Any, bits: int) -> Any:
    """Return the number of each sample's cell, 0 .. 2^bits - 1, as float64.

    Samples at or beyond the ends of [-1, 1] belong to the outermost cells, so y = 1 is in the highest one.

    Args:
        signal: a float64 array or tensor.
        bits: 1 to 32.
    """
    half = 1.0 / (2.0 * radius(bits))  # 2^(bits - 1), the number of cells below zero
    return (signal * half // 1).clip(-half, half - 1) + half


def decode(codes: Any, bits: int) -> Any:
    """Return the centres of the cells with these numbers (float64 in, float64 out)."""
    return (2.0 * codes + 1.0) * radius(bits) - 1.0


def quantize(signal: ArrayLike | Tensor, bits: int) -> Any:
    """Quantize samples in [-1, 1]: return the observation x of a ground truth y.

    Computes in float64, because rounding y first would move samples across borders.

    Args:
        signal: y, a floating-point array or tensor of any shape, or what NumPy makes an array of.
        bits: 1 to 32.

    Returns:
        An array or tensor like the signal: same shape, device and dtype.

    Raises:
        InputError: for NaN or infinite samples, for samples that are no floating-point numbers, and for bits out of
            range.

    Examples:
        >>> import pdunroll
        >>> pdunroll.quantize([-1.0, -0.3, 0.0, 0.9], bits=2)
        array([-0.75, -0.25,  0.25,  0.75])
    """
    tensor = hasattr(signal, "double")  # this way, arrays are quantized without importing torch
    array: Any = signal if tensor else np.asarray(signal)
    dtype = array.dtype
    if not (dtype.is_floating_point if tensor else np.issubdtype(dtype, np.floating)):
        raise InputError(f"signal must hold floating-point samples in [-1, 1], got {dtype}")
    signal64 = array.double() if tensor else array.astype(np.float64)
    finite = signal64.isfinite() if tensor else np.isfinite(signal64)
    if not finite.all():
        raise InputError("signal holds NaN or infinite samples, which have no quantization cell")
    centres = decode(encode(signal64, bits), bits)
    return centres.to(dtype) if tensor else centres.astype(dtype)
