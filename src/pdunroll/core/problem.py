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


class Masks(NamedTuple):
    """The diagonals of the Jacobians of both proximal operators, as booleans: which entries of psi and y are free."""

    dual: Tensor  # (B, m)
    primal: Tensor  # (B, n)


@dataclass(frozen=True)
class Dequantization:
    """The lower-level problem: its proximal operators, their Jacobians, its objective and its duality gap.

    Attributes:
        radius: half a quantization step, > 0.

    Raises:
        InputError: for a radius that is no finite number above 0.

    Examples:
        >>> import torch
        >>> from pdunroll.core.problem import Dequantization
        >>> problem = Dequantization(radius=0.25)
        >>> x = torch.tensor([[0.0, 0.5]])
        >>> problem.prox_primal(torch.tensor([[0.1, 1.0]]), problem.box(x))
        tensor([[0.1000, 0.7500]])
    """

    radius: float

    def __post_init__(self) -> None:
        require_positive("radius", self.radius)

    def objective(self, operator: Tensor, primal: Tensor) -> Tensor:
        """Return ||K y||_1 of each frame, (B,), for the operator K (m, n) and primal y (B, n)."""
        return (primal @ operator.T).abs().sum(dim=1)

    def prox_dual(self, z_dual: Tensor) -> Tensor:
        """Return the prox of sigma F* at z_D: the projection onto {||psi||_inf <= 1}, whatever sigma."""
        return torch.clamp(z_dual, -1.0, 1.0)

    def box(self, observation: Tensor) -> Box:
        """Return the feasible y of each frame: from x - radius to x + radius."""
        return Box(observation - self.radius, observation + self.radius)

    def prox_primal(self, z_primal: Tensor, box: Box) -> Tensor:
        """Return the prox of tau G(. - x) at z_P: the projection onto the box, whatever tau."""
        return torch.clamp(z_primal, *box)

    def free_masks(self, z_dual: Tensor, z_primal: Tensor, observation: Tensor) -> Masks:
        """Return which entries of psi and y no projection holds, given the arguments of both proximal operators."""
        return Masks(dual_mask(z_dual), active_set(self.radius).of(z_primal, observation))

    def interior_masks(self, primal: Tensor, dual: Tensor, observation: Tensor) -> Masks:
        """Return which entries of a feasible pair are strictly inside their bounds, up to rounding.

        At an optimum these are the free entries, since projections put the others onto their bounds.
        """
        inside = 1 - 1e-9
        return Masks(dual.abs() < inside, (primal - observation).abs() < inside * self.radius)

    def trivial(self, observation: Tensor) -> Tensor:
        """Return which frames have the optimum y* = 0, (B,): those where 0 is feasible."""
        return (observation.abs() <= self.radius).all(dim=1)

    def duality_gap(self, operator: Tensor, observation: Tensor, primal: Tensor, dual: Tensor) -> Tensor:
        """Return the relative duality gap of feasible pairs, (B,), in closed form.

            ||K y||_1 - (x^T K^T psi - radius ||K^T psi||_1), divided by ||K y||_1

        The terms of the sum are all nonnegative, so that small gaps are not lost in the rounding of large numbers.

        Args:
            operator: K, (m, n).
            observation: x, (B, n).
            primal: y, (B, n), with ||y - x||_inf <= radius.
            dual: psi, (B, m), with ||psi||_inf <= 1.
        """
        image, slope = primal @ operator.T, dual @ operator  # K y, K^T psi
        absolute = (image.abs() - dual * image).sum(dim=1)
        absolute += (self.radius * slope.abs() + slope * (primal - observation)).sum(dim=1)
        objective = image.abs().sum(dim=1)
        return absolute.clamp(min=0.0) / objective.clamp(min=torch.finfo(objective.dtype).tiny)


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


# The choice of the mask decides what training achieves (docs/departures.md).
PRIMAL_MASKS: dict[str, Callable[[float], PrimalMask]] = {"active_set": active_set, "released": released}


def require_problem(operator: Tensor, observation: Tensor) -> None:
    """Raise `InputError` unless these are an operator and frames that fit together.

    Args:
        operator: K, (m, n), a dense tensor of float32 or float64. (`magnitude` and the norms check its entries.)
        observation: x, (B, n), a dense tensor of float32 or float64 on the same device, all finite.
    """
    for name, value in (("operator", operator), ("observation", observation)):
        if not isinstance(value, Tensor):
            raise InputError(f"{name} must be a tensor, got {type(value).__name__}; torch.from_numpy takes an array")
        require_untransformed(name, value)
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


def require_untransformed(name: str, value: Tensor) -> None:
    """Raise `InputError` if a tensor is inside of a transform such as `torch.func.vmap`."""
    if torch._C._functorch.is_functorch_wrapped_tensor(value):  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(f"{name} is inside of a transform of torch.func; give a whole batch and call backward()")


def dct_operator(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the orthonormal DCT-II, the initial operator of all trainings.

    With m != n it is the upper left block of the larger DCT: for m < n the m lowest frequencies (orthonormal
    rows), for m > n a tight frame (orthonormal columns). Its spectral norm is 1 in each case.

    Args:
        rows: m >= 1.
        columns: n >= 1, the length of a frame in samples.
        dtype: a floating-point dtype of torch.

    Returns:
        K, (m, n).

    Raises:
        InputError: for sizes that are no integers above 0 and for a dtype that is no floating-point one of torch.

    Examples:
        >>> import pdunroll
        >>> pdunroll.dct_operator(2, 2)
        tensor([[ 0.7071,  0.7071],
                [ 0.7071, -0.7071]])
    """
    require_integer("rows (m)", rows, 1)
    require_integer("columns (n)", columns, 1)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype must be a floating-point dtype of torch, got {shown(dtype)}")
    size = max(rows, columns)
    frequency, sample = np.arange(rows)[:, None], np.arange(columns)
    # NumPy's cosine, since the first call of torch.cos in a process with several threads can be right to 8 digits only
    # (PyTorch issue 188792, open in 2.13)
    operator = np.cos(np.pi / size * (sample + 0.5) * frequency) * (2.0 / size) ** 0.5
    operator[0] *= 0.5**0.5
    return torch.from_numpy(operator).to(dtype)
