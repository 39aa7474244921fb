"""How fast an operator's error comes to that of its certified optimum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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
        N1 by operator; None where the last evaluated error is not that close.

    Examples:
        >>> names = {"backprop": "dct", "primal_mask": None, "step_norm": "spectral", "l_training": None, "seed": None}
        >>> rows = [{**names, "b": None, "l_inference": l, "mse": 1 + 0.5 / l} for l in (1, 10, 100, 1000)]
        >>> [*convergence_iterations(rows, [{**names, "b": None, "optimum_mse": 1.0}]).values()]
        [100]
    """
    curves: dict[RunKey, dict[int, float]] = {}
    for row in evaluation:
        curves.setdefault(RunKey.from_row(row), {})[row["l_inference"]] = row["mse"]
    return {key: _first_close(curves[key], mse) for key, mse in by_operator(optima, "optimum_mse").items()}


def _first_close(curve: Mapping[int, float], optimum: float) -> int | None:
    first = None
    for count in sorted(curve, reverse=True):
        if abs(curve[count] - optimum) > CLOSE * optimum:
            break
        first = count
    return first
