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
from oracles import ETA, NORMS, SHAPES, problem
from pdunroll.core.chambolle_pock import SAFE_NORMS, STEP_NORMS, chambolle_pock, frobenius_norm, spectral_norm
from pdunroll.core.problem import Box, Dequantization, active_set, dct_operator, dual_mask, released
from pdunroll.training.network import UnrolledNetwork


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norm", NORMS)
def test_iterates_are_those_of_algorithm_1(m, n, theta, norm):
    operator, _, x = problem(m, n)
    algorithm = chambolle_pock(operator, radius=ETA, step_ratio=3.0, extrapolation=theta, step_norm=norm)
    ours = list(islice(algorithm.iterates(operator.detach(), x), 25))
    for frame, column in enumerate(x.numpy()):
        expected = oracles.algorithm1(operator.detach().numpy(), column, ETA, 25, theta, 3.0, norm)
        y, ybar, psi, z_dual, z_primal = expected
        for l, iterate in enumerate(ours, start=1):
            for tensor, expected in zip(iterate, (z_dual, psi, z_primal, y, ybar), strict=True):
                np.testing.assert_allclose(tensor[frame].numpy(), expected[l], rtol=0, atol=1e-12)


def test_iterates_go_on_from_any_of_them():
    operator, _, x = problem(11, 18)
    K, algorithm = operator.detach(), chambolle_pock(operator, radius=ETA)
    whole = [*islice(algorithm.iterates(K, x), 9)]
    for one, other in zip(islice(algorithm.iterates(K, x, whole[3]), 5), whole[4:], strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("norm", NORMS)
def test_reaches_the_optimum_of_the_linear_program(norm):
    operator, _, x = problem(12, 12, B=3, seed=5)
    K = operator.detach().numpy()
    algorithm = chambolle_pock(operator, radius=ETA, step_norm=norm)
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


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("norm", "order"), [("frobenius", "fro"), ("spectral", 2)])
def test_step_sizes(m, n, dtype, norm, order):
    operator, _, _ = problem(m, n, dtype=dtype)
    algorithm = chambolle_pock(operator, radius=ETA, step_ratio=7.0, step_norm=norm)
    K = operator.detach().double().numpy()
    expected, tolerance = np.linalg.norm(K, order), 1e-6 if dtype == torch.float32 else 1e-12
    assert algorithm.sigma == pytest.approx(7 * 0.99 / expected, rel=tolerance)
    assert algorithm.tau == pytest.approx(0.99 / (7 * expected), rel=tolerance)
    assert algorithm.sigma * algorithm.tau * np.linalg.norm(K, 2) ** 2 < 1


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_published_step_sizes_are_those_of_the_dct(ratio):
    """sigma = 0.553 and tau = 0.00553 at the ratio of 10, as `tf.linalg.norm(K, ord=2)` gives them."""
    published = chambolle_pock(dct_operator(320, 320), radius=ETA, step_ratio=ratio)
    largest = chambolle_pock(dct_operator(320, 320), radius=ETA, step_ratio=ratio, step_norm="spectral")
    assert published.sigma == pytest.approx(0.99 * ratio / 320**0.5, rel=1e-6)
    assert published.tau == pytest.approx(0.99 / ratio / 320**0.5, rel=1e-6)
    assert (largest.sigma, largest.tau) == pytest.approx((0.99 * ratio, 0.99 / ratio), rel=1e-6)


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
    "float32 whose squares vanish": lambda g: 1e-38 * (1 + torch.rand(20, 30, generator=g)),
    "float32 whose squares overflow": lambda g: 1e37 * torch.randn(20, 30, generator=g),
    "squares that vanish": lambda g: 1e-200 * torch.randn(20, 30, generator=g, dtype=torch.float64),
    "squares that overflow": lambda g: 1e200 * torch.randn(20, 30, generator=g, dtype=torch.float64),
    "rows of many sizes": lambda g: (
        torch.logspace(-12, 12, 25, dtype=torch.float64)[:, None] * torch.randn(25, 9, generator=g, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("case", NORM_CASES)
def test_spectral_norm_is_that_of_the_svd(case):
    matrix = NORM_CASES[case](torch.Generator().manual_seed(1))
    expected = float(torch.linalg.svdvals(matrix.double())[0])
    assert spectral_norm(matrix) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", NORM_CASES)
def test_frobenius_norm_is_that_of_numpy(case):
    matrix = NORM_CASES[case](torch.Generator().manual_seed(1))
    wide = matrix.double().numpy()
    scale = np.abs(wide).max()  # numpy squares without a scale
    tolerance = 1e-6 if matrix.dtype == torch.float32 else 1e-13
    assert frobenius_norm(matrix) == pytest.approx(scale * np.linalg.norm(wide / scale, "fro"), rel=tolerance)


@pytest.mark.parametrize("bound", SAFE_NORMS)
@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frobenius_norm_is_right_on_both_sides_of_its_bounds(bound, factor, dtype):
    matrix = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=dtype)
    matrix = matrix / matrix.norm() * bound * factor
    expected = bound * np.linalg.norm(matrix.double().numpy() / bound)
    assert frobenius_norm(matrix) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", NORM_CASES)
def test_norms_keep_their_order(case):
    matrix = NORM_CASES[case](torch.Generator().manual_seed(1))
    spectral, frobenius = spectral_norm(matrix), frobenius_norm(matrix)
    assert spectral * (1 - 1e-6) <= frobenius <= min(matrix.shape) ** 0.5 * spectral * (1 + 1e-6)


@pytest.mark.parametrize("norm", STEP_NORMS.values(), ids=STEP_NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_refuse_what_is_no_finite_matrix(norm, dtype):
    for value in (math.nan, math.inf, -math.inf):
        matrix = torch.eye(4, dtype=dtype)
        matrix[1, 2] = value
        with pytest.raises(pdunroll.InputError, match="not finite"):
            norm(matrix)
    for shape in ((4,), (0, 4), (4, 0), (2, 3, 4), ()):
        with pytest.raises(pdunroll.InputError, match="must be a matrix"):
            norm(torch.ones(shape, dtype=dtype))
    assert norm(torch.zeros(3, 4, dtype=dtype)) == 0.0


def test_norms_take_operators_that_require_a_gradient():
    operator, _, _ = problem()
    for norm in STEP_NORMS.values():
        assert norm(operator) == norm(operator.detach())


@pytest.mark.parametrize("norm", NORMS)
def test_an_operator_of_zeros_has_no_step_sizes(norm):
    with pytest.raises(pdunroll.InputError, match="the operator is zero"):
        chambolle_pock(torch.zeros(3, 4), radius=ETA, step_norm=norm)


@pytest.mark.parametrize("norm", ["foo", "Frobenius", "", None, 2])
def test_other_norms_are_refused_in_one_line(norm):
    network = UnrolledNetwork(
        rows=4, frame_length=4, radius=ETA, iterations=1, backprop=pdunroll.Full(), step_norm=norm
    )
    for attempt in (
        lambda: chambolle_pock(torch.eye(4), radius=ETA, step_norm=norm),
        lambda: pdunroll.unroll(torch.eye(4), torch.zeros(1, 4), radius=ETA, iterations=1, step_norm=norm),
        lambda: network(torch.zeros(1, 4)),
    ):
        with pytest.raises(pdunroll.InputError) as caught:
            attempt()
        assert str(caught.value) == f"step_norm must be one of frobenius, spectral, got {norm!r}"


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
    least = torch.finfo(dtype).eps
    z = torch.tensor([[-1.5, -1.0, 0.0, 1.0, 1.0 + least]], dtype=dtype)
    assert dual_mask(z).tolist() == [[False, True, True, True, False]]
    x = torch.full((1, 5), 0.5, dtype=dtype)
    z = torch.tensor([[0.25, 0.75, 0.5, 0.25 - least, 0.75 + least]], dtype=dtype)
    assert active_set(Box.around(x, 0.25)).of(z).tolist() == [[True, True, True, False, False]]
    z = torch.tensor([[0.0, 2.0, 1.0, -least, 2.0 + 2 * least]], dtype=dtype)
    assert released(Box.around(x, 0.25)).of(z).tolist() == [[True, True, True, False, False]]
    z = torch.tensor([[0.1, -0.1]], dtype=dtype)  # which float32 rounds, as it does the bound
    assert active_set(Box.around(torch.zeros_like(z), 0.1)).of(z).tolist() == [[True, True]]


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
