"""`unroll` within contexts and transforms of torch: it works, or it is refused in one line."""

from __future__ import annotations

import pytest
import torch

import pdunroll
from oracles import ETA, gradient, problem


@pytest.mark.parametrize("product", ["", "torch"])
@pytest.mark.parametrize("backprop", [pdunroll.Full(), pdunroll.Truncated(damping=0.1), pdunroll.Piggyback()])
def test_autocast_changes_nothing(monkeypatch, product, backprop):
    monkeypatch.setenv("PDUNROLL_PRODUCT", product)
    operator, truth, x = problem(dtype=torch.float32)
    expected = gradient(operator, truth, x, 20, backprop)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient(operator, truth, x, 20, backprop)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_inference_mode_gives_the_iterate():
    operator, truth, x = problem()
    with torch.inference_mode():
        restored = pdunroll.unroll(operator, x, radius=ETA, iterations=20)
        clone = x.clone()
    assert torch.equal(restored, gradient(operator, truth, x, 20)[0])
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        pdunroll.unroll(operator, clone, radius=ETA, iterations=20)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda K, x: torch.func.vmap(lambda k: pdunroll.unroll(k, x, radius=ETA, iterations=5))(K[None]),
        lambda K, x: torch.func.vmap(lambda f: pdunroll.unroll(K, f[None], radius=ETA, iterations=5))(x),
        lambda K, x: torch.func.vmap(lambda f: pdunroll.solve(K, f[None], radius=ETA).primal)(x),
        lambda K, x: torch.func.grad(lambda k: pdunroll.unroll(k, x, radius=ETA, iterations=5).sum())(K),
    ],
)
def test_transforms_of_functions_are_refused_in_one_line(attempt):
    operator, _, x = problem()
    with pytest.raises(pdunroll.InputError, match=r"is inside of a transform of torch\.func") as caught:
        attempt(operator.detach(), x)
    assert "\n" not in str(caught.value)
