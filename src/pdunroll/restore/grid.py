"""The quantization cells of a recording of low bit depth, found from the few values that its samples take.

A uniform quantizer leaves equidistant levels. What a file holds of them is often scaled (to its peak), rounded to the
16 bits that it is stored with, shifted, and not complete. Three kinds of quantizer are told apart:

    mid-rise   levels at odd multiples of half a step (`pdunroll.speech.quantizer`), in the middle of their cells
    mid-tread  levels at multiples of a step, one of them 0, in the middle of their cells: rounding tools
    cut off    levels at multiples of a step at the lower ends of their cells: tools that clear the lowest bits

The last two have the same levels. Sound is about symmetric to zero, and so tells which of them its levels belong to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

MOST_LEVELS = 4096  # of 12 bits: above that a recording is not of low bit depth
MISSING = 6  # at most so many steps apart are the closest two levels
PRECISION = 4e-7  # of numbers that went through float32, relative to the peak
MEAN_WEIGHT = 4.0  # with it, 1 of 2 x 54 x 5 cases was wrong on IEEE sentences at 2 to 6 bits
CHANCE = 1e-2  # with which values that are no levels may pass for some


@dataclass(frozen=True)
class Grid:
    """Equidistant levels and their cells, which are a step wide."""

    kind: str
    step: float  # in the units of the samples
    lowest: float  # level, in steps: a whole number and a half for mid-rise, a whole number for mid-tread, exactly
    count: int  # from the lowest to the highest level
    shift: float = 0.0  # from a level to the middle of its cell, in steps

    @property
    def radius(self) -> float:
        """Half the width of a cell."""
        return self.step / 2

    @property
    def zero_is_everywhere(self) -> bool:
        """Whether 0 is in every cell, so that the sparsest signal in them is silence."""
        lowest = self.lowest + self.shift
        return lowest >= -0.5 and lowest + self.count - 1 <= 0.5

    def middles(self, samples: NDArray) -> NDArray[np.float64]:
        """The middle, in steps, of the cell that each sample lies in; beyond the ends it is the outermost cell."""
        numbers = np.floor(samples / self.step - self.lowest + 0.5)  # on a border, as the quantizer: the upper cell
        return numbers.clip(0, self.count - 1) + (self.lowest + self.shift)

    def centres(self, samples: NDArray) -> NDArray[np.float64]:
        """The same in the units of the samples."""
        return self.step * self.middles(samples)

    def holds(self, values: NDArray, tolerance: float) -> bool:
        """Whether all these values are levels."""
        return bool((np.abs(self.centres(values) - self.step * self.shift - values) <= tolerance).all())

    def __str__(self) -> str:
        bits = 1.0 - math.log2(self.step)
        full_scale = f" (the {round(bits)}-bit quantizer on [-1, 1])" if bits == round(bits) else ""
        return f"{self.kind}, {self.count} levels {self.step:.6g} apart{full_scale}"


def mid_rise(bits: int) -> Grid:
    """The grid of `pdunroll.quantize`."""
    return Grid("mid-rise", 2.0 ** (1 - bits), 0.5 - 2.0 ** (bits - 1), 2**bits)


def find(levels: NDArray, counts: NDArray, rounding: float) -> Grid | None:
    """The grid of the coarsest uniform quantizer whose levels these are, or None if there is none.

    Args:
        levels: the values that a channel's samples take, ascending  (k,)
        counts: how many samples have each of them  (k,)
        rounding: the error that the levels may have from being stored, such as one unit of 16-bit samples.
    """
    if len(levels) < 2:
        return None
    levels = levels.astype(np.float64)
    for tolerance in (rounding, PRECISION * float(np.abs(levels).max())):
        if (grid := _fit(levels, tolerance)) is not None:
            return _cut_off(grid, levels, counts) if grid.kind == "mid-tread" else grid
    return None


def _fit(levels: NDArray, tolerance: float) -> Grid | None:
    gaps = np.diff(levels)
    closest = gaps[gaps < 1.5 * gaps.min()].mean()
    for parts in range(1, MISSING + 1):
        if closest / parts < 8 * tolerance:
            return None
        for kind, phase in (("mid-rise", 0.5), ("mid-tread", 0.0), ("shifted", None)):
            grid = _regression(levels, gaps, closest / parts, phase, kind)
            fitted = len(levels) - (2 if phase is None else 1)  # numbers that could have failed to fit
            chance = MISSING * (4 * tolerance / grid.step) ** fitted
            if grid.count <= MOST_LEVELS and chance <= CHANCE and grid.holds(levels, tolerance):
                exact = replace(grid, step=2.0 ** round(math.log2(grid.step)))  # full scale, without errors of storage
                return exact if phase is not None and exact.holds(levels, tolerance) else grid
    return None


def _regression(levels: NDArray, gaps: NDArray, step: float, phase: float | None, kind: str) -> Grid:
    """Least squares of levels = step * (whole numbers + phase), with the phase given or free."""
    anchor = int(np.abs(levels).argmin())
    for _ in range(3):  # a better step numbers distant levels better
        numbers = np.concatenate(([0.0], np.cumsum(np.rint(gaps / step))))
        if phase is None:
            step, origin = (float(part) for part in np.polyfit(numbers, levels, 1))
            numbers += origin / step
        else:
            numbers += np.rint(levels[anchor] / step - phase) + phase - numbers[anchor]
            step = float(numbers @ levels) / float(numbers @ numbers)
        if step <= 0.0:
            return Grid(kind, math.inf, 0.0, 1)
    return Grid(kind, step, float(numbers[0]), round(numbers[-1] - numbers[0]) + 1)


def _cut_off(grid: Grid, levels: NDArray, counts: NDArray) -> Grid:
    """`grid` with its levels at the lower ends of the cells, if the sound is more like sound that way.

    Two signs are weighed. Sound is about symmetric to zero: with N(k) samples at level k, rounding makes N(k) and N(-k)
    alike, cutting off N(k) and N(-1-k). And its mean is about zero: that of k is then about 0 or at most -1/2. Level 0
    is left out of both, it holds digital silence, too. Speech is skew-free enough for the first but may have a small
    offset, tones the other way round; a recording at 7 bits or more whose offset is half a step counts as rounded.
    """
    numbers = np.rint(levels / grid.step).astype(int)
    reach = int(np.abs(numbers).max()) + 1
    histogram = np.zeros(2 * reach + 1)
    histogram[numbers + reach] = counts
    above, below = histogram[reach + 1 :], histogram[:reach][::-1]  # N(1), N(2), ... and N(-1), N(-2), ...
    rounded = np.abs(above - below).sum()
    cut = np.abs(above - np.append(below[1:], 0.0)).sum()
    mean = float(numbers @ counts) / max(float(counts[numbers != 0].sum()), 1.0)
    evidence = math.log2((rounded + 1.0) / (cut + 1.0)) + MEAN_WEIGHT * (-0.25 - mean)
    return replace(grid, kind="cut off", shift=0.5) if evidence > 0 else grid
