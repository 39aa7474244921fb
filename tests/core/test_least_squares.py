"""Least squares without full rank: right, and the same whatever lay in memory before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pdunroll
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.implicit import least_squares

RADIUS = 1 / 16


def soil_memory(value: int) -> None:
    """Leave `value` in the small blocks of memory that are handed out next."""
    blocks = [torch.full((size,), value, dtype=torch.int32) for size in range(1, 64) for _ in range(20)]
    del blocks


def rank_deficient(rows: int, columns: int, rank: int) -> torch.Tensor:
    """Eight matrices (8, rows, columns) of this rank, whose first columns repeat each other."""
    generator = torch.Generator().manual_seed(rows + columns)
    left, right = (torch.randn(8, *shape, generator=generator) for shape in ((rows, rank), (rank, columns)))
    matrices = left.double() @ right.double()
    matrices[:, :, : columns // 2] = matrices[:, :, :1]
    return matrices


@pytest.mark.parametrize(("rows", "columns", "rank"), [(20, 20, 12), (30, 20, 20), (20, 30, 11), (5, 1, 1), (1, 5, 1)])
def test_least_squares_are_those_of_numpy_whatever_lay_in_memory(rows, columns, rank):
    matrices = rank_deficient(rows, columns, rank)
    right = torch.randn(8, rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = np.stack(
        [np.linalg.lstsq(*pair, rcond=1e-10)[0] for pair in zip(matrices.numpy(), right.numpy(), strict=True)]
    )
    results = set()
    for value in range(12):
        soil_memory(value)
        found = least_squares(matrices, right)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        results.add(found.numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("threads", [1, 4])
def test_least_squares_do_not_depend_on_threads(threads):
    matrices = rank_deficient(80, 80, 40)
    right = torch.ones(8, 80, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = least_squares(matrices, right)
    finally:
        torch.set_num_threads(before)
    expected = np.stack([np.linalg.pinv(matrix, rcond=1e-10) @ np.ones(80) for matrix in matrices.numpy()])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_a_right_side_with_nan_gives_nan():
    assert least_squares(rank_deficient(6, 6, 3), torch.full((8, 6), torch.nan).double()).isnan().all()


@pytest.mark.parametrize("rows", [18, 11, 25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_implicit_gives_one_gradient_whatever_lay_in_memory(rows, dtype):
    generator = torch.Generator().manual_seed(0)
    operator = pdunroll.dct_operator(rows, 18, dtype) + 0.08 * torch.randn(rows, 18, generator=generator).to(dtype)
    truth = (0.3 * torch.randn(16, 18, generator=generator)).clamp(-1, 1).to(dtype)
    observation = pdunroll.quantize(truth, bits=4)
    gradients = set()
    for value in range(24):
        soil_memory(value)
        K = operator.clone().requires_grad_()
        restored = pdunroll.unroll(K, observation, radius=RADIUS, iterations=7, backprop=pdunroll.Implicit())
        (0.5 * (restored - truth).square().sum()).backward()
        gradients.add(K.grad.numpy().tobytes())
    engine = engine_for(chambolle_pock(operator, radius=RADIUS), operator)
    _, (_, dual_mask, primal_mask, _) = pdunroll.Implicit().forward(engine, operator, observation, iterations=7)
    assert (dual_mask.sum(dim=1) != primal_mask.sum(dim=1)).any()  # degenerate frames
    assert len(gradients) == 1
