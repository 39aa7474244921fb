"""The operator that `restore` uses at each bit depth, and the weight of its results.

A frame's optimum is at the borders of many cells, further from the middles than the true samples are. The result is

    middle + weight * (mean of the optima - middle),

which is closer to the truth and in the cells, too. Operators and weights were chosen on development sentences
(docs/restore.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pdunroll.restore import operator_file
from pdunroll.restore.grid import Grid


class Choice(NamedTuple):
    """What to restore a recording with."""

    bits: int  # the depth that it counts as
    operator: Path  # an operator file
    weight: float  # from 0, the middle of each cell, to 1, the mean of the optima
    gains: bool = True  # whether restored speech is 1 dB better than the recording, on average


CHOICES = {
    bits: Choice(bits, operator_file.SHIPPED.with_name(name), weight)
    for bits, name, weight in (
        (2, "operator.npz", 0.8),
        (3, "operator.npz", 0.8),
        (4, "operator.npz", 0.8),
        (5, "operator.npz", 0.75),
        (6, "operator7.npz", 0.65),
        (7, "operator7.npz", 0.5),
        (8, "operator7.npz", 0.4),
    )
}


def choose(grids: list[Grid]) -> Choice:
    """Return the choice for the channel with the most cells.

    Args:
        grids: that of each channel.

    Examples:
        >>> from pdunroll.restore.depths import choose
        >>> from pdunroll.restore.grid import mid_rise
        >>> choose([mid_rise(4)]).weight, choose([mid_rise(12)]).gains
        (0.8, False)
    """
    bits = round(max(grid.depth for grid in grids))
    nearest = min(max(bits, min(CHOICES)), max(CHOICES))
    return CHOICES[nearest]._replace(bits=bits, gains=bits <= nearest)
