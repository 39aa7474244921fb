"""Gradients of the unrolled algorithm against autograd, finite differences and naive transcriptions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import oracles
import pdunroll
from oracles import ETA, MASKS, NORMS, SHAPES, gradient, problem, relative
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.unroll import _Unrolled


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("L", [1, 2, 31, 32, 33, 70])
@pytest.mark.parametrize(("theta", "ratio"), [(1.0, 10.0), (0.5, 3.0), (0.0, 1.0)])
@pytest.mark.parametrize("norm", NORMS)
def test_full_is_what_autograd_gives(m, n, L, theta, ratio, norm):
    operator, truth, x = problem(m, n)
    options = {"extrapolation": theta, "step_ratio": ratio, "step_norm": norm}
    restored, ours = gradient(operator, truth, x, L, pdunroll.Full(), **options)
    reference = oracles.autograd_unrolled(operator, x, ETA, L, theta, ratio, norm)
    torch.testing.assert_close(restored, reference.detach(), rtol=0, atol=1e-13)
    theirs = torch.autograd.grad(0.5 * (reference - truth).square().sum(), operator)[0]
    assert relative(ours, theirs) < 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_full_takes_any_loss(norm):
    operator, truth, x = problem()
    for loss in (lambda y: (y - truth).abs().pow(1.5).sum(), lambda y: (y * truth).sum().tanh(), lambda y: y[1].sum()):
        ours = gradient(operator, truth, x, 40, loss=loss, step_norm=norm)[1]
        theirs = torch.autograd.grad(loss(oracles.autograd_unrolled(operator, x, ETA, 40, norm=norm)), operator)[0]
        assert relative(ours, theirs) < 1e-9


@pytest.mark.parametrize("L", [1, 5, 20])
@pytest.mark.parametrize("norm", NORMS)
def test_full_against_finite_differences(L, norm):
    operator, _, x = problem(6, 5, 2, seed=3)
    algorithm = chambolle_pock(operator, radius=ETA, step_norm=norm)  # its step sizes stay, as they do in the gradient
    engine = engine_for(algorithm, operator)
    assert torch.autograd.gradcheck(
        lambda K: _Unrolled.apply(K, x, ETA, 0.0, 0.0, engine, L, pdunroll.Full()), operator, eps=1e-7
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("L", [1, 3, 40])
@pytest.mark.parametrize("norm", NORMS)
def test_full_is_algorithm_2_and_the_lemma(mask, m, n, L, norm):
    operator, truth, x = problem(m, n)
    options = {"extrapolation": 0.7, "step_ratio": 4.0, "step_norm": norm}
    restored, ours = gradient(operator, truth, x, L, pdunroll.Full(primal_mask=mask), **options)
    K, grads = operator.detach().numpy(), (restored - truth).numpy()
    theirs = sum(
        oracles.full_gradient(K, frame, ETA, L, grad, mask, 0.7, 4.0, norm)
        for frame, grad in zip(x.numpy(), grads, strict=True)
    )
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize(("L", "b"), [(1, 1), (12, 5), (12, 12), (12, 30), (3, 30)])
@pytest.mark.parametrize("norm", NORMS)
def test_truncated_is_the_frozen_mask_sum(mask, m, n, L, b, norm):
    operator, truth, x = problem(m, n)
    strategy = pdunroll.Truncated(iterations=b, primal_mask=mask)
    options = {"extrapolation": 0.7, "step_ratio": 4.0, "step_norm": norm}
    restored, ours = gradient(operator, truth, x, L, strategy, **options)
    K, grads = operator.detach().numpy(), (restored - truth).numpy()
    taken = min(L, b) if mask == "released" else b
    theirs = sum(
        oracles.truncated_gradient(K, frame, ETA, L, grad, mask, taken, 0.7, 4.0, norm)
        for frame, grad in zip(x.numpy(), grads, strict=True)
    )
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("L", [1, 7, 70])
@pytest.mark.parametrize("every", [1, 3, 7, 64, 200])
def test_checkpoints_change_nothing(mask, L, every):
    operator, truth, x = problem(11, 18)
    plain = gradient(operator, truth, x, L, pdunroll.Full(primal_mask=mask))
    checked = gradient(operator, truth, x, L, pdunroll.Full(primal_mask=mask, checkpoint_every=every))
    assert torch.equal(plain[0], checked[0])
    assert relative(checked[1], plain[1]) < 1e-12


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("L", [1, 2, 7, 40])
@pytest.mark.parametrize("rows", [1, 4, 8, 12, 1000])
@pytest.mark.parametrize("every", [None, 1, 2, 5])
def test_blocks_change_nothing(monkeypatch, mask, L, rows, every):
    operator, truth, x = problem(11, 18)
    strategy = pdunroll.Full(primal_mask=mask, checkpoint_every=every)
    options = {"extrapolation": 0.7, "step_ratio": 4.0}
    expected = gradient(operator, truth, x, L, strategy, **options)[1]
    monkeypatch.setattr("pdunroll.core.backward.ROWS", rows)  # of 4 frames, so 1, 1, 2, 3 or all iterations at once
    assert relative(gradient(operator, truth, x, L, strategy, **options)[1], expected) < 1e-12


@pytest.mark.parametrize("strategy", [pdunroll.Full(), pdunroll.Truncated()])
def test_the_published_norm_is_the_default_and_makes_a_difference(strategy):
    operator, truth, x = problem()
    restored, ours = gradient(operator, truth, x, 10, strategy)
    published = gradient(operator, truth, x, 10, strategy, step_norm="frobenius")
    assert torch.equal(restored, published[0])
    assert torch.equal(ours, published[1])
    other = gradient(operator, truth, x, 10, strategy, step_norm="spectral")
    assert relative(restored, other[0]) > 0.01
    assert relative(ours, other[1]) > 0.1


def test_masks_make_a_difference():
    operator, truth, x = problem()
    first, second = (gradient(operator, truth, x, 30, pdunroll.Full(primal_mask=mask))[1] for mask in MASKS)
    assert relative(first, second) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_is_the_same_for_all_modes(dtype):
    operator, truth, x = problem(dtype=dtype)
    strategies = [pdunroll.Full(), *(cls(primal_mask=m) for cls in (pdunroll.Full, pdunroll.Truncated) for m in MASKS)]
    results = [gradient(operator, truth, x, 50, strategy) for strategy in strategies]
    for restored, grad in results:
        assert torch.equal(restored, results[0][0])
        assert restored.dtype == grad.dtype == dtype
        assert float((restored - x).abs().max()) <= ETA + 1e-7


def test_truncated_keeps_the_last_iterate_only(monkeypatch):
    operator, _, x = problem(11, 18)
    engine = engine_for(chambolle_pock(operator, radius=ETA), operator)

    def size(strategy, L):
        monkeypatch.setattr(
            "pdunroll.core.engine._kept", []
        )  # memory that is used again may be larger than what is kept
        kept = strategy.forward(engine, operator.detach(), x, L)[1]
        return sum(tensor.untyped_storage().nbytes() for tensor in kept)

    assert size(pdunroll.Truncated(), 5) == size(pdunroll.Truncated(), 500)
    # psi and y in float64 and a byte for each entry of both masks
    assert size(pdunroll.Full(), 500) - size(pdunroll.Full(), 50) == 450 * 4 * (11 + 18) * (8 + 1)


def test_frames_do_not_see_each_other():
    operator, truth, x = problem(B=5)
    for strategy in (pdunroll.Full(), pdunroll.Truncated()):
        restored, whole = gradient(operator, truth, x, 25, strategy)
        singles = [gradient(operator, truth[i : i + 1], x[i : i + 1], 25, strategy) for i in range(5)]
        torch.testing.assert_close(restored, torch.cat([single for single, _ in singles]), rtol=0, atol=1e-13)
        assert relative(sum(grad for _, grad in singles), whole) < 1e-12


def test_layout_of_the_operator_does_not_matter():
    operator, truth, x = problem()
    turned = operator.detach().T.contiguous().T.requires_grad_()
    assert not turned.is_contiguous()
    assert relative(gradient(turned, truth, x, 20)[1], gradient(operator, truth, x, 20)[1]) < 1e-12


def test_a_strategy_of_ones_own():
    class Nothing(pdunroll.Backprop):
        def forward(self, engine, operator, observation, iterations):
            return observation.clone(), ()

        def gradient(self, engine, operator, kept, iterations, grad):
            return torch.full_like(operator, iterations)

    operator, truth, x = problem()
    restored, grad = gradient(operator, truth, x, 7, Nothing())
    assert torch.equal(restored, x)
    assert (grad == 7).all()


@pytest.mark.parametrize("before", [False, True])
def test_tiny_numbers_are_zero_within_and_as_they_were_outside(before):
    def tiny_is_zero():
        return float(torch.tensor(1e-40) * 1.0) == 0.0

    seen = []

    class Looking(pdunroll.Full):
        def forward(self, *arguments):
            seen.append(tiny_is_zero())
            return super().forward(*arguments)

        def gradient(self, *arguments):
            seen.append(tiny_is_zero())
            raise RuntimeError("and it fails")

    operator, truth, x = problem()
    torch.set_flush_denormal(before)
    try:
        with pytest.raises(RuntimeError, match="and it fails"):
            gradient(operator, truth, x, 3, Looking())
        assert (seen, tiny_is_zero()) == ([True, True], before)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"iterations": 0}, "iterations"),
        ({"iterations": -1}, "iterations"),
        ({"iterations": 1.5}, "iterations"),
        ({"iterations": True}, "iterations"),
        ({"radius": 0}, "radius"),
        ({"radius": -1}, "radius"),
        ({"radius": math.nan}, "radius"),
        ({"step_ratio": 0}, "step_ratio"),
        ({"extrapolation": 1.5}, "extrapolation"),
        ({"extrapolation": math.nan}, "extrapolation"),
        ({"step_norm": "foo"}, "step_norm must be one of frobenius, spectral, got 'foo'"),
        ({"step_norm": None}, "step_norm must be one of frobenius, spectral, got None"),
        ({"step_norm": "nuclear", "iterations": 1}, "step_norm must be one of frobenius, spectral"),
        ({"observation": torch.zeros(18, dtype=torch.float64)}, "observation"),
        ({"observation": torch.zeros(2, 17, dtype=torch.float64)}, "observation"),
        ({"observation": torch.zeros(2, 18)}, "float32"),
        ({"observation": torch.zeros(2, 18, dtype=torch.int64)}, "int64"),
        ({"operator": torch.zeros(18, 18, dtype=torch.float64)}, "operator"),
        ({"operator": torch.full((18, 18), math.nan, dtype=torch.float64)}, "operator"),
    ],
)
def test_bad_arguments_are_named(changes, named):
    operator, _, x = problem()
    arguments = {"operator": operator, "observation": x, "radius": ETA, "iterations": 3, **changes}
    with pytest.raises(pdunroll.InputError, match=named):
        pdunroll.unroll(arguments.pop("operator"), arguments.pop("observation"), **arguments)


def test_bad_strategies_are_named():
    with pytest.raises(pdunroll.InputError, match="primal_mask must be one of active_set, released, got 'mine'"):
        pdunroll.Full(primal_mask="mine")
    for b in (0, -3, 2.0, True):
        with pytest.raises(pdunroll.InputError, match=r"backprop\.iterations"):
            pdunroll.Truncated(iterations=b)
