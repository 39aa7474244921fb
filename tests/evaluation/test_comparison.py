"""`pdunroll.compare` against what each strategy gives by itself."""

from __future__ import annotations

import pytest
import torch

import pdunroll
from oracles import ETA, gradient, problem, relative

MODES = {"full": pdunroll.Full(), "short": pdunroll.Truncated(iterations=7), "exact": pdunroll.Implicit(tolerance=1e-9)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_table_is_what_the_strategies_give(dtype):
    operator, truth, x = problem(11, 18, dtype=dtype)
    found = pdunroll.compare(
        operator, x, truth, MODES, radius=ETA, iterations=50, repeats=1, step_norm="spectral", step_ratio=4.0
    )
    assert list(found.index) == list(MODES)
    options = {"step_norm": "spectral", "step_ratio": 4.0}
    full, short, exact = (gradient(operator, truth, x, 50, mode, **options)[1] for mode in MODES.values())
    close = {"rel": 1e-4 if dtype == torch.float32 else 1e-7}
    assert found.limit_error["short"] == pytest.approx(relative(short, exact), **close)
    assert found.full_error["short"] == pytest.approx(relative(short, full), **close)
    assert found.full_ratio["short"] == pytest.approx(float(short.norm() / full.norm()), **close)
    cosine = torch.nn.functional.cosine_similarity(short.flatten(), exact.flatten(), dim=0)
    assert found.limit_cosine["short"] == pytest.approx(float(cosine), **close)
    assert found.limit_error["exact"] < 1e-5
    assert found.full_error["full"] == 0
    assert (found.seconds > 0).all()


def test_kept_bytes_are_those_between_the_passes():
    operator, truth, x = problem(11, 18)
    found = pdunroll.compare(operator, x, truth, MODES, radius=ETA, iterations=50, repeats=1)
    assert found.kept_bytes["full"] == 50 * 4 * (11 + 18) * (8 + 1)  # psi, ybar and both masks
    assert found.kept_bytes["short"] == 4 * (11 + 18) * (8 + 1)
    deep = pdunroll.compare(operator, x, truth, MODES, radius=ETA, iterations=100, repeats=1)
    assert deep.kept_bytes["full"] == 2 * found.kept_bytes["full"]
    assert deep.kept_bytes["short"] == found.kept_bytes["short"]
    assert operator.grad is None


def test_without_a_limit_there_is_no_cosine():
    operator, truth, x = problem()
    found = pdunroll.compare(operator, torch.full_like(x, ETA / 2), truth, MODES, radius=ETA, iterations=5, repeats=1)
    assert found.limit_cosine.isna().all()
    assert found.limit_error.isna().all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"modes": {}}, "modes must be a mapping"),
        ({"modes": [pdunroll.Full()]}, "modes must be a mapping"),
        ({"modes": {"full": "full"}}, "backprop must be a strategy"),
        ({"truth": torch.zeros(4, 17, dtype=torch.float64)}, "truth"),
        ({"repeats": 0}, "repeats"),
        ({"iterations": 0}, "iterations"),
        ({"radius": 0}, "radius"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    operator, truth, x = problem()
    given = {"truth": truth, "modes": MODES, "radius": ETA, "iterations": 5, **changes}
    with pytest.raises(pdunroll.InputError, match=named):
        pdunroll.compare(operator, x, given.pop("truth"), given.pop("modes"), **given)
