"""The quantization cells of a recording of low bit depth, inferred from the few values that its samples take.

A uniform quantizer leaves evenly spaced levels. In a file they are often scaled (to its peak), rounded to 16 bits or
shifted, and some do not occur. Three kinds of quantizer are told apart:

    mid-rise   levels at odd multiples of half a step (`pdunroll.speech.quantizer`), in the middle of their cells
    mid-tread  levels at multiples of a step, one of them 0, in the middle of their cells: rounding tools
    cut off    levels at multiples of a step at the lower ends of their cells: tools that clear the lowest bits

The last two have the same levels; the counts tell them apart, because sound is nearly symmetric about zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

MAX_LEVELS = 4096  # 12 bits; a recording with more levels is not of low bit depth
MAX_STEPS_APART = 6  # the closest two levels are at most this many steps apart
FLOAT32_ERROR = 4e-7  # error of levels that were stored as float32, relative to the peak
MEAN_WEIGHT = 4.0  # weight of the mean in `_cut_off`; with it 1 of 540 cases was wrong (IEEE, 2 to 6 bits)
MAX_CHANCE = 1e-2  # the greatest probability with which arbitrary values may pass for levels


@dataclass(frozen=True)
class Grid:
    """Evenly spaced levels and their cells, which are one step wide.

    Attributes:
        kind: "mid-rise", "mid-tread", "cut off", "shifted" or "silent".
        step: the width of a cell, in the units of the samples.
        lowest: the lowest level, in steps: a whole number and a half for mid-rise, a whole number for mid-tread.
        count: the number of levels from the lowest to the highest.
        shift: the distance from a level to the middle of its cell, in steps.

    Examples:
        >>> import numpy as np
        >>> from pdunroll.restore.grid import mid_rise
        >>> grid = mid_rise(bits=2)
        >>> print(grid)
        mid-rise, 4 levels 0.5 apart (the 2-bit quantizer on [-1, 1])
        >>> grid.centres(np.array([-1.0, 0.1, 0.9]))
        array([-0.75,  0.25,  0.75])
    """

    kind: str
    step: float
    lowest: float
    count: int
    shift: float = 0.0

    @property
    def radius(self) -> float:
        """Return half the width of a cell, in the units of the samples."""
        return self.step / 2

    @property
    def depth(self) -> float:
        """Return the bits of the quantizer of which the levels take the full range, not always a whole number."""
        lowest = self.lowest + self.shift
        return 1.0 + math.log2(max(-lowest, lowest + self.count - 1) + 0.5)

    @property
    def zero_is_everywhere(self) -> bool:
        """Return whether 0 is in every cell, so that the sparsest signal in the cells is silence."""
        lowest = self.lowest + self.shift
        return lowest >= -0.5 and lowest + self.count - 1 <= 0.5

    def middles(self, samples: NDArray) -> NDArray[np.float64]:
        """Return the middle of each sample's cell, in steps; samples beyond the ends belong to the outermost cells."""
        numbers = np.floor(samples / self.step - self.lowest + 0.5)  # borders belong to the cell above, as in quantize
        return numbers.clip(0, self.count - 1) + (self.lowest + self.shift)

    def centres(self, samples: NDArray) -> NDArray[np.float64]:
        """Return the middle of each sample's cell, in the units of the samples."""
        return self.step * self.middles(samples)

    def holds(self, values: NDArray, tolerance: float) -> bool:
        """Return whether all these values are levels, up to `tolerance`."""
        return bool((np.abs(self.centres(values) - self.step * self.shift - values) <= tolerance).all())

    def __str__(self) -> str:
        bits = 1.0 - math.log2(self.step)
        full_scale = f" (the {round(bits)}-bit quantizer on [-1, 1])" if bits == round(bits) else ""
        return f"{self.kind}, {self.count} levels {self.step:.6g} apart{full_scale}"


def mid_rise(bits: int) -> Grid:
    """Return the grid of `pdunroll.quantize` with this number of bits."""
    return Grid("mid-rise", 2.0 ** (1 - bits), 0.5 - 2.0 ** (bits - 1), 2**bits)


def infer_grid(levels: NDArray, counts: NDArray, rounding: float) -> Grid | None:
    """Return the grid of the coarsest uniform quantizer that has these levels, or None if there is none.

    Args:
        levels: the values that a channel's samples take, ascending, (k,).
        counts: how many samples have each of them, (k,).
        rounding: the error that storage may have made in the levels, such as one unit of 16-bit samples.

    Examples:
        >>> import numpy as np
        >>> from pdunroll.restore.grid import infer_grid
        >>> print(infer_grid(np.array([-0.6, -0.2, 0.2, 0.6]), np.array([1, 3, 4, 1]), rounding=1e-9))
        mid-rise, 4 levels 0.4 apart
    """
    if len(levels) < 2:
        return None
    levels = levels.astype(np.float64)
    for tolerance in (rounding, FLOAT32_ERROR * float(np.abs(levels).max())):
        if (grid := _fit(levels, tolerance)) is not None:
            return _cut_off(grid, levels, counts) if grid.kind == "mid-tread" else grid
    return None


def _fit(levels: NDArray, tolerance: float) -> Grid | None:
    """Return the coarsest grid that holds the levels up to `tolerance`, unless arbitrary values would fit as well."""
    gaps = np.diff(levels)
    closest = gaps[gaps < 1.5 * gaps.min()].mean()
    for parts in range(1, MAX_STEPS_APART + 1):
        if closest / parts < 8 * tolerance:
            return None
        for kind, phase in (("mid-rise", 0.5), ("mid-tread", 0.0), ("shifted", None)):
            grid = _regression(levels, gaps, closest / parts, phase, kind)
            fitted = len(levels) - (2 if phase is None else 1)  # values that could have failed to fit
            chance = MAX_STEPS_APART * (4 * tolerance / grid.step) ** fitted
            if grid.count <= MAX_LEVELS and chance <= MAX_CHANCE and grid.holds(levels, tolerance):
                exact = replace(grid, step=2.0 ** round(math.log2(grid.step)))  # of a quantizer on [-1, 1]
                return exact if phase is not None and exact.holds(levels, tolerance) else grid
    return None


def _regression(levels: NDArray, gaps: NDArray, step: float, phase: float | None, kind: str) -> Grid:
    """Fit levels = step * (whole numbers + phase) by least squares, with the phase given or free."""
    anchor, numbers = int(np.abs(levels).argmin()), np.zeros(len(levels))
    for _ in range(3):  # a better step size numbers distant levels better
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
    """Return `grid` with its levels at the lower ends of the cells, if the counts fit that better.

    Two properties of sound are weighed. It is nearly symmetric about zero: with N(k) samples at level k, rounding makes
    N(k) nearly equal to N(-k), and cutting off makes N(k) nearly equal to N(-1-k). Its mean is nearly zero: rounding
    makes the mean of k about 0, and cutting off makes it -1/2 or less. Level 0 is left out of both, because digital
    silence has this level, too. Speech is symmetric but may have a small offset; tones may be asymmetric but have none.
    A recording at 7 bits or more with an offset of half a step counts as rounded.
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
