"""Stretches of the loops as graphs, with recorded operations in place of CUDA graphs, against the plain loops."""

from __future__ import annotations

import pytest
import torch

import pdunroll
from pdunroll import graphs
from pdunroll.chambolle_pock import chambolle_pock
from pdunroll.graphs import GraphedChambollePock, graphed, suited
from test_backprop import ETA, MASKS, gradient, problem, relative


@pytest.mark.parametrize("number", [1, 5, 13])
def test_iterates_are_those_of_the_plain_loop(captures, number):
    for seed in range(3):  # other operators and frames, by the same graphs
        operator, _, x = problem(11, 18, seed=seed)
        algorithm = chambolle_pock(operator.detach(), radius=ETA)
        expected = algorithm.iterate(operator.detach(), x, number)
        for ours, theirs in zip(graphed(algorithm).iterate(operator.detach(), x, number), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert captures == ["iterate"] * (1 if number <= 5 else 2)


STRATEGIES = {
    "full": lambda mask: pdunroll.Full(primal_mask=mask),
    "checkpoints": lambda mask: pdunroll.Full(primal_mask=mask, checkpoint_every=7),
    "truncated": lambda mask: pdunroll.Truncated(primal_mask=mask, iterations=12),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_the_plain_loop(captures, monkeypatch, strategy, mask):
    backprop = STRATEGIES[strategy](mask)
    monkeypatch.setattr("pdunroll.backprop.ROWS", 16)  # of 4 frames, so 4 iterations in a block

    def both(seed, L, radius=ETA):
        operator, truth, x = problem(11, 18, seed=seed)
        algorithm, K = chambolle_pock(operator, radius=radius, extrapolation=0.7), operator.detach()
        results = []
        for kind in (algorithm, graphed(algorithm)):
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


def test_a_training_on_a_gpu_would_use_them(captures, monkeypatch):
    operator, truth, x = problem(11, 18)
    expected = [gradient(operator, truth, x, 18, strategy("active_set")) for strategy in STRATEGIES.values()]
    assert not captures
    monkeypatch.setattr("pdunroll.backprop.suited", lambda algorithm, device: suited(algorithm, torch.device("cuda")))
    for strategy, (restored, theirs) in zip(STRATEGIES.values(), expected, strict=True):
        ours = gradient(operator, truth, x, 18, strategy("active_set"))
        torch.testing.assert_close(ours[0], restored, rtol=0, atol=1e-12)
        assert relative(ours[1], theirs) < 1e-10
    assert set(captures) == {"iterate", "record", "adjoint_blocks", "adjoint_sums"}


def test_graphs_that_were_not_used_for_long_are_let_go(captures, monkeypatch):
    monkeypatch.setattr(graphs, "GRAPHS", 2)
    for number in (1, 2, 3, 2, 1):
        operator, _, x = problem(11, 18)
        graphed(chambolle_pock(operator, radius=ETA)).iterate(operator.detach(), x, number)
    assert len(captures) == 4
    assert len(graphs._graphs) == 2


def test_the_environment_can_take_graphs_away(monkeypatch):
    algorithm = chambolle_pock(problem()[0], radius=ETA)
    assert suited(algorithm, torch.device("cpu")) is algorithm
    assert isinstance(suited(algorithm, torch.device("cuda")), GraphedChambollePock)
    monkeypatch.setenv("PDUNROLL_GRAPHS", "off")
    assert suited(algorithm, torch.device("cuda")) is algorithm
    monkeypatch.setenv("PDUNROLL_GRAPHS", "none")
    with pytest.raises(pdunroll.InputError, match="PDUNROLL_GRAPHS must be on or off, got 'none'"):
        suited(algorithm, torch.device("cuda"))
