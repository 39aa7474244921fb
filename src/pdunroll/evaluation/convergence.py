"""How fast an operator's error comes to that of its certified optimum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdunroll.training.run_key import RunKey, by_operator

CLOSE = 0.01  # share of the optimum's error


def convergence_iterations(
    evaluation: Iterable[Mapping[str, Any]], optima: Iterable[Mapping[str, Any]]
) -> dict[RunKey, int | None]:
    """Return N1 of each operator, the number of iterations that bring its error to within 1 % of the optimum's.

    N1 is the least evaluated number of iterations from which on the mean test MSE stays within 1 % of that of the
    certified optimum, above or below. Nothing is interpolated, so that N1 is exact up to the grid of evaluation.csv.

    Args:
        evaluation: rows of evaluation.csv, in any order.
        optima: rows of optima.csv.

    Returns:
        N1 by operator; None if the last evaluated error is not that close.

    Examples:
        >>> names = {"backprop": "dct", "primal_mask": None, "step_norm": "spectral", "l_training": None, "seed": None}
        >>> rows = [{**names, "b": None, "l_inference": l, "mse": 1 + 0.5 / l} for l in (1, 10, 100, 1000)]
        >>> [*convergence_iterations(rows, [{**names, "b": None, "optimum_mse": 1.0}]).values()]
        [100]
    """
    curves: dict[RunKey, dict[int, float]] = {}
    for row in evaluation:
        curves.setdefault(RunKey.from_row(row), {})[row["l_inference"]] = row["mse"]
    found = {}
    for key, optimum in by_operator(optima, "optimum_mse").items():
        grid, mse = zip(*sorted(curves[key].items()), strict=True)
        first = first_close(grid, np.array(mse)[:, None], np.array([optimum]), CLOSE)
        found[key] = None if np.isnan(first[0]) else int(first[0])
    return found


def first_close(grid: Sequence[int], mse: NDArray, optimum: NDArray, share: float) -> NDArray[np.float64]:
    """Return the number of iterations from which on errors stay within a share of the optimum's, without interpolation.

    Args:
        grid: numbers of iterations, ascending.
        mse: errors, (len(grid), curves).
        optimum: errors of the optimum, (curves,).
        share: the share of the optimum's error.

    Returns:
        Numbers of the grid, (curves,); NaN if the last error is not that close.
    """
    close = np.abs(mse / optimum - 1) <= share
    stays = np.logical_and.accumulate(close[::-1])[::-1]
    return np.where(stays[-1], np.asarray(grid, dtype=np.float64)[stays.argmax(axis=0)], np.nan)
