"""The vertex that a frame's masks describe, by one linear solve.

Optima are vertices of a polytope as a rule. The masks of the proximal operators therefore stop changing after finitely
many iterations, and from then on say which equations the optimum solves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pdunroll.core.problem import Box, Dequantization, Masks


class ReducedOperator(NamedTuple):
    """Ktilde of each frame, the free rows and columns of K, as the upper left block of an s x s matrix.

    The identity completes it, to [[Ktilde, 0], [0, I]] where Ktilde is square. s is the largest number of free entries
    that any frame of the batch has.
    """

    matrix: Tensor  # (B, s, s)
    rows: Tensor  # their numbers in K, the free ones first  (B, s)
    columns: Tensor  # (B, s)
    row_is_free: Tensor  # (B, s)
    column_is_free: Tensor  # (B, s)
    square: Tensor  # which frames have as many free rows as free columns  (B,)


def reduced_operator(operator: Tensor, masks: Masks) -> ReducedOperator:
    """Return the free rows and columns of K (m, n) for each frame."""
    free_rows, free_columns = masks.dual.sum(dim=1), masks.primal.sum(dim=1)  # how many
    s = int(torch.maximum(free_rows, free_columns).max()) if len(free_rows) else 0
    s = min(s, *operator.shape)
    rows = masks.dual.int().argsort(dim=1, descending=True, stable=True)[:, :s]
    columns = masks.primal.int().argsort(dim=1, descending=True, stable=True)[:, :s]
    row_is_free, column_is_free = masks.dual.gather(1, rows), masks.primal.gather(1, columns)
    block = operator[rows[:, :, None], columns[:, None, :]] * (row_is_free[:, :, None] & column_is_free[:, None, :])
    identity = torch.diag_embed((~row_is_free & ~column_is_free).to(operator.dtype))
    return ReducedOperator(
        block + identity, rows, columns, row_is_free, column_is_free, square=free_rows == free_columns
    )


def lu_factors(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return factors, pivots and info of square matrices (B, s, s), as `torch.linalg.lu_factor_ex`.

    On CPUs one matrix after the other: with two threads or more the batched call gives wrong factors, with or without
    an error from MKL (PyTorch issue 142815, open in 2.13).
    """
    if matrices.device.type != "cpu" or len(matrices) < 2:
        return torch.linalg.lu_factor_ex(matrices)
    factors, pivots, info = zip(*(torch.linalg.lu_factor_ex(matrix) for matrix in matrices), strict=True)
    return torch.stack(factors), torch.stack(pivots), torch.stack(info)


def polish(
    problem: Dequantization, operator: Tensor, observation: Box, masks: Masks, primal: Tensor, dual: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the vertex that the masks of an iterate describe.

    Free rows of K y are 0 and fixed entries of y at the border of the box; fixed entries of psi are the signs of K y
    and free columns of K^T psi are 0:

        Ktilde y_free = -K[free, fixed] y_fixed        Ktilde^T psi_free = -K[fixed, free]^T psi_fixed

    The solution is projected to feasibility; its duality gap says whether it is optimal.

    Args:
        problem: the problem, which has the projections.
        operator: K, (m, n).
        observation: the box of each frame.
        masks: which entries are free at the iterate.
        primal: y of the iterate, (B, n), which gives the values of its fixed entries.
        dual: psi of the iterate, (B, m), likewise.

    Returns:
        y (B, n), psi (B, m), and which frames have a vertex (B,).
    """
    primal, dual = torch.where(masks.primal, 0.0, primal), torch.where(masks.dual, 0.0, dual)
    matrix, rows, columns, row_is_free, column_is_free, square = reduced_operator(operator, masks)
    matrix[~square] = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    factors, pivots, info = lu_factors(matrix)
    right = -(primal @ operator.T).gather(1, rows) * row_is_free
    left = -(dual @ operator).gather(1, columns) * column_is_free
    primal_free = torch.linalg.lu_solve(factors, pivots, right[:, :, None])[:, :, 0]
    dual_free = torch.linalg.lu_solve(factors, pivots, left[:, :, None], adjoint=True)[:, :, 0]
    primal = primal.scatter_add(1, columns, primal_free.nan_to_num() * column_is_free)
    dual = dual.scatter_add(1, rows, dual_free.nan_to_num() * row_is_free)
    return problem.prox_primal(primal, observation), problem.prox_dual(dual), square & (info == 0)
