"""The lower-level problem: the sparsest signal in a box, its proximal operators and their Jacobians.

    y_hat in argmin_y ||K y||_1   subject to   lower <= y <= upper

that is F(K y) + G(y) with F = ||.||_1 and G the indicator of the box, which bounds each sample. In dequantization the
box is ||y - x||_inf <= radius; a clipped sample is between the clipping level and full scale, and a missing one is
anywhere in [-1, 1]. Source: Brauer and Lorenz (EUSIPCO 2023), section "Speech dequantization".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdunroll.errors import InputError, require_integer, require_positive, shown


@dataclass(frozen=True, eq=False)
class Box:
    """Bounds of the samples of B frames: lower <= y <= upper for each sample.

    Create it with `Box.around` or `Box.between`. `box[frames]` is the box of some of the frames.

    Attributes:
        centre: the middle of each sample's interval, (B, n).
        radius: half the width of the intervals, > 0: one number, or one for each sample, (B, n).
        start: the point of the box at which iterations start, (B, n): the observation.
    """

    centre: Tensor
    radius: float | Tensor
    start: Tensor

    @classmethod
    def around(cls, observation: Tensor, radius: float) -> Box:
        """Return the box of the signals with ||y - x||_inf <= radius, such as those of a quantizer.

        Args:
            observation: x, (B, n), the centre of the box and the start of iterations.
            radius: half a quantization step, > 0.

        Raises:
            InputError: for a radius that is no finite number above 0.

        Example:
            >>> import pdunroll, torch
            >>> pdunroll.Box.around(torch.tensor([[0.0, 0.5]]), radius=0.25).upper
            tensor([[0.2500, 0.7500]])
        """
        return cls(observation, require_positive("radius", radius), observation)

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor, observation: Tensor | None = None) -> Box:
        """Return the box of the signals with lower <= y <= upper, up to rounding; the bounds get no gradient.

        Args:
            lower: the lower bound of each sample, (B, n), float32 or float64, finite.
            upper: the upper bound of each sample, (B, n), finite and above `lower`.
            observation: x, (B, n). Iterations start at x projected to the box, by default at the centre of the box.

        Raises:
            InputError: for bounds that are no such tensors or not in this order.

        Example:
            >>> import pdunroll, torch
            >>> lower, upper = torch.tensor([[0.1, 0.6, -1.0]]), torch.tensor([[0.2, 1.0, 1.0]])
            >>> box = pdunroll.Box.between(lower, upper)  # a known, a clipped and a missing sample
            >>> pdunroll.solve(torch.eye(3), box).primal  # the sparsest signal: each sample as near to 0 as it may be
            tensor([[0.1000, 0.6000, 0.0000]])
        """
        bounds = {"lower": lower, "upper": upper} | ({} if observation is None else {"observation": observation})
        for name, value in bounds.items():
            require_frames(name, value)
            if (value.shape, value.dtype, value.device) != (lower.shape, lower.dtype, lower.device):
                raise InputError(f"{name} must be like lower in shape, dtype and device")
        lower, upper = lower.detach(), upper.detach()
        centre, radius = lower + (upper - lower) / 2, (upper - lower) / 2
        if not bool(((radius > 0) & radius.isfinite()).all()):
            raise InputError("upper must be above lower for each sample, by less than the range of its dtype")
        box = cls(centre, radius, centre)
        return box if observation is None else cls(centre, radius, box.project(observation.detach()))

    @cached_property
    def lower(self) -> Tensor:
        """The least value of each sample, (B, n)."""
        return self.centre - self.radius

    @cached_property
    def upper(self) -> Tensor:
        """The largest value of each sample, (B, n)."""
        return self.centre + self.radius

    @property
    def uniform(self) -> bool:
        """Whether all intervals have the same width."""
        return not isinstance(self.radius, Tensor) or self.radius.ndim == 0

    def project(self, signal: Tensor) -> Tensor:
        """Return the nearest point of the box, (B, n)."""
        return torch.clamp(signal, self.lower, self.upper)

    def __len__(self) -> int:
        return len(self.centre)

    def __getitem__(self, frames: Any) -> Box:
        radius = self.radius[frames] if isinstance(self.radius, Tensor) and not self.uniform else self.radius
        centre = self.centre[frames]
        return Box(centre, radius, centre if self.start is self.centre else self.start[frames])

    def to(self, where: torch.dtype | torch.device | str) -> Box:
        """Return the box in another dtype or on another device."""
        radius, centre = self.radius, self.centre.to(where)
        start = centre if self.start is self.centre else self.start.to(where)
        return Box(centre, radius.to(where) if isinstance(radius, Tensor) else radius, start)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the attributes as tensors, of which `Box(*tensors)` makes the same box again."""
        return self.centre, torch.as_tensor(self.radius, dtype=self.centre.dtype, device=self.centre.device), self.start


Observation = Tensor | Box  # x (B, n), the centres of cells of one width, or a box


class Masks(NamedTuple):
    """The diagonals of the Jacobians of both proximal operators, as booleans: which entries of psi and y are free."""

    dual: Tensor  # (B, m)
    primal: Tensor  # (B, n)

    def equal(self, others: Masks) -> Tensor:
        """Return in which frames both masks are the same as others, (B,)."""
        return (self.dual == others.dual).all(dim=1) & (self.primal == others.primal).all(dim=1)


@dataclass(frozen=True)
class Dequantization:
    """The lower-level problem: its proximal operators, their Jacobians, its objective and its duality gap.

    An observation is a `Box`, or a tensor x (B, n) that stands for `Box.around(x, radius)`.

    Attributes:
        radius: half a quantization step, > 0; None if all observations are boxes.

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

    radius: float | None = None

    def __post_init__(self) -> None:
        if self.radius is not None:
            require_positive("radius", self.radius)

    def objective(self, operator: Tensor, primal: Tensor) -> Tensor:
        """Return ||K y||_1 of each frame, (B,), for the operator K (m, n) and primal y (B, n)."""
        return (primal @ operator.T).abs().sum(dim=1)

    def prox_dual(self, z_dual: Tensor) -> Tensor:
        """Return the prox of sigma F* at z_D: the projection onto {||psi||_inf <= 1} for any sigma."""
        return torch.clamp(z_dual, -1.0, 1.0)

    def box(self, observation: Observation) -> Box:
        """Return the feasible y of each frame: the observation itself, or from x - radius to x + radius."""
        return observation if isinstance(observation, Box) else Box.around(observation, self.radius)  # pyright: ignore[reportArgumentType]

    def prox_primal(self, z_primal: Tensor, box: Box) -> Tensor:
        """Return the prox of tau G at z_P: the projection onto the box for any tau."""
        return box.project(z_primal)

    def free_masks(self, z_dual: Tensor, z_primal: Tensor, observation: Observation) -> Masks:
        """Return which entries of psi and y the projections do not change, given the arguments of both."""
        return Masks(dual_mask(z_dual), active_set(self.box(observation)).of(z_primal))

    def interior_masks(self, primal: Tensor, dual: Tensor, observation: Observation) -> Masks:
        """Return which entries of a feasible pair are strictly inside their bounds, up to rounding.

        At an optimum these are the free entries, since projections put the others onto their bounds.
        """
        inside, box = 1 - 1e-9, self.box(observation)
        return Masks(dual.abs() < inside, (primal - box.centre).abs() < inside * box.radius)

    def trivial(self, observation: Observation) -> Tensor:
        """Return which frames have the optimum y* = 0, (B,): those where 0 is feasible."""
        box = self.box(observation)
        return (box.centre.abs() <= box.radius).all(dim=1)

    def duality_gap(self, operator: Tensor, observation: Observation, primal: Tensor, dual: Tensor) -> Tensor:
        """Return the relative duality gap of feasible pairs, (B,), in closed form.

            ||K y||_1 - (x^T K^T psi - radius ||K^T psi||_1), divided by ||K y||_1

        with the centres x and the radii of the box. The terms of the sum are all nonnegative, so that small gaps are
        not lost in the rounding of large numbers.

        Args:
            operator: K, (m, n).
            observation: the box.
            primal: y, (B, n), in the box.
            dual: psi, (B, m), with ||psi||_inf <= 1.
        """
        image, slope = primal @ operator.T, dual @ operator  # K y, K^T psi
        absolute = (image.abs() - dual * image).sum(dim=1)
        box = self.box(observation)
        absolute += (box.radius * slope.abs() + slope * (primal - box.centre)).sum(dim=1)
        objective = image.abs().sum(dim=1)
        return absolute.clamp(min=0.0) / objective.clamp(min=torch.finfo(objective.dtype).tiny)


class PrimalMask(NamedTuple):
    """A Jacobian of the primal projection: diagonal, 1 where |z_P - centre| <= bound and 0 elsewhere."""

    centre: Tensor  # (B, n)
    bound: float | Tensor  # one number, or (B, n)

    def of(self, z_primal: Tensor) -> Tensor:
        """Return the diagonal at z_P (..., n) as booleans."""
        return (z_primal - self.centre).abs() <= self.bound


def dual_mask(z_dual: Tensor) -> Tensor:
    """Return the diagonal of the Jacobian of `prox_dual` at z_D, as booleans: 1 where |z_D| <= 1."""
    return z_dual.abs() <= 1.0


def active_set(box: Box) -> PrimalMask:
    """Return the paper's formula, the Jacobian of `prox_primal`: 1 where z_P is in the box, |z_P - x| <= radius."""
    return PrimalMask(box.centre, box.radius)


def released(box: Box) -> PrimalMask:
    """Return the mask that the authors' released code computes instead: 1 where |z_P - 2 x| <= 1, with x the start.

    Its z_P has x subtracted already, the backward pass subtracts x once more and compares with 1 instead of the
    radius (`chrbraue/primal_dual_networks`, folder eusipco2023, commit 032c7bb). On speech nearly all entries are 1:
    the gradient passes straight through the projection.
    """
    return PrimalMask(2.0 * box.start, 1.0)


MaskOf = Callable[[Box], PrimalMask]  # a way to make the mask of the frames of a box
# The choice of the mask decides what training achieves (docs/departures.md).
PRIMAL_MASKS: dict[str, MaskOf] = {"active_set": active_set, "released": released}


def require_problem(operator: Tensor, observation: Observation, radius: float | None) -> None:
    """Raise `InputError` unless these are an operator and frames that fit together.

    Args:
        operator: K, (m, n), a dense tensor of float32 or float64. (`magnitude` and the norms check its entries.)
        observation: a box, or x, (B, n), a dense tensor of float32 or float64 on the same device, all finite.
        radius: half a quantization step, given with a tensor x only.
    """
    if isinstance(observation, Box):
        if radius is not None:
            raise InputError(f"a box has its own width; leave out radius, got {shown(radius)}")
        observation = observation.start
    else:
        require_frames("observation", observation)
        require_positive("radius", radius)
    require_dense("operator", operator)
    if operator.ndim != 2 or observation.ndim != 2 or operator.shape[1] != observation.shape[1]:
        shapes = f"{tuple(operator.shape)} and {tuple(observation.shape)}"
        raise InputError(f"operator and observation must have shapes (m, n) and (B, n), got {shapes}")
    if operator.device != observation.device:
        raise InputError(f"operator is on {operator.device} and observation on {observation.device}; move one")


def require_dense(name: str, value: object) -> Tensor:
    """Return `value` if it is a dense tensor of float32 or float64; raise `InputError` otherwise."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(value).__name__}; torch.from_numpy takes an array")
    require_untransformed(name, value)
    if value.layout != torch.strided:
        raise InputError(f"{name} must be a dense tensor; call to_dense() first")
    if value.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name} must be float32 or float64, got {value.dtype}")
    return value


def require_frames(name: str, value: object) -> None:
    """Raise `InputError` unless `value` is a dense tensor of finite samples."""
    if not bool(require_dense(name, value).isfinite().all()):
        raise InputError(f"{name} holds NaN or infinite samples; replace them")


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
