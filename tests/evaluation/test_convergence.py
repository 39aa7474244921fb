"""N1, the iterations until the error stays within 1 % of that of the optimum."""

from __future__ import annotations

import numpy as np
import pytest

from pdunroll.evaluation.convergence import convergence_iterations, first_close
from pdunroll.training.run_key import RunKey

KEY = RunKey("full", "released", "spectral", 10, 0)


def n1(curve: dict[int, float], optimum: float = 1.0) -> int | None:
    rows = [{**KEY.columns, "l_inference": count, "mse": mse} for count, mse in curve.items()]
    others = [{**RunKey("none").columns, "l_inference": count, "mse": 7.0} for count in curve]
    return convergence_iterations([*others, *rows], [{**KEY.columns, "optimum_mse": optimum}])[KEY]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({1: 2.0, 10: 1.02, 20: 1.009, 50: 1.0}, 20),
        ({1: 2.0, 10: 0.5, 20: 0.992, 50: 1.0}, 20),  # from below, as after early stopping
        ({1: 1.0, 10: 1.2, 20: 1.0, 50: 1.0}, 20),  # crossing is not staying
        ({1: 1.0, 10: 1.0}, 1),
        ({1: 2.0, 10: 1.02}, None),
        ({50: 1.0, 10: 1.02, 20: 1.009, 1: 2.0}, 20),  # the order of rows does not matter
    ],
)
def test_it_is_the_first_number_from_which_on_the_error_stays_close(curve, expected):
    assert n1(curve) == expected
    scaled = {count: 8e-4 * mse for count, mse in curve.items()}
    assert n1(scaled, 8e-4) == expected


def test_the_first_close_number_of_known_curves():
    grid = np.arange(1, 1001)
    mse = np.stack([1 + 5.001 / grid, np.ones(1000), 1 - 2.001 / grid], axis=1)
    assert first_close(grid.tolist(), mse, np.ones(3), 0.01).tolist() == [501, 1, 201]
    # the optimum is what counts, not the last error
    assert first_close(grid.tolist(), mse / 7, np.ones(3) / 7, 0.01).tolist() == [501, 1, 201]


def test_a_curve_that_is_not_close_at_its_end_has_no_first_number():
    far, leaves = np.array([3.0, 2.0, 1.5, 1.2]), np.array([1.0, 1.0, 1.0, 1.2])
    below, just = np.array([0.5, 0.6, 0.7, 0.8]), np.array([3.0, 2.0, 1.5, 1.0999])
    found = first_close([1, 10, 100, 1000], np.stack([far, leaves, below, just], axis=1), np.ones(4), 0.1)
    assert np.isnan(found[:3]).all()
    assert found[3] == 1000
