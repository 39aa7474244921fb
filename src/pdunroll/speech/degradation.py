"""What becomes of clean speech, and what is then known of it: quantized, clipped or missing samples.

A sample of a signal in [-1, 1] is clipped where it is at the level or beyond, missing where it was lost, and quantized
(`pdunroll.speech.quantizer`) elsewhere. From the number that is stored of it follow the observation x and the bounds
lower <= y <= upper of the true sample:

    quantized   x is the centre of the cell, and the cell is what y lies in, up to the level
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

MISSING, BELOW, ABOVE = 0, 1, 2  # numbers after those of the cells
FINE = 16  # bits of a recording that counts as not quantized


class Observed(NamedTuple):
    """What is known of a signal, in float64; all of its shape."""

    observation: NDArray[np.float64]  # x
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True)
class Degradation:
    """A quantizer, behind a clipper and with samples lost.

    Attributes:
        bits: of the quantizer, 1 to 32; 16 where a recording's samples are known as they are.
        level: where samples are clipped, between 0 and 1 (full scale); None if they are not.
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
        """The settings besides `bits` that are in use."""
        return {name: value for name in ("level", "missing") if (value := getattr(self, name))}

    @property
    def name(self) -> str:
        """What the observed signal is called in tables and figures, such as "quantized" or "clipped"."""
        words = ["quantized"] if self.bits < FINE or not self.beyond_quantization else []
        words += ["clipped"] if self.level else []
        words += ["incomplete"] if self.missing else []
        return " and ".join(words)

    def encode(self, signal: NDArray[np.float64], seed: int = 0) -> NDArray:
        """Return the number that is stored of each sample; those that are lost are drawn with the seed."""
        codes, after = quantizer.encode(signal, self.bits), 2**self.bits
        if self.level is not None:
            codes = np.where(signal <= -self.level, after + BELOW, np.where(signal >= self.level, after + ABOVE, codes))
        if self.missing:
            codes = np.where(np.random.default_rng(seed).random(signal.shape) < self.missing, after + MISSING, codes)
        return codes.astype(np.min_scalar_type(after + ABOVE if self.beyond_quantization else after - 1))

    def decode(self, codes: NDArray) -> Observed:
        """Return what is known of the samples with these numbers."""
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
