"""On a GPU: the same results as on the CPU, by graphs and kernel by kernel. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

import pdunroll
from oracles import ETA, MASKS, problem, relative
from pdunroll.core import graphed
from pdunroll.core.unrolled_halpern import unroll_halpern

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

MODES = {
    "full": pdunroll.Full,
    "checkpoints": lambda **mask: pdunroll.Full(checkpoint_every=7, **mask),
    "last": lambda **mask: pdunroll.LastIterations(iterations=9, **mask),
    "one": pdunroll.OneStep,
    "truncated": lambda **mask: pdunroll.Truncated(iterations=12, **mask),
    "damped": lambda **mask: pdunroll.Truncated(iterations=12, damping=0.1, **mask),
}
LIMITS = {"implicit": pdunroll.Implicit(), "piggyback": pdunroll.Piggyback(tolerance=1e-8)}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}  # in float32 single samples can be masked otherwise


@pytest.fixture(autouse=True, params=["on", "off"])
def graphs(request, monkeypatch):
    monkeypatch.setenv("PDUNROLL_GRAPHS", request.param)
    return request.param


def gradients(device, backprop, m, n, dtype, *, box=False, scalars=False, iterations=40):
    """Return y^L, grad_K and the gradients with respect to x and the ratio of the step sizes, on the CPU."""
    operator, truth, x = (tensor.detach().to(device) for tensor in problem(m, n, dtype=dtype))
    ratio = torch.tensor(4.0, dtype=dtype, device=device, requires_grad=scalars)
    wanted = [operator.requires_grad_(), *([x.requires_grad_(), ratio] if scalars else [])]
    known = {"observation": pdunroll.Box.around(x, ETA)} if box else {"observation": x, "radius": ETA}
    y = pdunroll.unroll(operator, **known, iterations=iterations, backprop=backprop, step_ratio=ratio)
    found = torch.autograd.grad(0.5 * (y - truth).square().sum(), wanted)
    return [tensor.detach().cpu() for tensor in (y, *found)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("m", "n"), [(18, 18), (11, 18), (25, 18)])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_the_cpu(mode, m, n, mask, dtype):
    backprop = MODES[mode](primal_mask=mask)
    here, there = (gradients(device, backprop, m, n, dtype) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there[0], here[0], rtol=0, atol=TOLERANCES[dtype])
    assert relative(there[1].double(), here[1].double()) < TOLERANCES[dtype]


@pytest.mark.parametrize("mode", LIMITS)
def test_limits_are_those_of_the_cpu(mode):
    here, there = (
        gradients(device, LIMITS[mode], 18, 18, torch.float64, iterations=3000) for device in ("cpu", "cuda")
    )
    assert relative(there[1], here[1]) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_a_box_are_those_of_the_cpu(mode):
    backprop = MODES[mode]()
    here, there = (gradients(device, backprop, 11, 18, torch.float64, box=True) for device in ("cpu", "cuda"))
    assert relative(there[1], here[1]) < 1e-9


def test_gradients_of_observation_and_steps_are_those_of_the_cpu():
    here, there = (
        gradients(device, pdunroll.Full(), 11, 18, torch.float64, scalars=True) for device in ("cpu", "cuda")
    )
    for ours, theirs in zip(there, here, strict=True):
        assert relative(ours, theirs) < 1e-9


def test_halpern_iterations_are_those_of_the_cpu():
    operator, _, x = problem(11, 18)
    here, there = (
        unroll_halpern(operator.detach().to(device), x.to(device), radius=ETA, iterations=50)
        for device in ("cpu", "cuda")
    )
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("box", [False, True])
def test_optima_are_certified(dtype, box):
    operator, _, x = (tensor.detach().cuda() for tensor in problem(25, 18, dtype=dtype))
    known = {"observation": pdunroll.Box.around(x, ETA)} if box else {"observation": x, "radius": ETA}
    found = pdunroll.solve(operator, **known, tolerance=1e-5)
    assert found.primal.is_cuda
    assert found.gap.max() <= 1e-5


def test_a_training_captures_once(graphs):
    graphed._graphs.clear()
    operator, truth, x = (tensor.detach().cuda() for tensor in problem(18, 18, dtype=torch.float32))
    operator.requires_grad_()
    optimizer = torch.optim.Adam([operator], lr=1e-3)
    losses, counts = [], []
    for _ in range(20):
        loss = 0.5 * (pdunroll.unroll(operator, x, radius=ETA, iterations=30) - truth).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        counts.append(len(graphed._graphs))
    assert losses[-1] < losses[0]
    assert counts[0] == counts[-1]
    assert (counts[0] > 0) == (graphs == "on")
