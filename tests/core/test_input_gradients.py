"""Gradients with respect to x, the radius and the step sizes against autograd, finite differences and the limit."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import oracles
import pdunroll
from oracles import ETA, NORMS, SHAPES, problem, relative
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.problem import Dequantization
from pdunroll.core.unroll import _Unrolled

NAMES = ("operator", "observation", "radius", "step_ratio", "step_scale")


def leaves(m=18, n=18, B=4, dtype=torch.float64):
    """All inputs as tensors that require a gradient, by name, and y."""
    operator, truth, x = problem(m, n, B, dtype=dtype)
    scalars = (torch.tensor(value, dtype=dtype) for value in (ETA, 4.0, 0.8))
    tensors = (operator.detach(), x, *scalars)
    return {name: tensor.requires_grad_() for name, tensor in zip(NAMES, tensors, strict=True)}, truth


def gradients(given, truth, L, backprop, names=NAMES, **options):
    arguments = {name: value if name in names else value.detach() for name, value in given.items()}
    operator, x = arguments.pop("operator"), arguments.pop("observation")
    restored = pdunroll.unroll(operator, x, iterations=L, backprop=backprop, **arguments, **options)
    return torch.autograd.grad(0.5 * (restored - truth).square().sum(), [given[name] for name in names])


def by_autograd(given, truth, L, theta, norm, constant=0):
    K, x, radius, ratio, scale = (given[name] for name in NAMES)
    restored = oracles.autograd_unrolled(K, x, radius, L, theta, ratio, norm, constant, scale)
    return torch.autograd.grad(0.5 * (restored - truth).square().sum(), list(given.values()))


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize(("L", "b"), [(1, 1), (2, 2), (60, 60), (60, 200), (60, 1), (60, 7)])
@pytest.mark.parametrize("theta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("norm", NORMS)
def test_all_gradients_are_those_of_autograd(m, n, L, b, theta, norm):
    given, truth = leaves(m, n)
    strategies = [pdunroll.LastIterations(iterations=b)]
    if b == L:
        strategies += [pdunroll.Full(), pdunroll.Full(checkpoint_every=7)]
    theirs = by_autograd(given, truth, L, theta, norm, max(0, L - b))
    for strategy in strategies:
        ours = gradients(given, truth, L, strategy, extrapolation=theta, step_norm=norm)
        for name, mine, reference in zip(NAMES, ours, theirs, strict=True):
            assert mine.shape == reference.shape
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("rows", [1, 8, 1000])
def test_blocks_change_nothing(monkeypatch, rows):
    given, truth = leaves(11, 18)
    expected = gradients(given, truth, 30, pdunroll.Full())
    monkeypatch.setattr("pdunroll.core.backward.ROWS", rows)
    for mine, reference in zip(gradients(given, truth, 30, pdunroll.Full()), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-12)


def test_full_against_finite_differences():
    operator, _, x = problem(6, 5, 2, seed=3)
    algorithm = chambolle_pock(operator, radius=ETA)  # ||K|| stays, as it does in the gradient

    def restored(K, frames, *scalars):
        radius, sigma, tau = (scalar.item() for scalar in scalars)
        own = replace(algorithm, problem=Dequantization(radius), sigma=sigma, tau=tau)
        return _Unrolled.apply(K, frames, *scalars, engine_for(own, operator), 20, pdunroll.Full())

    scalars = (torch.tensor(value, dtype=x.dtype) for value in (ETA, algorithm.sigma, algorithm.tau))
    inputs = operator, *(part.requires_grad_() for part in (x, *scalars))
    assert torch.autograd.gradcheck(restored, inputs, eps=1e-7)


@pytest.mark.parametrize("backprop", [pdunroll.Full(), pdunroll.LastIterations(iterations=9), pdunroll.Truncated()])
@pytest.mark.parametrize("names", [NAMES[:1], NAMES[1:2], NAMES[2:3], NAMES[3:], NAMES[1:]])
def test_each_gradient_is_the_same_without_the_others(backprop, names):
    given, truth = leaves(11, 18)
    together = dict(zip(NAMES, gradients(given, truth, 20, backprop), strict=True))
    for name, alone in zip(names, gradients(given, truth, 20, backprop, names), strict=True):
        torch.testing.assert_close(alone, together[name], rtol=1e-12, atol=1e-14)  # that of the operator: two sums


@pytest.mark.parametrize("backprop", [pdunroll.Full(), pdunroll.LastIterations(iterations=9), pdunroll.Truncated()])
@pytest.mark.parametrize("mask", oracles.MASKS)
def test_single_precision_is_as_double_within_rounding(backprop, mask):
    names = NAMES if mask == "active_set" else (NAMES[0], *NAMES[3:])
    backprop = type(backprop)(primal_mask=mask)
    single, double = (leaves(11, 18, dtype=dtype) for dtype in (torch.float32, torch.float64))
    ours, theirs = (gradients(*part, 12, backprop, names) for part in (single, double))
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), reference, rtol=2e-4, atol=1e-5)


def test_the_operators_gradient_does_not_run_the_others(monkeypatch):
    operator, truth, x = problem()
    expected = oracles.gradient(operator, truth, x, 20)[1]

    def never(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr("pdunroll.core.gradients.input_gradients", never)
    assert torch.equal(oracles.gradient(operator, truth, x, 20)[1], expected)


# ---------------------------------------------------------------- the limit


def optimum(operator, x, radius):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pdunroll.solve(operator.detach(), x, radius=radius, tolerance=1e-11, max_iterations=200_000)
    return found.primal


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_implicit_against_finite_differences_of_certified_optima(m, n):
    given, truth = leaves(m, n)
    names, h = ("observation", "radius"), 1e-6
    operator, x = given["operator"], given["observation"]
    of_x, of_radius = gradients(given, truth, 1, pdunroll.Implicit(tolerance=1e-11), names)

    def loss(frames, radius):
        return 0.5 * float((optimum(operator, frames, radius) - truth).square().sum())

    step = h * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    frames = x.detach()
    along = (loss(frames + step, ETA) - loss(frames - step, ETA)) / 2
    assert float((of_x * step).sum()) == pytest.approx(along, rel=1e-4)
    assert float(of_radius) == pytest.approx((loss(frames, ETA + h) - loss(frames, ETA - h)) / (2 * h), rel=1e-4)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_truncated_tends_to_the_limit_where_step_sizes_do_not_matter(m, n):
    given, truth = leaves(m, n)
    names = ("operator", "observation", "radius")
    limit = gradients(given, truth, 1, pdunroll.Implicit(tolerance=1e-11), names)
    strategy = pdunroll.Truncated(iterations=30_000)
    *found, ratio, scale = gradients(given, truth, 30_000, strategy, step_norm="spectral")
    for mine, reference in zip(found, limit, strict=True):
        assert relative(mine, reference) < 1e-6
    start = gradients(given, truth, 3, pdunroll.Full(), step_norm="spectral")
    assert abs(ratio) < 1e-6 * abs(start[3])
    assert abs(scale) < 1e-6 * abs(start[4])


def test_full_tends_to_the_limit():
    given, truth = leaves()
    names = ("observation", "radius")
    limit = gradients(given, truth, 1, pdunroll.Implicit(tolerance=1e-11), names)
    full = gradients(given, truth, 30_000, pdunroll.Full(checkpoint_every=173), names, step_norm="spectral")
    for mine, reference in zip(full, limit, strict=True):
        assert relative(mine, reference) < 1e-6


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("backprop", "names", "refused"),
    [
        (pdunroll.Piggyback(), ("observation",), "observation"),
        (pdunroll.Implicit(), ("step_ratio",), "steps"),
        (pdunroll.Implicit(), ("step_scale",), "steps"),
        (pdunroll.Full(primal_mask="released"), ("radius",), "radius"),
        (pdunroll.Truncated(primal_mask="released"), ("observation",), "observation"),
    ],
)
def test_modes_without_a_gradient_say_so_in_one_line(backprop, names, refused):
    given, truth = leaves()
    mode = type(backprop).__name__
    with pytest.raises(pdunroll.InputError, match=rf"{mode}\(.*\) gives no gradient with respect to the {refused}"):
        gradients(given, truth, 5, backprop, names)
    with torch.no_grad():  # where none is wanted, there is nothing to refuse
        pdunroll.unroll(given["operator"], given["observation"], radius=ETA, iterations=5, backprop=backprop)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"radius": torch.tensor([ETA])}, "radius must be a number or a tensor of one"),
        ({"step_ratio": torch.tensor(4)}, "step_ratio must be a number or a tensor of one"),
        ({"step_scale": torch.tensor(1.0)}, "step_scale must be between 0 and 1"),
        ({"step_scale": 0.0}, "step_scale"),
        ({"step_scale": "much"}, "step_scale"),
        ({"radius": torch.tensor(float("nan"))}, "radius"),
        ({"radius": -torch.tensor(ETA)}, "radius"),
    ],
)
def test_bad_scalars_are_named(settings, named):
    operator, _, x = problem()
    with pytest.raises(pdunroll.InputError, match=named):
        pdunroll.unroll(operator, x, iterations=5, **{"radius": ETA, **settings})
