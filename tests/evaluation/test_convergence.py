"""N1, the iterations until the error stays within 1 % of that of the optimum."""

from __future__ import annotations

import pytest

from pdunroll.evaluation.convergence import convergence_iterations
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
