"""Errors stored by one evaluation, in an evaluation with other numbers of iterations."""

from __future__ import annotations

import numpy as np
import pytest

from oracles import ETA, problem
from pdunroll.core.halpern import RestartedHalpern
from pdunroll.core.problem import Box
from pdunroll.evaluation import frame_errors as module
from pdunroll.training.run_key import RunKey


@pytest.fixture
def errors_on(tmp_path):
    operator, truth, x = problem(20, 20, B=9, seed=3)
    x[4] = 0.5 * ETA  # a trivial frame
    frames = truth.numpy(), Box.around(x, ETA)

    def call(name, grid):
        return module.frame_errors(
            tmp_path / f"{name}.npz", RunKey("dct"), operator.detach().numpy(), frames, frames, np.asarray(grid),
            np.arange(9), steps={"step_ratio": 1.0, "extrapolation": 1.0, "step_norm": "spectral"},
            algorithm=RestartedHalpern(), tolerance=1e-6, max_iterations=10_000, batch_size=4, device="cpu",
        )  # fmt: skip

    return call


def never(*_, **__):
    raise AssertionError("what the file has was computed again")


@pytest.mark.parametrize("other", [[1, 7, 50, 200, 450, 3000], [1, 50, 3000], [7, 3000]], ids=["more", "fewer", "none"])
def test_another_grid_takes_from_the_file_what_it_has(errors_on, other, monkeypatch):
    expected = errors_on("anew", other)
    errors_on("kept", [1, 50, 201, 1000, 3000])
    monkeypatch.setattr(module, "solve", never)
    if not {7, 200, 450} & {*other}:
        monkeypatch.setattr(module, "error_curve", never)
    found = errors_on("kept", other)
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        np.testing.assert_array_equal(found[part], value, err_msg=part)
    monkeypatch.setattr(module, "error_curve", never)
    again = errors_on("kept", other)
    assert all(np.array_equal(again[part], found[part]) for part in found)


def test_another_last_iteration_computes_all_again(errors_on, monkeypatch):
    errors_on("kept", [1, 50, 3000])
    expected = errors_on("anew", [1, 50, 1000])
    found = errors_on("kept", [1, 50, 1000])
    np.testing.assert_array_equal(found["gaps"], expected["gaps"])  # those of the last iterate
    np.testing.assert_array_equal(found["errors"], expected["errors"])
