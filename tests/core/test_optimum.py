"""Certified optima against linear programming; the limit gradient against long recursions and differences."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import pdunroll
from conftest import ROOT
from oracles import ETA, SHAPES, problem, relative
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.implicit import multipliers
from pdunroll.core.polish import lu_factors
from pdunroll.core.problem import Dequantization, Masks
from pdunroll.speech.frames import load

ALGORITHMS = [
    pdunroll.RestartedHalpern(),
    pdunroll.RestartedHalpern(polished=False),
    pdunroll.PlainChambollePock(),
]


@pytest.fixture(scope="module")
def speech(smoke):
    """Speech frames and a perturbed DCT: truth (24, 64), observation, operator."""
    test = load(smoke / "outputs/smoke/prepared", "test")
    x = torch.from_numpy(test.observation).double()
    nontrivial = (~Dequantization(ETA).trivial(x)).nonzero()[:20, 0]
    trivial = Dequantization(ETA).trivial(x).nonzero()[:4, 0]
    chosen = torch.cat([nontrivial, trivial])
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = pdunroll.dct_operator(64, 64, torch.float64) + 0.01 * noise
    return torch.from_numpy(test.truth[chosen]).double(), x[chosen], operator


def linear_program(K: np.ndarray, x: np.ndarray, radius: float) -> float:
    """min sum t  s.t.  -t <= K y <= t,  |y - x| <= radius, by HiGHS."""
    (m, n), identity = K.shape, np.eye(len(K))
    return linprog(
        np.r_[np.zeros(n), np.ones(m)],
        A_ub=np.block([[K, -identity], [-K, -identity]]),
        b_ub=np.zeros(2 * m),
        bounds=[(c - radius, c + radius) for c in x] + [(0, None)] * m,
    ).fun


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_objective_is_that_of_the_linear_program(speech, algorithm):
    _, x, operator = speech
    found = pdunroll.solve(operator, x, radius=ETA, tolerance=1e-9, algorithm=algorithm)
    assert (found.gap <= 1e-9).all()
    assert float((found.primal - x).abs().max()) <= ETA * (1 + 1e-12)
    assert float(found.dual.abs().max()) <= 1
    objective = Dequantization(ETA).objective(operator, found.primal)
    for frame in range(len(x)):
        optimum = linear_program(operator.numpy(), x[frame].numpy(), ETA)
        assert float(objective[frame]) == pytest.approx(optimum, rel=1e-8, abs=1e-8)
    assert (found.iterations[20:] == 0).all()
    assert (found.iterations[:20] > 0).all()
    assert (found.primal[20:] == 0).all()


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_of_any_shape(m, n, dtype):
    operator, _, x = problem(m, n, B=6, dtype=dtype)
    found = pdunroll.solve(operator, x, radius=ETA, tolerance=1e-7, max_iterations=200_000)
    assert found.primal.dtype == found.dual.dtype == dtype
    assert found.gap.dtype == torch.float64
    assert (found.gap <= 1e-7).all()
    for frame in range(len(x)):
        optimum = linear_program(operator.detach().double().numpy(), x[frame].double().numpy(), ETA)
        reached = float((operator.detach().double() @ found.primal[frame].double()).abs().sum())
        assert reached == pytest.approx(optimum, rel=1e-5 if dtype == torch.float32 else 1e-6, abs=1e-6)


@pytest.mark.parametrize("exponent", [-1060, -500, 300, 1023])
def test_the_scale_of_the_operator_does_not_matter(exponent):
    operator, _, x = problem(18, 18)
    operator = operator.detach().double().sign() + 2.0**-10 * torch.eye(18, dtype=torch.float64)  # exact when scaled
    first, other = (pdunroll.solve(K, x, radius=ETA) for K in (operator, math.ldexp(1.0, exponent) * operator / 2))
    assert (first.gap <= 1e-6).all()
    for ours, theirs in zip(first, other, strict=True):
        assert torch.equal(ours, theirs)


def test_an_algorithm_of_ones_own():
    section = (ROOT / "docs/extending.md").read_text().partition("## An algorithm for")[2].partition("\n## ")[0]
    (recipe,) = re.findall(r"```python\n(.*?)```", section, re.S)
    names: dict[str, Any] = {"__name__": "mine"}
    exec(recipe, names)
    operator, _, x = problem()
    found = pdunroll.solve(operator, x, radius=ETA, algorithm=names["Mine"]())
    plain = pdunroll.solve(operator, x, radius=ETA, algorithm=pdunroll.PlainChambollePock())
    assert (found.gap <= 1e-6).all()
    torch.testing.assert_close(found.primal, plain.primal, rtol=0, atol=1e-6)


def test_gap_is_the_difference_of_the_objectives():
    operator, _, x = problem(11, 18)
    generator = torch.Generator().manual_seed(1)
    y = x + ETA * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1)
    psi = 2 * torch.rand(4, 11, generator=generator, dtype=torch.float64) - 1
    K = operator.detach()
    for frame, gap in enumerate(Dequantization(ETA).duality_gap(K, x, y, psi)):
        primal = float((K @ y[frame]).abs().sum())
        slope = K.T @ psi[frame]
        dual = float(x[frame] @ slope - ETA * slope.abs().sum())
        assert float(gap) == pytest.approx((primal - dual) / primal, rel=1e-9)


def test_frames_do_not_see_each_other(speech):
    _, x, operator = speech
    whole = pdunroll.solve(operator, x[:6], radius=ETA)
    for frame in range(6):
        single = pdunroll.solve(operator, x[frame : frame + 1], radius=ETA)
        assert abs(int(single.iterations) - int(whole.iterations[frame])) <= 25  # rounding may cost a look
        torch.testing.assert_close(single.primal[0], whole.primal[frame], rtol=0, atol=1e-4)


def test_uncertified_frames_are_returned_with_a_warning(speech):
    _, x, operator = speech
    with pytest.warns(UserWarning, match=r"20 of 24 frames are not certified to 1e-14 after 30 iterations .*raise"):
        found = pdunroll.solve(operator, x, radius=ETA, tolerance=1e-14, max_iterations=30)
    assert found.iterations.max() == 30
    assert found.primal.isfinite().all()
    empty = pdunroll.solve(operator, x[:0], radius=ETA)
    assert empty.primal.shape == (0, 64)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"radius": 0.0}, "radius"),
        ({"radius": -1.0}, "radius"),
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"operator": torch.full((18, 18), math.nan)}, "operator"),
        ({"operator": torch.zeros(18, 17)}, "operator"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    operator, _, x = problem()
    arguments = {"operator": operator, "observation": x, "radius": ETA, **changes}
    with pytest.raises(pdunroll.InputError, match=named):
        pdunroll.solve(arguments.pop("operator"), arguments.pop("observation"), **arguments)


# ---------------------------------------------------------------- the limit gradient


def gradient(operator, truth, x, strategy, iterations=1, **options):
    """With the largest steps, so that the iterations do reach the limit."""
    operator = operator.detach().requires_grad_()
    options = {"step_norm": "spectral", **options}
    restored = pdunroll.unroll(operator, x, radius=ETA, iterations=iterations, backprop=strategy, **options)
    return torch.autograd.grad(0.5 * (restored - truth).square().sum(), operator)[0]


@pytest.fixture(scope="module")
def quick(speech):
    """The ten nontrivial frames whose recursions converge fastest: those with the best conditioned Ktilde."""
    truth, x, operator = speech
    found = pdunroll.solve(operator, x[:20], radius=ETA, tolerance=1e-10)
    smallest = []
    for y, psi, observation in zip(found.primal, found.dual, x, strict=False):
        rows, columns = psi.abs() < 1 - 1e-9, (y - observation).abs() < ETA * (1 - 1e-9)
        assert rows.sum() == columns.sum()
        smallest.append(torch.linalg.svdvals(operator[rows][:, columns]).min())
    chosen = torch.stack(smallest).argsort(descending=True)[:10]
    return truth[chosen], x[chosen], operator


def test_implicit_is_the_limit_of_truncated_and_of_full(quick):
    truth, x, operator = quick
    exact = pdunroll.Implicit(tolerance=1e-10)
    reference = gradient(operator, truth, x, exact)
    engine = engine_for(chambolle_pock(operator, radius=ETA), operator)
    restored, (_, dual_mask, primal_mask, nontrivial) = exact.forward(engine, operator, x, iterations=1)
    assert nontrivial.all()
    assert multipliers(operator, Masks(dual_mask, primal_mask), restored - truth)[1].all()  # ten vertices
    assert relative(gradient(operator, truth, x, pdunroll.Implicit(), 20_000), reference) < 1e-6
    assert relative(gradient(operator, truth, x, pdunroll.Truncated(iterations=20_000), 20_000), reference) < 1e-6
    assert relative(gradient(operator, truth, x, pdunroll.Full(checkpoint_every=140), 20_000), reference) < 1e-6


def test_implicit_against_finite_differences_of_the_optimum(speech):
    truth, x, operator = speech
    reference = gradient(operator, truth, x, pdunroll.Implicit(tolerance=1e-10))

    def loss(K):
        found = pdunroll.solve(K, x, radius=ETA, tolerance=1e-11, max_iterations=200_000)
        return float(0.5 * (found.primal - truth).square().sum())

    for seed in range(3):
        direction = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = (loss(operator + 1e-7 * direction) - loss(operator - 1e-7 * direction)) / 2e-7
        assert slope == pytest.approx(float((reference * direction).sum()), rel=1e-5)


def test_implicit_does_not_depend_on_the_step_sizes(quick):
    truth, x, operator = quick
    for polished in (False, True):
        strategy = pdunroll.Implicit(polished=polished)
        first, second = (gradient(operator, truth, x, strategy, 20_000, step_ratio=ratio) for ratio in (10.0, 4.0))
        assert relative(first, second) < 1e-6
    strategy = pdunroll.Implicit()  # which needs the masks alone to be those of the limit
    assert relative(gradient(operator, truth, x, strategy, 20_000, step_norm="frobenius"), first) < 1e-6


def test_polished_iterates_are_vertices(speech):
    _, x, operator = speech
    exact = pdunroll.solve(operator, x, radius=ETA, tolerance=1e-11, max_iterations=200_000).primal
    errors = []
    for polished in (False, True):
        strategy = pdunroll.Implicit(polished=polished)
        restored = pdunroll.unroll(operator, x, radius=ETA, iterations=8_000, backprop=strategy)
        errors.append((restored - exact).abs().amax(dim=1))
    assert (errors[1] <= errors[0] + 1e-12).all()
    assert errors[1].median() < 1e-9 < errors[0].median()


def test_implicit_is_exact_once_the_masks_are_final(quick):
    truth, x, operator = quick
    reference = gradient(operator, truth, x, pdunroll.Implicit(tolerance=1e-10))
    exact, plain = (
        relative(gradient(operator, truth, x, pdunroll.Implicit(**settings), 20_000, step_norm="frobenius"), reference)
        for settings in ({}, {"polished": False})
    )
    assert exact < 1e-9 < 1e-5 < plain


def test_memory_of_implicit_does_not_depend_on_the_depth(speech):
    _, x, operator = speech
    engine = engine_for(chambolle_pock(operator, radius=ETA), operator)
    sizes = []
    for depth in (10, 200):
        kept = pdunroll.Implicit().forward(engine, operator, x, depth)[1]
        sizes.append(sum(tensor.nbytes for tensor in kept))
    assert sizes[0] == sizes[1]


def test_degenerate_frames_get_the_least_squares_multiplier_of_minimum_norm():
    generator = torch.Generator().manual_seed(2)
    operator = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    dual = torch.tensor([[1, 1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0, 0], [0] * 7]).bool()
    primal = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0, 1, 0, 1, 0, 1], [0] * 6]).bool()
    grad = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    found, vertex = multipliers(operator, Masks(dual, primal), grad)
    assert vertex.tolist() == [False, False, True, True]
    for frame in range(4):
        rows, columns = dual[frame].nonzero()[:, 0], primal[frame].nonzero()[:, 0]
        expected = np.zeros(7)
        if len(rows):
            ktilde = operator.numpy()[np.ix_(rows, columns)]
            expected[rows] = np.linalg.pinv(ktilde.T) @ grad[frame, columns].numpy()
        np.testing.assert_allclose(found[frame].numpy(), expected, atol=1e-10)


def test_implicit_wants_the_formula():
    with pytest.raises(pdunroll.InputError, match="active_set"):
        pdunroll.Implicit(primal_mask="released")


def test_implicit_takes_batches_of_trivial_frames_only(speech):
    truth, x, operator = speech
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for strategy in (pdunroll.Implicit(), pdunroll.Implicit(tolerance=1e-6), pdunroll.Implicit(polished=False)):
            assert (gradient(operator, truth[20:], x[20:], strategy, 5) == 0).all()


def test_factors_are_right_with_several_threads():
    matrices = torch.randn(5, 220, 220, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        factors, pivots, info = lu_factors(matrices)
    finally:
        torch.set_num_threads(threads)
    p, lower, upper = torch.lu_unpack(factors, pivots)
    torch.testing.assert_close(p @ lower @ upper, matrices, rtol=0, atol=1e-10)
    assert not info.any()
