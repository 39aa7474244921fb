"""The last iterations, damped truncation and the piggyback iteration against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracles
import pdunroll
from oracles import ETA, MASKS, NORMS, SHAPES, gradient, problem, relative
from pdunroll.core import piggyback
from pdunroll.core.chambolle_pock import Adjoint, chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.implicit import multipliers
from pdunroll.core.problem import Masks

OPTIONS = {"extrapolation": 0.7, "step_ratio": 4.0}
DTYPES = [torch.float32, torch.float64]


def of_frames(oracle, operator, truth, x, restored, *arguments, **options):
    """The sum of a naive transcription over the frames of a batch."""
    K, grads = operator.detach().numpy(), (restored - truth).numpy()
    frames = zip(x.numpy(), grads, strict=True)
    return sum(oracle(K, frame, ETA, arguments[0], grad, *arguments[1:], **options) for frame, grad in frames)


# ---------------------------------------------------------------- the last iterations


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize(("L", "b"), [(1, 1), (12, 1), (12, 5), (40, 33)])
@pytest.mark.parametrize("norm", NORMS)
def test_last_iterations_are_what_autograd_gives_for_a_constant_start(m, n, L, b, norm):
    operator, truth, x = problem(m, n)
    ours = gradient(operator, truth, x, L, pdunroll.LastIterations(iterations=b), step_norm=norm, **OPTIONS)[1]
    restored = oracles.autograd_unrolled(operator, x, ETA, L, 0.7, 4.0, norm, constant=L - b)
    theirs = torch.autograd.grad(0.5 * (restored - truth).square().sum(), operator)[0]
    assert relative(ours, theirs) < 1e-9


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize(("L", "b"), [(12, 5), (12, 30)])
def test_last_iterations_are_the_last_terms_of_the_lemma(mask, m, n, L, b):
    operator, truth, x = problem(m, n)
    strategy = pdunroll.LastIterations(iterations=b, primal_mask=mask)
    restored, ours = gradient(operator, truth, x, L, strategy, **OPTIONS)
    theirs = of_frames(oracles.full_gradient, operator, truth, x, restored, L, mask, 0.7, 4.0, last=b)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("b", [40, 41, 1000])
def test_all_iterations_are_full_bit_for_bit(dtype, mask, b):
    operator, truth, x = problem(11, 18, dtype=dtype)
    full = gradient(operator, truth, x, 40, pdunroll.Full(primal_mask=mask))
    last = gradient(operator, truth, x, 40, pdunroll.LastIterations(iterations=b, primal_mask=mask))
    assert torch.equal(full[0], last[0])
    assert torch.equal(full[1], last[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_one_step_is_the_last_iteration(dtype, mask):
    operator, truth, x = problem(25, 18, dtype=dtype)
    one = gradient(operator, truth, x, 40, pdunroll.OneStep(primal_mask=mask))
    last = gradient(operator, truth, x, 40, pdunroll.LastIterations(iterations=1, primal_mask=mask))
    assert torch.equal(one[0], last[0])
    assert torch.equal(one[1], last[1])
    with pytest.raises(TypeError):
        pdunroll.OneStep(iterations=2)


# ---------------------------------------------------------------- damped truncation


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize(("b", "damping"), [(1, 0.5), (30, 0.1), (80, 0.01)])
def test_damped_truncation_is_the_weighted_sum(mask, m, n, b, damping):
    operator, truth, x = problem(m, n)
    strategy = pdunroll.Truncated(iterations=b, damping=damping, primal_mask=mask)
    restored, ours = gradient(operator, truth, x, 12, strategy, **OPTIONS)
    oracle = oracles.truncated_gradient
    theirs = of_frames(oracle, operator, truth, x, restored, 12, mask, b, 0.7, 4.0, damping=damping)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
def test_damping_with_weights_of_one_changes_no_bit(dtype, mask):
    operator, truth, x = problem(11, 18, dtype=dtype)
    damped = gradient(operator, truth, x, 40, pdunroll.Truncated(iterations=30, damping=1e-300, primal_mask=mask))
    truncated = gradient(operator, truth, x, 40, pdunroll.Truncated(iterations=30, primal_mask=mask))
    assert torch.equal(damped[1], truncated[1])


def frozen(operator, truth, x, mask, L=60):
    """What `Truncated` keeps, and the engine and the gradient of the loss that belong to it."""
    K = operator.detach()
    engine = engine_for(chambolle_pock(K, radius=ETA, step_norm="spectral"), K)
    restored, kept = pdunroll.Truncated(primal_mask=mask).forward(engine, K, x, L)
    return engine, K, kept, restored - truth


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("damping", [0.05, 0.5])
def test_the_weighted_sum_tends_to_the_resolvent(mask, damping):
    engine, K, kept, grad = frozen(*problem(11, 18), mask)
    (ours,) = pdunroll.Truncated(damping=damping, primal_mask=mask).gradients(engine, K, kept, [1000], grad)
    (m, n), algorithm, theirs = K.shape, engine.algorithm, torch.zeros_like(K)
    for dual, primal, dual_mask, primal_mask, g in zip(*kept, grad, strict=True):
        unit = torch.eye(n + 2 * m, dtype=K.dtype)
        parts = Adjoint(unit[:, :n], unit[:, n : n + m], unit[:, n + m :])
        step = torch.cat(algorithm.adjoint_step(K, Masks(dual_mask, primal_mask), parts), dim=1)  # acts on rows
        start = torch.cat([g, g.new_zeros(2 * m)])
        series = torch.linalg.solve(torch.eye(len(step)) - (1 - damping) * step.T, step.T @ start)
        theirs += algorithm.sigma * series[n : n + m, None] * primal - algorithm.tau * dual[:, None] * series[:n]
    assert relative(ours, theirs) < 1e-9


def test_damping_bounds_what_grows_linearly_with_the_released_mask():
    engine, K, kept, grad = frozen(*problem(), "released")

    def norms(damping):
        strategy = pdunroll.Truncated(damping=damping, primal_mask="released")
        return [float(g.norm()) for g in strategy.gradients(engine, K, kept, [2000, 4000, 8000], grad)]

    plain, damped = norms(0.0), norms(0.01)
    assert plain[2] / plain[1] == pytest.approx(2.0, rel=0.05)
    assert damped[2] == pytest.approx(damped[0], rel=1e-6)


# ---------------------------------------------------------------- piggyback


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize(("theta", "ratio"), [(1.0, 10.0), (0.7, 4.0)])
@pytest.mark.parametrize("norm", NORMS)
def test_piggyback_iterates_the_sums_with_masks_that_follow_the_iterate(m, n, theta, ratio, norm):
    operator, truth, x = problem(m, n)
    strategy = pdunroll.Piggyback(tolerance=1e-300, max_iterations=120)  # 150 when rounded up
    options = {"extrapolation": theta, "step_ratio": ratio, "step_norm": norm}
    restored, ours = gradient(operator, truth, x, 7, strategy, **options)
    oracle = oracles.piggyback_gradient
    theirs = of_frames(oracle, operator, truth, x, restored, 7, 150, piggyback.BLOCK, theta, ratio, norm)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-8, atol=1e-10)


def derivative(operator, truth, x, L, **settings):
    """Found by `Piggyback`, its multipliers' errors and the gradient by linear solves at the certified optimum."""
    K = operator.detach()
    engine = engine_for(chambolle_pock(K, radius=ETA, step_norm="spectral"), K)
    strategy = pdunroll.Piggyback(**settings)
    restored, kept = strategy.forward(engine, K, x, L)
    grad = restored - truth
    optimum = pdunroll.solve(K, x.double(), radius=ETA, tolerance=1e-10, max_iterations=200_000)
    masks = engine.algorithm.problem.interior_masks(optimum.primal, optimum.dual, x.double())
    multiplier, vertex = multipliers(K.double(), masks, grad.double())
    assert vertex.all()
    return strategy.differentiate(engine, K, kept, grad, bound=True), -(multiplier.T @ optimum.primal)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("L", [1, 200])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_piggyback_is_the_derivative_of_the_optimum_within_its_tolerance(m, n, L, tolerance):
    found, exact = derivative(*problem(m, n), L, tolerance=tolerance, max_iterations=50_000)
    assert (found.error <= tolerance).all()
    assert (found.iterations < 50_000).all()
    assert relative(found.gradient, exact) < 2 * tolerance


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_piggyback_in_single_precision(m, n):
    found, exact = derivative(*problem(m, n, dtype=torch.float32), 20, tolerance=1e-3, max_iterations=50_000)
    assert found.gradient.dtype == torch.float32
    assert relative(found.gradient.double(), exact) < 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_error_of_a_frame_is_within_its_bound(m, n, dtype):
    operator, truth, x = problem(m, n, dtype=dtype)
    certified, counts = 0, (50, 1000, 10_000)
    for count in counts:
        for frame in range(len(x)):
            one = slice(frame, frame + 1)
            found, exact = derivative(
                operator, truth[one], x[one], 5, tolerance=1e-300, max_iterations=count
            )  # which is not reached, so that all iterations are run
            error = (found.gradient.double() - exact).norm()
            assert error <= found.bound * (1 + 1e-6) + 1e-12 * exact.norm()  # up to rounding
            certified += bool(found.bound < torch.inf)
            if count == 10_000:
                assert found.bound <= 100 * error + 1e-4 * exact.norm()
    # The masks are those of the optimum at the end, and not from the start.
    assert len(x) <= certified < len(counts) * len(x)


def test_masks_other_than_those_of_the_optimum_have_no_bound():
    found, exact = derivative(*problem(), 1, tolerance=1e-300, max_iterations=50)
    assert relative(found.gradient, exact) > 0.1
    assert torch.isinf(found.bound).any()


def test_piggyback_is_the_limit_at_the_optimum():
    operator, truth, x = problem()
    options = {"step_norm": "spectral"}
    exact = gradient(operator, truth, x, 1, pdunroll.Implicit(tolerance=1e-10), **options)[1]
    strategy = pdunroll.Piggyback(tolerance=1e-8, max_iterations=50_000)
    assert relative(gradient(operator, truth, x, 20_000, strategy, **options)[1], exact) < 1e-6


def test_the_square_of_the_error_is_the_sum_of_the_squares_of_all_changes():
    engine, K, kept, grad = frozen(*problem(), "active_set", L=20_000)
    algorithm, masks = engine.algorithm, Masks(*kept[2:])
    change, squares = algorithm.adjoint_start(K, grad), []
    differences = [change := algorithm.adjoint_step(K, masks, change) for _ in range(30_000)]
    squares = torch.stack([piggyback.energy(algorithm, K, masks, difference) for difference in differences])
    assert (squares[1:] <= squares[:-1] * (1 + 1e-9) + 1e-25).all()  # nonexpansive
    total = Adjoint(*(torch.stack(parts[10:]).sum(dim=0) for parts in zip(*differences, strict=True)))
    error = piggyback.energy(algorithm, K, masks, total)  # of the sums of the first ten, which go on by the others
    torch.testing.assert_close(error, squares[10:].sum(dim=0), rtol=1e-6, atol=1e-12)


def test_trivial_frames_add_nothing_and_memory_does_not_depend_on_the_depth():
    operator, truth, x = problem()
    trivial = torch.full_like(x, ETA / 2)
    found, _ = derivative(
        operator, torch.cat([truth, truth]), torch.cat([x, trivial]), 10, tolerance=1e-3, max_iterations=20_000
    )
    assert (found.bound[len(x) :] == 0).all()
    strategy = pdunroll.Piggyback(max_iterations=200)
    alone = gradient(operator, truth, x, 10, strategy)[1]
    both = gradient(operator, truth.repeat(2, 1), torch.cat([x, trivial]), 10, strategy)[1]
    assert relative(both, alone) < 1e-12
    assert (gradient(operator, truth, trivial, 10, strategy)[1] == 0).all()
    engine = engine_for(chambolle_pock(operator, radius=ETA), operator)
    sizes = {sum(part.nbytes for part in strategy.forward(engine, operator.detach(), x, L)[1]) for L in (5, 500)}
    assert len(sizes) == 1


# ---------------------------------------------------------------- all modes

MODES = {
    "last": lambda mask: pdunroll.LastIterations(primal_mask=mask, iterations=5),
    "onestep": lambda mask: pdunroll.OneStep(primal_mask=mask),
    "damped": lambda mask: pdunroll.Truncated(primal_mask=mask, iterations=40, damping=0.1),
    "piggyback": lambda mask: pdunroll.Piggyback(tolerance=1e-12, max_iterations=100),
}
WITH_MASKS = [(mode, mask) for mode in MODES for mask in MASKS if (mode, mask) != ("piggyback", "released")]


@pytest.mark.parametrize(("mode", "mask"), WITH_MASKS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_single_precision_is_as_double_within_rounding(mode, mask, m, n):
    operator, truth, x = problem(m, n, dtype=torch.float32)
    restored, ours = gradient(operator, truth, x, 12, MODES[mode](mask))
    wide = operator.detach().double().requires_grad_()
    expected, theirs = gradient(wide, truth.double(), x.double(), 12, MODES[mode](mask))
    torch.testing.assert_close(restored.double(), expected, rtol=0, atol=1e-6)
    assert relative(ours.double(), theirs) < 1e-4


@pytest.mark.parametrize(("mode", "mask"), WITH_MASKS)
def test_the_forward_pass_is_that_of_full(mode, mask):
    operator, truth, x = problem(11, 18)
    restored = gradient(operator, truth, x, 50, MODES[mode](mask))[0]
    assert torch.equal(restored, gradient(operator, truth, x, 50)[0])
    with torch.no_grad():
        assert torch.equal(
            restored, pdunroll.unroll(operator, x, radius=ETA, iterations=50, backprop=MODES[mode](mask))
        )


@pytest.mark.parametrize(("mode", "mask"), WITH_MASKS)
def test_frames_do_not_see_each_other(mode, mask):
    operator, truth, x = problem(B=5)
    whole = gradient(operator, truth, x, 25, MODES[mode](mask))[1]
    singles = [gradient(operator, truth[i : i + 1], x[i : i + 1], 25, MODES[mode](mask))[1] for i in range(5)]
    assert relative(sum(singles), whole) < 1e-11


@pytest.mark.parametrize(("mode", "mask"), WITH_MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_batch_has_a_zero_gradient(mode, mask, dtype):
    operator, truth, x = problem(dtype=dtype)
    assert (gradient(operator, truth[:0], x[:0], 5, MODES[mode](mask))[1] == 0).all()


@pytest.mark.parametrize(
    ("attempt", "named"),
    [
        (lambda: pdunroll.LastIterations(iterations=0), r"backprop\.iterations"),
        (lambda: pdunroll.LastIterations(primal_mask="mine"), "primal_mask"),
        (lambda: pdunroll.Truncated(damping=1.0), r"backprop\.damping must be at least 0 and below 1, got 1\.0"),
        (lambda: pdunroll.Truncated(damping=-0.1), "damping"),
        (lambda: pdunroll.Truncated(damping=True), "damping"),
        (lambda: pdunroll.Truncated(damping="much"), "damping"),
        (lambda: pdunroll.Truncated(damping=float("nan")), "damping"),
        (lambda: pdunroll.Piggyback(tolerance=0), "tolerance"),
        (lambda: pdunroll.Piggyback(max_iterations=0), "max_iterations"),
        (lambda: pdunroll.Piggyback(primal_mask="released"), "Piggyback needs primal_mask=active_set"),
    ],
)
def test_bad_settings_are_named(attempt, named):
    with pytest.raises(pdunroll.InputError, match=named):
        attempt()
