"""Degradations of clean speech: quantized, clipped and missing samples, and the bounds of the true samples.

The signal is in [-1, 1]. A sample at the clipping level or beyond is clipped, a lost sample is missing, and all others
are quantized (`pdunroll.speech.quantizer`). Each sample is stored as a code, which gives the observation x and bounds
lower <= y <= upper of the true sample:

    quantized   x is the centre of the cell, and y is in the cell, up to the level
    clipped     x is the level, and y is between it and full scale
    missing     x is 0, and y is anywhere in [-1, 1]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pdunroll.errors import require_integer, require_share, require_within
from pdunroll.speech import quantizer

MISSING, BELOW, ABOVE = 0, 1, 2  # codes that follow those of the cells
FINE = 16  # bits from which on a recording counts as not quantized


class Observed(NamedTuple):
    """The observation and the bounds of a signal, each an array of its shape."""

    observation: NDArray[np.float64]  # x
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True)
class Degradation:
    """Clipping, quantization and loss of samples.

    Attributes:
        bits: bits of the quantizer, 1 to 32; 16 for recordings that count as not quantized.
        level: the clipping level, between 0 and 1 (full scale); None for no clipping.
        missing: the share of samples that are lost, drawn independently; 0 to 0.99.

    Raises:
        InputError: for settings out of range.

    Example:
        >>> import numpy as np
        >>> from pdunroll.speech.degradation import Degradation
        >>> clipped = Degradation(bits=2, level=0.4)
        >>> clipped.name
        'quantized and clipped'
        >>> x, lower, upper = clipped.decode(clipped.encode(np.array([-0.9, -0.1, 0.7])))
        >>> x, lower, upper
        (array([-0.4, -0.2,  0.4]), array([-1. , -0.4,  0.4]), array([-0.4,  0. ,  1. ]))
    """

    bits: int = 4
    level: float | None = None
    missing: float = 0.0

    def __post_init__(self) -> None:
        require_integer("bits", self.bits, 1, 32)
        if self.level is not None:
            require_share("level", self.level)
        require_within("missing", self.missing, 0.0, 0.99)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return the degradation that a manifest or a training's settings describe."""
        return cls(settings["bits"], settings.get("level"), settings.get("missing", 0.0))

    @property
    def beyond_quantization(self) -> dict[str, Any]:
        """The settings besides `bits` that differ from their defaults."""
        return {name: value for name in ("level", "missing") if (value := getattr(self, name))}

    @property
    def name(self) -> str:
        """The name of the observed signal in tables and figures, such as "quantized" or "clipped"."""
        words = ["quantized"] if self.bits < FINE or not self.beyond_quantization else []
        words += ["clipped"] if self.level else []
        words += ["incomplete"] if self.missing else []
        return " and ".join(words)

    def encode(self, signal: NDArray[np.float64], seed: int = 0) -> NDArray:
        """Return the code of each sample; the seed determines which samples are lost."""
        codes, after = quantizer.encode(signal, self.bits), 2**self.bits
        if self.level is not None:
            codes = np.where(signal <= -self.level, after + BELOW, np.where(signal >= self.level, after + ABOVE, codes))
        if self.missing:
            codes = np.where(np.random.default_rng(seed).random(signal.shape) < self.missing, after + MISSING, codes)
        return codes.astype(np.min_scalar_type(after + ABOVE if self.beyond_quantization else after - 1))

    def decode(self, codes: NDArray) -> Observed:
        """Return the observation and the bounds of samples with these codes."""
        numbers, radius, after = codes.astype(np.float64), quantizer.radius(self.bits), 2**self.bits
        centre = quantizer.decode(numbers, self.bits)
        most = 1.0 if self.level is None else self.level
        lower, upper = np.maximum(centre - radius, -most), np.minimum(centre + radius, most)
        found = Observed((lower + upper) / 2 if self.level else centre, lower, upper)
        for number, known in ((MISSING, (0.0, -1.0, 1.0)), (BELOW, (-most, -1.0, -most)), (ABOVE, (most, most, 1.0))):
            where = numbers == after + number
            for array, value in zip(found, known, strict=True):
                array[where] = value
        return found
