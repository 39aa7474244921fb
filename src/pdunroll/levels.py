"""The quantization cells of a recording of low bit depth, found from the few values that its samples take.

A uniform quantizer leaves equidistant levels. What a file holds of them is often scaled (to its peak), rounded to the
16 bits that it is stored with, shifted, and not complete. Three kinds of quantizer are told apart:

    mid-rise   levels at odd multiples of half a step (`pdunroll.quantizer`), in the middle of their cells
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
CHANCE = 1e-2  # with which values that are no levels may pass for some


@dataclass(frozen=True)
class Grid:
    """Equidistant levels and their cells, which are a step wide; all in the units of the samples."""

    kind: str
    step: float
    lowest: float  # level
    count: int  # from the lowest to the highest level
    shift: float = 0.0  # from a level to the middle of its cell

    @property
    def radius(self) -> float:
        """Half the width of a cell."""
        return self.step / 2

    def centres(self, samples: NDArray) -> NDArray[np.float64]:
        """The middle of the cell that each sample lies in; beyond the ends it is the outermost cell."""
        numbers = np.floor((samples - self.lowest) / self.step + 0.5)  # on a border, as the quantizer: the upper cell
        return self.lowest + self.step * numbers.clip(0, self.count - 1) + self.shift

    def holds(self, values: NDArray, tolerance: float) -> bool:
        """Whether all these values are levels."""
        return bool((np.abs(self.centres(values) - self.shift - values) <= tolerance).all())

    def __str__(self) -> str:
        bits = 1.0 - math.log2(self.step)
        full_scale = f" (the {round(bits)}-bit quantizer on [-1, 1])" if bits == round(bits) else ""
        return f"{self.kind}, {self.count} levels {self.step:.6g} apart{full_scale}"


def mid_rise(bits: int) -> Grid:
    """The grid of `pdunroll.quantize`."""
    step = 2.0 ** (1 - bits)
    return Grid("mid-rise", step, step / 2 - 1.0, 2**bits)


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
            step, first, last = _regression(levels, gaps, closest / parts, phase)
            count = round((last - first) / step) + 1
            rest = levels - (first + step * np.rint((levels - first) / step))
            free = len(levels) - (2 if phase is None else 1)  # numbers that had to fit
            chance = MISSING * (4 * tolerance / step) ** free
            if count <= MOST_LEVELS and np.abs(rest).max() <= tolerance and chance <= CHANCE:
                return _at_full_scale(Grid(kind, step, first, count), levels, tolerance)
    return None


def _regression(levels: NDArray, gaps: NDArray, step: float, phase: float | None) -> tuple[float, float, float]:
    """Least squares of levels = step * (whole numbers + phase), or of a phase that is free: step, first and last."""
    anchor = int(np.abs(levels).argmin())
    for _ in range(3):  # a better step numbers distant levels better
        numbers = np.concatenate(([0.0], np.cumsum(np.rint(gaps / step))))
        if phase is None:
            step, origin = np.polyfit(numbers, levels, 1)
        else:
            numbers += np.rint(levels[anchor] / step - phase) + phase - numbers[anchor]
            step, origin = float(numbers @ levels) / max(float(numbers @ numbers), 0.25), 0.0
        if step <= 0:
            return math.inf, 0.0, 0.0
    return float(step), float(origin + step * numbers[0]), float(origin + step * numbers[-1])


def _at_full_scale(grid: Grid, levels: NDArray, tolerance: float) -> Grid:
    """The same grid without the errors of storage where its step is that of so many bits on [-1, 1]."""
    exact = 2.0 ** round(math.log2(grid.step))
    phase = {"mid-rise": 0.5, "mid-tread": 0.0}.get(grid.kind)
    if phase is None:
        return grid
    candidate = replace(grid, step=exact, lowest=exact * (round(levels[0] / exact - phase) + phase))
    return candidate if candidate.holds(levels, tolerance) else grid


def _cut_off(grid: Grid, levels: NDArray, counts: NDArray) -> Grid:
    """`grid` with its levels at the lower ends of the cells, if the sound is more symmetric to zero that way.

    With N(k) samples at level k, rounding makes N(k) and N(-k) alike, cutting off N(k) and N(-1-k). N(0) is left out:
    it holds digital silence, too.
    """
    numbers = np.rint(levels / grid.step).astype(int)
    reach = int(np.abs(numbers).max()) + 1
    histogram = np.zeros(2 * reach + 1)
    histogram[numbers + reach] = counts
    above, below = histogram[reach + 1 :], histogram[:reach][::-1]  # N(1), N(2), ... and N(-1), N(-2), ...
    rounded = np.abs(above - below).sum()
    cut = np.abs(above - np.append(below[1:], 0.0)).sum()
    return replace(grid, kind="cut off", shift=grid.step / 2) if cut < rounded else grid
