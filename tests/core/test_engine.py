"""The engine's blocks of iterations against the pure steps that define them, in every way that it runs them."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

import pdunroll
from oracles import ETA, MASKS, SHAPES, gradient, problem, relative
from pdunroll.core import compiled, engine, graphed
from pdunroll.core.chambolle_pock import Adjoint, Masks, chambolle_pock
from pdunroll.core.compiled import CompiledEngine, compiled_loops
from pdunroll.core.dispatch import engine_for
from pdunroll.core.engine import Engine, flush_denormals, memory
from pdunroll.core.graphed import GraphedEngine
from pdunroll.core.problem import PRIMAL_MASKS

PRODUCTS = list(compiled_loops()[1])
KINDS = ["pure", "graphed", *PRODUCTS]


def made(kind, algorithm):
    makers = {"pure": Engine, "graphed": GraphedEngine}
    return makers[kind](algorithm) if kind in makers else CompiledEngine(algorithm, kind)


def given(kind, m, n, **options):
    """An engine, its algorithm, and K, truth and x in the dtype that the engine is for."""
    dtype = torch.float32 if kind in PRODUCTS else torch.float64
    operator, truth, x = problem(m, n, B=options.pop("B", 4), dtype=dtype)
    algorithm = chambolle_pock(operator, radius=ETA, **options)
    return made(kind, algorithm), algorithm, operator.detach(), truth, x, 2e-5 if kind in PRODUCTS else 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0])
def test_iterates_are_those_of_the_pure_steps(captures, kind, m, n, theta):
    ours, algorithm, K, _, x, tolerance = given(kind, m, n, extrapolation=theta)
    expected = [*islice(algorithm.iterates(K, x), 17)]
    for count in (1, 5, 17):
        iterate = ours.iterate(K, x, count)
        for one, other in zip(iterate, expected[count - 1], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    for one, other in zip(ours.iterate(K, x, 4, expected[12]), expected[16], strict=True):  # from there on
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", MASKS)
def test_what_is_recorded_are_the_iterates_and_their_masks(captures, kind, mask):
    ours, algorithm, K, _, x, tolerance = given(kind, 11, 18)
    expected = [*islice(algorithm.iterates(K, x), 16)]
    chosen = PRIMAL_MASKS[mask]
    tape, last = ours.record(K, x, 13, chosen, expected[2])
    bars = torch.stack([s.extrapolated for s in expected[2:-1]])
    torch.testing.assert_close(tape.extrapolated, bars, rtol=0, atol=tolerance)
    torch.testing.assert_close(tape.dual, torch.stack([s.dual for s in expected[3:]]), rtol=0, atol=tolerance)
    for one, other in zip(last, expected[-1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    for number, iterate in enumerate(expected[3:]):
        for one, other in zip(tape.masks, algorithm.masks(iterate, x, chosen), strict=True):
            assert one[number].dtype == torch.bool
            assert torch.equal(one[number], other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", MASKS)
def test_adjoints_are_those_of_the_pure_steps(captures, kind, mask):
    ours, algorithm, K, truth, x, tolerance = given(kind, 11, 18, extrapolation=0.7)
    iterates = [*islice(algorithm.iterates(K, x), 12)]
    masks = [algorithm.masks(s, x, PRIMAL_MASKS[mask]) for s in iterates]
    adjoint = algorithm.adjoint_start(K, iterates[-1].primal - truth)
    expected = []
    for own in reversed(masks):
        adjoint = algorithm.adjoint_step(K, own, adjoint)
        expected.insert(0, adjoint)
    start = algorithm.adjoint_start(K, iterates[-1].primal - truth)
    delta_primal, delta_dual = torch.full_like(x, torch.nan).repeat(12, 1, 1), K.new_full((12, 4, 11), torch.nan)
    for block in (slice(7, 12), slice(0, 7)):  # the last ones first
        stacked = Masks(*(torch.stack(parts) for parts in zip(*masks[block], strict=True)))
        start = ours.backward(K, stacked, start, delta_primal[block], delta_dual[block])
    torch.testing.assert_close(delta_primal, torch.stack([d.primal for d in expected]), rtol=0, atol=tolerance)
    torch.testing.assert_close(delta_dual, torch.stack([d.dual for d in expected]), rtol=0, atol=tolerance)
    for one, other in zip(start, expected[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_those_of_the_pure_steps(captures, kind):
    ours, algorithm, K, truth, x, tolerance = given(kind, 18, 11)
    iterate = ours.iterate(K, x, 9)
    masks = algorithm.masks(iterate, x, PRIMAL_MASKS["active_set"])
    adjoint = algorithm.adjoint_start(K, iterate.primal - truth)
    expected = torch.zeros_like(adjoint.primal), torch.zeros_like(adjoint.dual)
    sums = tuple(part.clone() for part in expected)
    start = Adjoint(*adjoint)
    for _ in range(13):
        adjoint = algorithm.adjoint_step(K, masks, adjoint)
        expected = expected[0] + adjoint.primal, expected[1] + adjoint.dual
    for count in (6, 7):
        start = ours.backward_sums(K, masks, count, start, sums)
    for one, other in zip((*sums, *start), (*expected, *adjoint), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_matrices_in_any_layout(kind):
    ours, _, K, _, x, tolerance = given(kind, 11, 18)
    base = torch.ones(4, 11, dtype=K.dtype)
    torch.testing.assert_close(ours.product(base, x, K, 0.5), base + 0.5 * x @ K.T, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours.product(x, base, K.T, -2.0), x - 2.0 * base @ K, rtol=0, atol=tolerance)
    total = torch.ones(11, 18, dtype=K.dtype)
    ours.add_outer(total, 3.0, base, x)
    torch.testing.assert_close(total, 1 + 3.0 * base.T @ x, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("strategy", [pdunroll.Full(), pdunroll.Full(checkpoint_every=7), pdunroll.Truncated()])
def test_one_machine_gives_the_same_bits(monkeypatch, product, strategy):
    monkeypatch.setenv("PDUNROLL_PRODUCT", product)
    operator, truth, x = problem(48, 64, B=32, dtype=torch.float32)
    runs = [gradient(operator, truth, x, 40, strategy) for _ in range(3)]
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@pytest.mark.parametrize("product", [*PRODUCTS, "torch"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("mode", [pdunroll.Full, pdunroll.Truncated])
def test_float32_gradients_are_those_of_float64_but_for_rounding(monkeypatch, product, mode, mask):
    monkeypatch.setenv("PDUNROLL_PRODUCT", product)
    operator, truth, x = problem(48, 64, B=32, dtype=torch.float32)
    strategy = mode(primal_mask=mask)
    restored, ours = gradient(operator, truth, x, 12, strategy)
    wide = operator.detach().double().requires_grad_()
    expected, theirs = gradient(wide, truth.double(), x.double(), 12, strategy)
    torch.testing.assert_close(restored.double(), expected, rtol=0, atol=1e-5)
    assert relative(ours.double(), theirs) < 1e-5


def test_borders_belong_to_the_masks():
    K = torch.eye(2)
    algorithm = chambolle_pock(K, radius=0.5, step_ratio=1.0, step_norm="spectral")
    x = torch.tensor([[0.0, 0.0]])
    start = algorithm.start(K, x)._replace(dual=torch.tensor([[1.0, -1.0]]), primal=x)  # z_D = 1 and -1
    for kind in ("pure", *PRODUCTS):
        tape, _ = made(kind, algorithm).record(K, x, 1, PRIMAL_MASKS["active_set"], start)
        assert tape.masks.dual.tolist() == [[[True, True]]]


def test_the_product_is_chosen_by_what_is_installed_and_the_environment(monkeypatch):
    algorithm = chambolle_pock(problem()[0], radius=ETA)
    single, double = torch.eye(3), torch.eye(3, dtype=torch.float64)
    assert type(engine_for(algorithm, double)) is Engine
    assert engine_for(algorithm, single).name == (PRODUCTS or ["torch"])[0]
    for product in (*PRODUCTS, "torch"):
        monkeypatch.setenv("PDUNROLL_PRODUCT", product)
        assert engine_for(algorithm, single).name == product
    monkeypatch.setenv("PDUNROLL_PRODUCT", "abacus")
    with pytest.raises(pdunroll.InputError, match=r"PDUNROLL_PRODUCT must be one of .*torch; got 'abacus'"):
        engine_for(algorithm, single)


def test_without_numba_or_a_library_the_pure_steps_run(monkeypatch):
    operator, truth, x = problem(11, 18, dtype=torch.float32)
    expected = gradient(operator, truth, x, 20)
    monkeypatch.setattr(compiled, "compiled_loops", lambda: (None, {}))
    assert type(engine_for(chambolle_pock(operator, radius=ETA), operator)) is Engine
    ours = gradient(operator, truth, x, 20)
    torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=2e-5)
    assert relative(ours[1], expected[1]) < 1e-4


def test_libraries_that_are_not_there_are_passed_over(monkeypatch):
    def missing():
        raise StopIteration

    monkeypatch.setattr(
        compiled, "PRODUCTS", {"onednn": (missing, "dnnl_sgemm"), "mkl": (lambda: "/nowhere.so", "sgemm_")}
    )
    assert compiled._addresses() == {}


STRATEGIES = {
    "full": lambda mask: pdunroll.Full(primal_mask=mask),
    "checkpoints": lambda mask: pdunroll.Full(primal_mask=mask, checkpoint_every=7),
    "truncated": lambda mask: pdunroll.Truncated(primal_mask=mask, iterations=12),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_by_graphs_are_those_of_the_pure_steps(captures, monkeypatch, strategy, mask):
    backprop = STRATEGIES[strategy](mask)
    monkeypatch.setattr("pdunroll.core.backward.ROWS", 16)  # of 4 frames, so 4 iterations in a block

    def both(seed, L, radius=ETA):
        operator, truth, x = problem(11, 18, seed=seed)
        algorithm, K = chambolle_pock(operator, radius=radius, extrapolation=0.7), operator.detach()
        results = []
        for kind in (Engine(algorithm), GraphedEngine(algorithm)):
            primal, kept = backprop.forward(kind, K, x, L)
            results.append((primal, backprop.gradient(kind, K, kept, L, primal - truth)))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-12)
        assert relative(results[1][1], results[0][1]) < 1e-10

    both(0, 18)
    once = list(captures)
    for seed in (1, 2, 3):
        both(seed, 18)
    assert captures == once  # a training captures nothing after its first step
    both(0, 18, radius=0.1)  # what a graph holds is in its key
    assert len(captures) == 2 * len(once)


def test_a_training_on_a_gpu_would_use_graphs(captures, monkeypatch):
    operator, truth, x = problem(11, 18)
    expected = [gradient(operator, truth, x, 18, strategy("active_set")) for strategy in STRATEGIES.values()]
    assert not captures
    monkeypatch.setattr("pdunroll.core.unroll.engine_for", lambda algorithm, K: GraphedEngine(algorithm))
    for strategy, (restored, theirs) in zip(STRATEGIES.values(), expected, strict=True):
        ours = gradient(operator, truth, x, 18, strategy("active_set"))
        torch.testing.assert_close(ours[0], restored, rtol=0, atol=1e-12)
        assert relative(ours[1], theirs) < 1e-10
    assert set(captures) == {"_iterate", "_record", "_backward", "_backward_sums"}


def test_graphs_that_were_not_used_for_long_are_let_go(captures, monkeypatch):
    monkeypatch.setattr(graphed, "GRAPHS", 2)
    for number in (1, 2, 3, 2, 1):
        operator, _, x = problem(11, 18)
        GraphedEngine(chambolle_pock(operator, radius=ETA)).iterate(operator.detach(), x, number)
    assert len(captures) == 4
    assert len(graphed._graphs) == 2


class OnCuda:
    """What `engine_for` asks of an operator on a GPU."""

    device, dtype = torch.device("cuda"), torch.float32


def test_the_environment_can_take_graphs_away(monkeypatch):
    algorithm = chambolle_pock(problem()[0], radius=ETA)
    assert isinstance(engine_for(algorithm, OnCuda()), GraphedEngine)
    monkeypatch.setenv("PDUNROLL_GRAPHS", "off")
    assert type(engine_for(algorithm, OnCuda())) is Engine
    monkeypatch.setenv("PDUNROLL_GRAPHS", "none")
    with pytest.raises(pdunroll.InputError, match="PDUNROLL_GRAPHS must be on or off, got 'none'"):
        engine_for(algorithm, OnCuda())


def test_denormals_are_flushed_inside_and_only_there():
    def tiny():
        return float(torch.tensor(1e-40) * 1.0)

    assert tiny() > 0
    with flush_denormals():
        assert tiny() == 0
        with flush_denormals():
            pass
        assert tiny() == 0
    assert tiny() > 0


def test_memory_is_used_again_once_it_is_dead_and_not_before(monkeypatch):
    monkeypatch.setattr(engine, "_kept", [])
    monkeypatch.setattr(engine, "SMALL", 0)
    like = torch.zeros(1, dtype=torch.float64)
    first, second = memory((30, 1000), like), memory((30, 1000), like)
    assert first.data_ptr() != second.data_ptr()
    place = first.data_ptr()
    del first
    third = memory((20, 1000), like)
    assert third.data_ptr() == place
    assert memory((20, 1000), like).data_ptr() not in (place, second.data_ptr())
    assert memory((20, 1000), like, torch.bool).dtype == torch.bool


def test_the_least_memory_that_is_enough_is_taken(monkeypatch):
    monkeypatch.setattr(engine, "_kept", [])
    monkeypatch.setattr(engine, "SMALL", 0)
    like = torch.zeros(1)
    large, small = memory((500,), like), memory((5,), like)
    places = large.data_ptr(), small.data_ptr()
    del large, small
    small, large = memory((4,), like), memory((400,), like)
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
    monkeypatch.setattr(Engine, "record", None)
    with torch.no_grad():
        assert torch.equal(pdunroll.unroll(operator, x, radius=ETA, iterations=30), expected)
    assert torch.equal(pdunroll.unroll(operator.detach(), x, radius=ETA, iterations=30), expected)
    with pytest.raises(TypeError):
        pdunroll.unroll(operator, x, radius=ETA, iterations=30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strategy", [pdunroll.Full(), pdunroll.Full(checkpoint_every=2), pdunroll.Truncated()])
def test_an_empty_batch_has_a_zero_gradient(strategy, dtype):
    operator, _, _ = problem(11, 18, dtype=dtype)
    x = torch.zeros(0, 18, dtype=dtype)
    restored, ours = gradient(operator, x, x, 5, strategy)
    assert restored.shape == (0, 18)
    assert torch.equal(ours, torch.zeros(11, 18, dtype=dtype))


@pytest.mark.parametrize("scale", [3e-37, 1e-30, 1e30])
def test_the_scale_of_the_operator_changes_nothing(scale):
    operator, truth, x = problem(11, 18, dtype=torch.float32)
    expected = gradient(operator, truth, x, 20)
    scaled = (operator.detach() * scale).requires_grad_()
    restored, ours = gradient(scaled, truth, x, 20)
    torch.testing.assert_close(restored, expected[0], rtol=0, atol=2e-5)
    assert relative(ours.double() * scale, expected[1].double()) < 1e-3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_observations_that_are_not_finite_are_refused(value):
    operator, _, x = problem()
    x[1, 2] = value
    with pytest.raises(pdunroll.InputError, match="observation holds NaN or infinite samples"):
        pdunroll.unroll(operator, x, radius=ETA, iterations=3)


@pytest.mark.parametrize("backprop", ["full", pdunroll.Full, 3])
def test_what_is_no_strategy_is_refused(backprop):
    operator, _, x = problem()
    with pytest.raises(pdunroll.InputError, match=r"backprop must be a strategy such as pdunroll.Full\(\)"):
        pdunroll.unroll(operator, x, radius=ETA, iterations=3, backprop=backprop)


def test_arrays_and_sparse_tensors_are_refused():
    operator, _, x = problem()
    for K, observation in ((operator.detach().numpy(), x), (operator, x.numpy())):
        with pytest.raises(pdunroll.InputError, match=r"(operator|observation) must be a tensor, got"):
            pdunroll.unroll(K, observation, radius=ETA, iterations=3)
    with pytest.raises(pdunroll.InputError, match="operator must be a dense tensor"):
        pdunroll.unroll(operator.detach().to_sparse(), x, radius=ETA, iterations=3)


@pytest.mark.parametrize("extrapolation", [None, True, "1", -0.1, 1.5, float("nan")])
def test_extrapolations_out_of_range_are_refused(extrapolation):
    operator, _, x = problem()
    with pytest.raises(pdunroll.InputError, match=r"extrapolation must be in \[0, 1\]"):
        pdunroll.unroll(operator, x, radius=ETA, iterations=3, extrapolation=extrapolation)


@pytest.mark.filterwarnings("ignore")  # what torch.compile says of itself
def test_a_module_that_unrolls_can_be_compiled():
    class Module(torch.nn.Module):
        def __init__(self, operator):
            super().__init__()
            self.operator = torch.nn.Parameter(operator)

        def forward(self, x):
            return 2.0 * pdunroll.unroll(self.operator, x, radius=ETA, iterations=5)

    operator, _, x = problem(11, 18, dtype=torch.float32)
    module = Module(operator.detach())
    expected = module(x)
    restored = torch.compile(module, backend="eager")(x)
    assert torch.equal(restored, expected)
    restored.sum().backward()
    assert module.operator.grad is not None
