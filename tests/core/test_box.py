"""Boxes whose intervals differ in width: cells, clipped samples up to full scale, missing samples, known ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import pdunroll
from oracles import SHAPES, problem, relative
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.engine import Engine
from pdunroll.core.graphed import GraphedEngine
from pdunroll.core.problem import Box, Dequantization
from pdunroll.core.unroll import _Unrolled
from pdunroll.core.unrolled_halpern import unroll_halpern
from pdunroll.evaluation.curves import error_curve

STRATEGIES = [
    pdunroll.Full(),
    pdunroll.Full(primal_mask="released"),
    pdunroll.Full(checkpoint_every=7),
    pdunroll.Truncated(),
    pdunroll.Truncated(primal_mask="released"),
    pdunroll.Truncated(damping=0.05),
    pdunroll.LastIterations(iterations=9),
    pdunroll.OneStep(),
    pdunroll.Piggyback(),
    pdunroll.Implicit(),
    pdunroll.Implicit(tolerance=1e-9),
]


def boxed(m=18, n=18, B=6, seed=0, dtype=torch.float64):
    """Return an operator, the truth and a box in which a quarter of the samples is of each kind."""
    operator, truth, cells = problem(m, n, B, seed)
    kind = torch.randint(4, truth.shape, generator=torch.Generator().manual_seed(seed))
    level, known, missing, clipped = truth.abs() * 0.7, kind == 1, kind == 2, kind == 3
    lower, upper = cells - 1 / 16, cells + 1 / 16
    lower, upper = torch.where(known, truth - 2.0**-16, lower), torch.where(known, truth + 2.0**-16, upper)
    lower, upper = torch.where(missing, -1.0, lower), torch.where(missing, 1.0, upper)
    lower = torch.where(clipped, torch.where(truth > 0, level, -1.0), lower)
    upper = torch.where(clipped, torch.where(truth > 0, 1.0, -level), upper)
    x = torch.where(missing, 0.0, torch.where(clipped, level * truth.sign(), torch.where(known, truth, cells)))
    return (
        operator.detach().to(dtype).requires_grad_(),
        truth.to(dtype),
        pdunroll.Box.between(lower.to(dtype), upper.to(dtype), x.to(dtype)),
    )


def linear_program(K: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """min sum t  s.t.  -t <= K y <= t,  lower <= y <= upper, by HiGHS."""
    (m, n), identity = K.shape, np.eye(len(K))
    return linprog(
        np.r_[np.zeros(n), np.ones(m)],
        A_ub=np.block([[K, -identity], [-K, -identity]]),
        b_ub=np.zeros(2 * m),
        bounds=[*zip(lower, upper, strict=True)] + [(0, None)] * m,
    ).fun


def gradient(operator, truth, box, strategy, L=60, **options):
    restored = pdunroll.unroll(operator, box, iterations=L, backprop=strategy, **options)
    return restored.detach(), torch.autograd.grad(0.5 * (restored - truth).square().sum(), operator)[0]


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("algorithm", [pdunroll.RestartedHalpern(), pdunroll.PlainChambollePock()])
def test_objective_is_that_of_the_linear_program(m, n, seed, algorithm):
    operator, _, box = boxed(m, n, seed=seed)
    K = operator.detach()
    found = pdunroll.solve(K, box, tolerance=1e-8, max_iterations=200_000, algorithm=algorithm)
    assert (found.gap <= 1e-8).all()
    assert ((found.primal >= box.lower) & (found.primal <= box.upper)).all()
    reached = Dequantization().objective(K, found.primal)
    for frame, objective in enumerate(reached):
        optimum = linear_program(K.numpy(), box.lower[frame].numpy(), box.upper[frame].numpy())
        assert float(objective) == pytest.approx(optimum, rel=2e-7, abs=1e-8)


def test_gap_is_the_difference_of_the_objectives():
    operator, _, box = boxed(11, 18)
    generator = torch.Generator().manual_seed(1)
    y = box.lower + (box.upper - box.lower) * torch.rand(6, 18, generator=generator, dtype=torch.float64)
    psi = 2 * torch.rand(6, 11, generator=generator, dtype=torch.float64) - 1
    K = operator.detach()
    for frame, gap in enumerate(Dequantization().duality_gap(K, box, y, psi)):
        primal, slope = float((K @ y[frame]).abs().sum()), K.T @ psi[frame]
        dual = float(torch.where(slope > 0, slope * box.lower[frame], slope * box.upper[frame]).sum())
        assert float(gap) == pytest.approx((primal - dual) / primal, rel=1e-9)


@pytest.mark.parametrize("L", [1, 5, 20])
def test_full_against_finite_differences(L):
    operator, _, box = boxed(6, 5, 3, seed=3)
    engine = engine_for(chambolle_pock(operator), operator)  # its step sizes stay, as they do in the gradient
    assert torch.autograd.gradcheck(
        lambda K: _Unrolled.apply(K, box, None, 0.0, 0.0, engine, L, pdunroll.Full()), operator, eps=1e-7
    )


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("checkpoint_every", [None, 7])
def test_full_is_what_autograd_gives(m, n, checkpoint_every):
    operator, truth, box = boxed(m, n)
    algorithm = chambolle_pock(operator)
    y = ybar = box.start
    psi = y.new_zeros(len(y), m)
    for _ in range(40):
        psi = (psi + algorithm.sigma * ybar @ operator.T).clamp(-1, 1)
        y, before = torch.clamp(y - algorithm.tau * psi @ operator, box.lower, box.upper), y
        ybar = 2 * y - before
    theirs = torch.autograd.grad(0.5 * (y - truth).square().sum(), operator)[0]
    restored, ours = gradient(operator, truth, box, pdunroll.Full(checkpoint_every=checkpoint_every), 40)
    torch.testing.assert_close(restored, y.detach(), rtol=0, atol=1e-13)
    assert relative(ours, theirs) < 1e-9


@pytest.mark.parametrize("checkpoint_every", [None, 7])
def test_gradients_of_the_steps_are_what_autograd_gives(checkpoint_every):
    operator, truth, box = boxed(11, 18)
    K, norm = operator.detach(), float(operator.detach().norm())
    ratio, scale = (torch.tensor(value, dtype=K.dtype, requires_grad=True) for value in (8.0, 0.9))
    sigma, tau = ratio * scale / norm, scale / (ratio * norm)
    y = ybar = box.start
    psi = y.new_zeros(len(y), len(K))
    for _ in range(30):
        psi = (psi + sigma * ybar @ K.T).clamp(-1, 1)
        y, before = torch.clamp(y - tau * psi @ K, box.lower, box.upper), y
        ybar = 2 * y - before
    theirs = torch.autograd.grad(0.5 * (y - truth).square().sum(), (ratio, scale))
    full = pdunroll.Full(checkpoint_every=checkpoint_every)
    restored = pdunroll.unroll(K, box, iterations=30, backprop=full, step_ratio=ratio, step_scale=scale)
    ours = torch.autograd.grad(0.5 * (restored - truth).square().sum(), (ratio, scale))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_halpern_iterations_take_boxes(m, n):
    operator, truth, box = boxed(m, n)
    found = chambolle_pock(operator)
    y0 = y = box.start
    psi = y.new_zeros(len(y), m)
    for k in range(30):
        y_t = torch.clamp(y - found.tau * psi @ operator, box.lower, box.upper)
        psi_t = (psi + found.sigma * (2 * y_t - y) @ operator.T).clamp(-1, 1)
        c = (k + 1) / (k + 2)
        y, psi = c * (2 * y_t - y) + (1 - c) * y0, c * (2 * psi_t - psi)
    theirs = torch.autograd.grad(0.5 * (y_t - truth).square().sum(), operator)[0]
    restored = unroll_halpern(operator, box, iterations=30)
    torch.testing.assert_close(restored, y_t, rtol=0, atol=1e-13)
    assert relative(torch.autograd.grad(0.5 * (restored - truth).square().sum(), operator)[0], theirs) < 1e-9


def test_modes_are_compared_on_boxes():
    operator, truth, box = boxed(18, 18)
    modes = {
        "full": pdunroll.Full(),
        "limit": pdunroll.Implicit(tolerance=1e-9),
        "piggyback": pdunroll.Piggyback(tolerance=1e-6, max_iterations=200_000),
    }
    found = pdunroll.compare(operator, box, truth, modes, iterations=5000, repeats=1, step_norm="spectral")
    assert found.full_cosine["full"] == pytest.approx(1)
    assert found.limit_error["limit"] < 1e-6
    assert found.limit_error["piggyback"] < 1e-3


def test_a_warm_start_goes_on_in_a_box():
    operator, _, box = boxed(11, 18)
    algorithm, K = chambolle_pock(operator, extrapolation=0.0), operator.detach()
    half = engine_for(algorithm, K).iterate(K, box, 20)
    whole = pdunroll.unroll(K, box, iterations=40, extrapolation=0.0)
    rest = pdunroll.unroll(K, box, iterations=20, extrapolation=0.0, start=(half.primal, half.dual))
    torch.testing.assert_close(rest, whole, rtol=0, atol=1e-14)


def test_gradients_to_a_box_are_refused():
    operator, _, x = problem()
    x.requires_grad_()
    with pytest.raises(pdunroll.InputError, match="no gradient with respect to a box"):
        pdunroll.unroll(operator, Box.around(x, 0.1), iterations=3)
    assert pdunroll.unroll(operator, Box.between(x - 0.1, x + 0.1, x), iterations=3).requires_grad  # to the operator


def test_implicit_against_finite_differences_of_the_optimum():
    operator, truth, box = boxed(24, 24, 5, seed=2)
    reference = gradient(operator, truth, box, pdunroll.Implicit(tolerance=1e-10))[1]

    def loss(K):
        found = pdunroll.solve(K, box, tolerance=1e-11, max_iterations=200_000)
        return float(0.5 * (found.primal - truth).square().sum())

    for seed in range(3):
        direction = torch.randn(24, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = (loss(operator.detach() + 1e-7 * direction) - loss(operator.detach() - 1e-7 * direction)) / 2e-7
        assert slope == pytest.approx(float((reference * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_box_around_x_is_that_of_x_and_a_radius(strategy, dtype):
    operator, truth, x = problem(11, 18, dtype=dtype)
    y = pdunroll.unroll(operator, x, radius=1 / 16, iterations=50, backprop=strategy)
    first = y.detach(), torch.autograd.grad(0.5 * (y - truth).square().sum(), operator)[0]
    other = gradient(operator, truth, Box.around(x, 1 / 16), strategy, 50)
    assert all(map(torch.equal, first, other))
    between = gradient(operator, truth, Box.between(x - 1 / 16, x + 1 / 16, x), strategy, 50)  # the same numbers
    assert all(map(torch.equal, first, between))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_compiled_loops_are_the_pure_steps(strategy, monkeypatch):
    operator, truth, box = boxed(18, 18, dtype=torch.float32)
    fast = gradient(operator, truth, box, strategy)
    monkeypatch.setenv("PDUNROLL_PRODUCT", "torch")
    pure = gradient(operator, truth, box, strategy)
    torch.testing.assert_close(fast[0], pure[0], rtol=0, atol=1e-5)
    assert relative(fast[1], pure[1]) < 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES[:-1])
def test_graphs_take_boxes(strategy, captures):
    operator, truth, box = boxed()
    algorithm, K = chambolle_pock(operator), operator.detach()
    for given in (box, box[torch.arange(6).flip(0)]):  # the second is replayed
        plain, graphed = (kind(algorithm) for kind in (Engine, GraphedEngine))
        results = []
        for engine in (plain, graphed):
            primal, kept = strategy.forward(engine, K, given, 12)
            results.append((primal, strategy.gradient(engine, K, kept, 12, primal - truth)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert captures


def test_error_curves_are_those_of_the_iterates():
    operator, truth, box = boxed(18, 18, 8)
    algorithm, K = chambolle_pock(operator, step_norm="spectral"), operator.detach()
    grid = [1, 10, 300, 5000, 50_000]
    errors, gaps = error_curve(algorithm, K, truth, box, grid, batch_size=3)
    iterate, done = None, 0
    for count, found in zip(grid, errors, strict=True):
        iterate = engine_for(algorithm, K).iterate(K, box, count - done, iterate)
        done = count
        np.testing.assert_allclose(found, (iterate.primal - truth).square().mean(dim=1), rtol=1e-6, atol=1e-12)
    assert (gaps < 1e-3).all()


def test_iterations_start_at_the_observation_in_the_box():
    lower, upper = torch.tensor([[0.1, -1.0, 0.5]]), torch.tensor([[0.2, 1.0, 1.0]])
    assert torch.equal(Box.between(lower, upper).start, torch.tensor([[0.15, 0.0, 0.75]]))
    box = Box.between(lower, upper, torch.tensor([[0.0, 0.3, 0.5]]))
    torch.testing.assert_close(box.start, torch.tensor([[0.1, 0.3, 0.5]]))
    assert torch.equal(chambolle_pock(torch.eye(3)).start(torch.eye(3), box).primal, box.start)


def test_frames_of_a_box_are_chosen_and_cast():
    _, _, box = boxed()
    part = box[torch.tensor([4, 1])]
    assert len(part) == 2
    assert torch.equal(part.upper, box.upper[[4, 1]])
    assert part.to(torch.float32).lower.dtype == part.to(torch.float32).start.dtype == torch.float32
    around = Box.around(torch.zeros(3, 2), 0.1)[1:].to(torch.float64)
    assert around.radius == 0.1


def test_bad_boxes_are_refused_in_one_line():
    lower, upper = torch.zeros(2, 3), torch.ones(2, 3)
    for arguments, named in (
        ((upper, lower), "upper must be above lower"),
        ((lower, lower), "upper must be above lower"),
        ((lower, torch.inf * upper), "upper holds NaN or infinite"),
        ((lower, upper[:1]), "upper must be like lower"),
        ((lower, upper.double()), "upper must be like lower"),
        ((lower, upper, torch.full((2, 3), torch.nan)), "observation holds NaN"),
        (([0.0], [1.0]), "lower must be a tensor"),
    ):
        with pytest.raises(pdunroll.InputError, match=named):
            Box.between(*arguments)
    box, K = Box.between(lower, upper), torch.eye(3)
    with pytest.raises(pdunroll.InputError, match="leave out radius"):
        pdunroll.solve(K, box, radius=0.1)
    with pytest.raises(pdunroll.InputError, match="radius must be a finite number above 0, got None"):
        pdunroll.solve(K, lower)
    with pytest.raises(pdunroll.InputError, match="radius must be a finite number above 0, got None"):
        pdunroll.unroll(K, lower, iterations=3)
    with pytest.raises(pdunroll.InputError, match="shapes"):
        pdunroll.unroll(torch.eye(4), box, iterations=3)
