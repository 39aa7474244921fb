"""Fast products against plain ones, and memory that is used again without being shared."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

import pdunroll
from pdunroll import kernels
from pdunroll.chambolle_pock import ChambollePock, Jacobians, chambolle_pock
from pdunroll.kernels import Fastest, OneDNN, Plain, scratch
from pdunroll.problem import active_set, dual_jacobian
from test_backprop import ETA, gradient, problem, relative

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
LIBRARIES = [Plain(), Fastest(), pytest.param(OneDNN(), marks=needs_onednn)]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("B", "m", "n"), [(1, 5, 5), (3, 7, 5), (32, 40, 64), (33, 64, 40)])
def test_products_are_what_they_say(library, B, m, n):
    K, base, x, a = draw(m, n), draw(B, m, seed=1), draw(B, n, seed=2), draw(B, m, seed=3)
    for operator in (K, K.T.contiguous().T):
        expected = base.double() + 0.3 * x.double() @ K.double().T
        product, place = library.product(operator, 0.3, B), torch.empty(B, m)
        torch.testing.assert_close(product(base, x).double(), expected, rtol=1e-5, atol=1e-5)
        assert product(base, x, place).data_ptr() == place.data_ptr()
        torch.testing.assert_close(place.double(), expected, rtol=1e-5, atol=1e-5)
    total, expected = K.clone(), K.double() + a.double().T @ x.double()
    library.add_outer(total, a, x)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)


def with_library(algorithm: ChambollePock, library: kernels.Library) -> ChambollePock:
    return ChambollePock(algorithm.problem, algorithm.sigma, algorithm.tau, algorithm.theta, library)


@needs_onednn
def test_libraries_give_the_same_iterates_and_adjoints():
    operator, truth, x = problem(48, 64, B=32, dtype=torch.float32)
    K = operator.detach()
    algorithm = chambolle_pock(K, radius=ETA)
    runs = [
        list(islice(with_library(algorithm, library).iterates(K, x), 200)) for library in (Plain(), OneDNN(), Fastest())
    ]
    for run in runs[1:]:
        for ours, theirs in zip(run, runs[0], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    # gradients jump where an entry sits on the border of a mask: compare with the masks given
    jacobians = [
        Jacobians(dual_jacobian(it.z_dual), active_set(algorithm.problem, it.z_primal, x)) for it in reversed(runs[0])
    ]
    grad = runs[0][-1].primal - truth
    deltas = [list(with_library(algorithm, library).adjoints(K, jacobians, grad)) for library in (Plain(), OneDNN())]
    for ours, theirs in zip(*deltas, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "library"), [("plain", Plain), pytest.param("onednn", OneDNN, marks=needs_onednn)])
def test_the_environment_can_take_the_choice_away(monkeypatch, name, library):
    monkeypatch.setenv("PDUNROLL_LIBRARY", name)
    kernels.choice.cache_clear()
    assert isinstance(kernels.choice("product", 32, 320, 320, torch.float32, "cpu", 1), library)
    monkeypatch.setenv("PDUNROLL_LIBRARY", "mkl")
    kernels.choice.cache_clear()
    with pytest.raises(pdunroll.InputError, match="PDUNROLL_LIBRARY must be plain or onednn, got 'mkl'"):
        kernels.choice("product", 32, 320, 320, torch.float32, "cpu", 1)


def test_only_float32_on_a_cpu_is_measured():
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "cuda")):
        assert isinstance(kernels.choice("product", 32, 64, 64, dtype, device, 1), Plain)


def test_a_library_must_win_clearly(monkeypatch):
    elapsed = iter(range(10**6))
    monkeypatch.setattr(kernels.time, "perf_counter", lambda: float(next(elapsed)))  # a clock that shows no difference
    assert isinstance(kernels.choice.__wrapped__("product", 4, 8, 8, torch.float32, "cpu", 1), Plain)


def test_scratch_memory_is_used_again_once_it_is_dead_and_not_before(monkeypatch):
    monkeypatch.setattr(kernels, "_kept", [])
    like = torch.zeros(1, dtype=torch.float64)
    first, second = scratch((30, 1000), like), scratch((30, 1000), like)
    assert first.data_ptr() != second.data_ptr()
    place = first.data_ptr()
    del first
    third = scratch((20, 1000), like)
    assert third.data_ptr() == place
    assert scratch((20, 1000), like).data_ptr() not in (place, second.data_ptr())


def test_scratch_takes_the_least_memory_that_is_enough(monkeypatch):
    monkeypatch.setattr(kernels, "_kept", [])
    like = torch.zeros(1)
    large, small = scratch((500,), like), scratch((5,), like)
    places = large.data_ptr(), small.data_ptr()
    del large, small
    small, large = scratch((4,), like), scratch((400,), like)
    assert (large.data_ptr(), small.data_ptr()) == places


def test_gradients_that_wait_do_not_share_memory():
    operator, truth, x = problem(B=3)
    strategy = pdunroll.Full()

    def loss(shift):
        restored = pdunroll.unroll(operator, x, radius=ETA, iterations=40, backprop=strategy)
        return 0.5 * (restored - shift * truth).square().sum()

    alone = [torch.autograd.grad(loss(shift), operator)[0] for shift in (1.0, 0.5)]
    waiting = [loss(1.0), loss(0.5)]
    for _ in range(2):  # twice, too
        for value, expected in zip(waiting, alone, strict=True):
            assert relative(torch.autograd.grad(value, operator, retain_graph=True)[0], expected) < 1e-12


def test_without_a_gradient_nothing_is_recorded(monkeypatch):
    operator, _, x = problem()
    expected = gradient(operator, x, x, 30)[0]
    monkeypatch.setattr("pdunroll.backprop.scratch", None)  # would be called to record
    with torch.no_grad():
        assert torch.equal(pdunroll.unroll(operator, x, radius=ETA, iterations=30), expected)
    assert torch.equal(pdunroll.unroll(operator.detach(), x, radius=ETA, iterations=30), expected)
    with pytest.raises(TypeError):
        pdunroll.unroll(operator, x, radius=ETA, iterations=30)
