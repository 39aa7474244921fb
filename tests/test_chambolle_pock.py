"""Algorithm 1, its proximal operators and step sizes, against transcriptions, brute force and linear programming."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import scipy.fft
import torch
from scipy.optimize import linprog

import oracles
import pdunroll
from pdunroll.chambolle_pock import Place, chambolle_pock, spectral_norm
from pdunroll.problem import Dequantization, Jacobian, active_set, dct_operator, dual_jacobian, released
from test_backprop import ETA, SHAPES, problem


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0])
def test_iterates_are_those_of_algorithm_1(m, n, theta):
    operator, _, x = problem(m, n)
    algorithm = chambolle_pock(operator, radius=ETA, step_ratio=3.0, extrapolation=theta)
    ours = list(islice(algorithm.iterates(operator.detach(), x), 25))
    for frame, column in enumerate(x.numpy()):
        y, ybar, psi, z_dual, z_primal = oracles.algorithm1(operator.detach().numpy(), column, ETA, 25, theta, 3.0)
        for l, iterate in enumerate(ours, start=1):
            for tensor, expected in zip(iterate, (z_dual, psi, z_primal, y, ybar), strict=True):
                np.testing.assert_allclose(tensor[frame].numpy(), expected[l], rtol=0, atol=1e-12)


def test_results_go_to_their_places():
    operator, _, x = problem(11, 18)
    K = operator.detach()
    algorithm = chambolle_pock(K, radius=ETA)
    places = [Place(*(torch.empty(4, size, dtype=K.dtype) for size in (11, 11, 18, 18, 18))) for _ in range(9)]
    ours = [*algorithm.iterates(K, x, None, places)]
    theirs = [*islice(algorithm.iterates(K, x), 9)]
    for one, other, place in zip(ours, theirs, places, strict=True):
        assert all(mine is memory for mine, memory in zip(one, place, strict=True))
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("number", [1, 2, 17])
def test_the_last_iterate_is_that_of_the_generator(number):
    operator, _, x = problem(11, 18)
    K = operator.detach()
    algorithm = chambolle_pock(K, radius=ETA)
    expected = [*islice(algorithm.iterates(K, x), number)]
    assert all(map(torch.equal, algorithm.iterate(K, x, number), expected[-1]))
    later = algorithm.iterate(K, x, 3, expected[-1].state)
    assert all(map(torch.equal, later, algorithm.iterate(K, x, number + 3)))
    z_dual, z_primal = torch.empty(number, 4, 11, dtype=K.dtype), torch.empty(number, 4, 18, dtype=K.dtype)
    state = algorithm.record(K, x, algorithm.start(K, x), z_dual, z_primal)
    assert all(map(torch.equal, state, expected[-1].state))
    assert torch.equal(z_dual, torch.stack([iterate.z_dual for iterate in expected]))
    assert torch.equal(z_primal, torch.stack([iterate.z_primal for iterate in expected]))


def test_reaches_the_optimum_of_the_linear_program():
    operator, _, x = problem(12, 12, B=3, seed=5)
    K = operator.detach().numpy()
    algorithm = chambolle_pock(operator, radius=ETA)
    *_, last = islice(algorithm.iterates(operator.detach(), x), 20_000)
    reached = Dequantization(ETA).objective(operator.detach(), last.primal)
    for frame, column in enumerate(x.numpy()):  # min sum t  s.t.  -t <= K y <= t,  |y - x| <= eta
        identity = np.eye(12)
        optimum = linprog(
            np.r_[np.zeros(12), np.ones(12)],
            A_ub=np.block([[K, -identity], [-K, -identity]]),
            b_ub=np.zeros(24),
            bounds=[(c - ETA, c + ETA) for c in column] + [(0, None)] * 12,
        ).fun
        assert float(reached[frame]) == pytest.approx(optimum, rel=1e-6, abs=1e-9)


def test_step_sizes():
    operator, _, _ = problem()
    algorithm = chambolle_pock(operator, radius=ETA, step_ratio=7.0)
    norm = np.linalg.norm(operator.detach().numpy(), 2)
    assert algorithm.sigma == pytest.approx(7 * 0.99 / norm, rel=1e-12)
    assert algorithm.tau == pytest.approx(0.99 / (7 * norm), rel=1e-12)


NORM_CASES = {
    "square": lambda g: torch.randn(40, 40, generator=g, dtype=torch.float64),
    "wide": lambda g: torch.randn(12, 40, generator=g, dtype=torch.float64),
    "tall": lambda g: torch.randn(40, 12, generator=g, dtype=torch.float64),
    "orthonormal": lambda g: dct_operator(64, 64, torch.float64),
    "nearly orthonormal": lambda g: (
        dct_operator(64, 64, torch.float64) + 1e-4 * torch.randn(64, 64, generator=g, dtype=torch.float64)
    ),
    "rank one": lambda g: torch.outer(torch.arange(9.0), torch.ones(7)).double(),
    "tiny": lambda g: 1e-20 * torch.randn(20, 20, generator=g, dtype=torch.float64),
    "huge": lambda g: 1e20 * torch.randn(20, 20, generator=g, dtype=torch.float64),
    "row": lambda g: torch.ones(1, 5, dtype=torch.float64),
    "not contiguous": lambda g: torch.randn(40, 30, generator=g, dtype=torch.float64)[::2, 1::3],
    "float32": lambda g: torch.randn(40, 40, generator=g),
}


@pytest.mark.parametrize("case", NORM_CASES)
def test_spectral_norm_is_that_of_the_svd(case):
    matrix = NORM_CASES[case](torch.Generator().manual_seed(1))
    expected = float(torch.linalg.svdvals(matrix.double())[0])
    assert spectral_norm(matrix) == pytest.approx(expected, rel=1e-12)


def test_spectral_norm_refuses_what_is_not_finite():
    for value in (math.nan, math.inf):
        matrix = torch.eye(4)
        matrix[1, 2] = value
        with pytest.raises(pdunroll.InputError, match="not finite"):
            spectral_norm(matrix)
    assert spectral_norm(torch.zeros(3, 4)) == 0.0


def test_proximal_operators_minimise_what_they_should():
    grid = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    problem_ = Dequantization(0.25)
    for z in (-1.7, -1.0, -0.25, -0.1, 0.0, 0.2, 0.3, 1.2):
        primal = lambda z: problem_.prox_primal(z, problem_.box(torch.zeros_like(z)))  # noqa: E731
        for prox, bound in ((problem_.prox_dual, 1.0), (primal, 0.25)):
            objective = torch.where(grid.abs() <= bound + 1e-12, 0.5 * (grid - z) ** 2, torch.inf)
            best = float(grid[objective.argmin()])
            assert float(prox(torch.tensor([z], dtype=torch.float64))) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jacobians_include_their_borders(dtype):
    def diagonal(jacobian):
        ones = torch.ones_like(jacobian.argument)
        assert torch.equal(jacobian.times(3 * ones), 3 * jacobian.mask())
        place = torch.empty_like(ones)
        assert jacobian.times(ones, place) is place
        assert torch.equal(place, jacobian.mask().to(dtype))
        argument = jacobian.argument.clone()
        assert torch.equal(Jacobian(argument, jacobian.bound).times(ones, argument), place)  # in its own memory, too
        return jacobian.mask().tolist()

    least = torch.finfo(dtype).eps
    z = torch.tensor([[-1.5, -1.0, 0.0, 1.0, 1.0 + least]], dtype=dtype)
    assert diagonal(dual_jacobian(z)) == [[False, True, True, True, False]]
    x = torch.full((1, 5), 0.5, dtype=dtype)
    z = torch.tensor([[0.25, 0.75, 0.5, 0.25 - least, 0.75 + least]], dtype=dtype)
    assert diagonal(active_set(Dequantization(0.25), z, x)) == [[True, True, True, False, False]]
    z = torch.tensor([[0.0, 2.0, 1.0, -least, 2.0 + 2 * least]], dtype=dtype)
    assert diagonal(released(Dequantization(0.25), z, x)) == [[True, True, True, False, False]]
    bound = Dequantization(0.1)  # which float32 rounds, as it does the argument that should just be within
    z = torch.tensor([[0.1, -0.1]], dtype=dtype)
    assert diagonal(active_set(bound, z, torch.zeros_like(z))) == [[True, True]]


@pytest.mark.parametrize("radius", [0, -0.1, math.nan, math.inf, "wide"])
def test_bad_radius(radius):
    with pytest.raises(pdunroll.InputError, match="radius"):
        Dequantization(radius)


def test_dct_operator():
    expected = scipy.fft.dct(np.eye(16), norm="ortho", axis=0)
    np.testing.assert_allclose(dct_operator(16, 16, torch.float64).numpy(), expected, atol=1e-14)
    short, tall = dct_operator(10, 16, torch.float64), dct_operator(20, 16, torch.float64)
    torch.testing.assert_close(short @ short.T, torch.eye(10, dtype=torch.float64))
    torch.testing.assert_close(tall.T @ tall, torch.eye(16, dtype=torch.float64))
    np.testing.assert_allclose(short.numpy(), expected[:10], atol=1e-14)
