"""The lower-level problem: speech dequantization, its proximal operators and their Jacobians.

    y_hat in argmin_y ||K y||_1   subject to   ||y - x||_inf <= radius

that is F(K y) + G(y - x) with F = ||.||_1 and G the indicator of the box of half width `radius`.
Source: Brauer and Lorenz (EUSIPCO 2023), section "Speech dequantization".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdunroll.errors import InputError, require_integer, require_positive, shown


class Box(NamedTuple):
    """The least and the largest feasible value of each sample."""

    lower: Tensor  # (B, n)
    upper: Tensor  # (B, n)


@dataclass(frozen=True)
class Dequantization:
    """The problem for one operator and one batch; `radius` is half a quantization step."""

    radius: float

    def __post_init__(self) -> None:
        require_positive("radius", self.radius)

    def objective(self, operator: Tensor, primal: Tensor) -> Tensor:
        """Return ||K y||_1 of each frame; primal (B, n) -> (B,)."""
        return (primal @ operator.T).abs().sum(dim=1)

    def prox_dual(self, z_dual: Tensor) -> Tensor:
        """Return the prox of sigma F*: the projection onto {||psi||_inf <= 1}, whatever sigma."""
        return torch.clamp(z_dual, -1.0, 1.0)

    def box(self, observation: Tensor) -> Box:
        """Return the feasible y of each frame: from x - radius to x + radius."""
        return Box(observation - self.radius, observation + self.radius)

    def prox_primal(self, z_primal: Tensor, box: Box) -> Tensor:
        """Return the prox of tau G(. - x): the projection onto the box, whatever tau."""
        return torch.clamp(z_primal, *box)


class PrimalMask(NamedTuple):
    """A Jacobian of the primal projection: diagonal, 1 where |z_P - shift * x| <= bound and 0 elsewhere."""

    shift: float
    bound: float

    def of(self, z_primal: Tensor, observation: Tensor) -> Tensor:
        """Return the diagonal at z_P (..., n) as booleans."""
        return torch.sub(z_primal, observation, alpha=self.shift).abs() <= self.bound


def dual_mask(z_dual: Tensor) -> Tensor:
    """Return the diagonal of the Jacobian of `prox_dual` at z_D, as booleans: 1 where |z_D| <= 1."""
    return z_dual.abs() <= 1.0


def active_set(radius: float) -> PrimalMask:
    """Return the paper's formula, the Jacobian of `prox_primal`: 1 where |z_P - x| <= radius."""
    return PrimalMask(1.0, radius)


def released(radius: float) -> PrimalMask:
    """Return what the authors' released code computes instead: 1 where |z_P - 2 x| <= 1.

    Its z_P has x subtracted already, the backward pass subtracts x once more and compares with 1 instead of the
    radius (`chrbraue/primal_dual_networks`, folder eusipco2023, commit 032c7bb). On speech nearly all entries are 1:
    the gradient passes straight through the projection.
    """
    return PrimalMask(2.0, 1.0)


# The two decide what training achieves.
PRIMAL_MASKS: dict[str, Callable[[float], PrimalMask]] = {"active_set": active_set, "released": released}


def require_problem(operator: object, observation: object) -> None:
    """Raise `InputError` unless these are an operator (m, n) and finite frames (B, n), dense tensors on one device."""
    for name, value in (("operator", operator), ("observation", observation)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name} must be a tensor, got {type(value).__name__}; torch.from_numpy takes an array")
        if value.layout != torch.strided:
            raise InputError(f"{name} must be a dense tensor; call to_dense() first")
        if value.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{name} must be float32 or float64, got {value.dtype}")
    if operator.ndim != 2 or observation.ndim != 2 or operator.shape[1] != observation.shape[1]:
        shapes = f"{tuple(operator.shape)} and {tuple(observation.shape)}"
        raise InputError(f"operator and observation must have shapes (m, n) and (B, n), got {shapes}")
    if operator.device != observation.device:
        raise InputError(f"operator is on {operator.device} and observation on {observation.device}; move one")
    if not bool(observation.isfinite().all()):
        raise InputError("observation holds NaN or infinite samples; replace them")


def dct_operator(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The orthonormal DCT-II as initial operator, (rows, columns) = (m, n).

    With m != n it is the upper left block of the larger DCT: for m < n the m lowest frequencies (orthonormal
    rows), for m > n a tight frame (orthonormal columns). Its spectral norm is 1 in each case.
    Raises `InputError` for sizes that are no integers above 0 and for a dtype that is no floating-point one of torch.
    """
    require_integer("rows (m)", rows, 1)
    require_integer("columns (n)", columns, 1)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype must be a floating-point dtype of torch, got {shown(dtype)}")
    size = max(rows, columns)
    frequency, sample = np.arange(rows)[:, None], np.arange(columns)
    # not by torch.cos: with several threads its first call in a process can be right to 8 digits only (PyTorch issue
    # 188792, open in 2.13)
    operator = np.cos(np.pi / size * (sample + 0.5) * frequency) * (2.0 / size) ** 0.5
    operator[0] *= 0.5**0.5
    return torch.from_numpy(operator).to(dtype)
