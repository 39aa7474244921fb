"""Comparison of modes of backpropagation: how near their gradients are to the limit and to Full, and their cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.gradients import Backprop, Full
from pdunroll.core.problem import Box, Observation
from pdunroll.core.unroll import check, unroll
from pdunroll.errors import InputError, require_integer, shown
from pdunroll.evaluation import theory


def compare(
    operator: Tensor,
    observation: Observation,
    truth: Tensor,
    modes: Mapping[str, Backprop],
    *,
    radius: float | None = None,
    iterations: int,
    repeats: int = 3,
    **options: Any,
) -> pd.DataFrame:
    """Compare gradients of half the squared error with the certified limit and with `Full`, and measure their cost.

    Args:
        operator: K, (m, n), float32 or float64, the dtype in which the modes run.
        observation: x, (B, n), of the same dtype and device, or a `Box`.
        truth: y, (B, n), likewise.
        modes: the strategies to compare, by names of your choice.
        radius: half a quantization step, > 0, if the observation is x.
        iterations: L >= 1.
        repeats: the number of timed runs of each mode, >= 1, after an untimed one; the fastest counts.
        **options: `step_ratio`, `extrapolation` and `step_norm` of `pdunroll.unroll`.

    Returns:
        One row for each mode, by its name: `limit_cosine`, `limit_ratio` (of the norms) and `limit_error` (relative) to
        the limit for L -> infinity, which is exact where the optima are vertices; `full_cosine`, `full_ratio` and
        `full_error` to `Full` at the same L with the same mask; `seconds` of one forward and backward pass, and
        `kept_bytes` of the tensors that are kept between them, without K and x. Gradients are compared in float64.
        Undefined values are NaN, such as the cosine to a limit of 0 if all frames are trivial.

    Raises:
        InputError: for shapes, dtypes, settings or modes out of range.

    Examples:
        >>> import pdunroll, torch
        >>> K = pdunroll.dct_operator(8, 8)
        >>> y = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        >>> modes = {"full": pdunroll.Full(), "limit": pdunroll.Implicit(tolerance=1e-9)}
        >>> found = pdunroll.compare(K, pdunroll.quantize(y, bits=4), y, modes, radius=1 / 16, iterations=30)
        >>> round(float(found.full_cosine["full"]), 6), round(float(found.limit_cosine["limit"]), 6)
        (1.0, 1.0)
    """
    if not isinstance(modes, Mapping) or not modes:
        raise InputError(f"modes must be a mapping of names to strategies, got {shown(modes)}")
    for strategy in modes.values():
        check(operator, observation, radius, iterations, strategy)
    x = observation.start if isinstance(observation, Box) else observation
    if not isinstance(truth, Tensor) or truth.shape != x.shape or truth.dtype != x.dtype:
        raise InputError("truth must be a tensor of the shape and dtype of observation")
    require_integer("repeats", repeats, 1)
    options = {**options, "radius": radius}
    limit = limit_gradient(operator.detach(), observation, truth, options)
    return compared(operator, observation, truth, modes, limit, iterations, repeats, options)


def compared(
    operator: Tensor, observation: Observation, truth: Tensor, modes: Mapping[str, Backprop], limit: Tensor,
    iterations: int, repeats: int, options: Mapping[str, Any],
) -> pd.DataFrame:  # fmt: skip
    """Return the table of `compare`, given the limit gradient and all options of `unroll` but backprop, iterations."""
    operator = operator.detach().requires_grad_()
    parts = observation.tensors() if isinstance(observation, Box) else (observation,)
    inputs = {part.data_ptr() for part in (operator, *parts)}

    def restored(strategy: Backprop) -> Tensor:
        return unroll(operator, observation, iterations=iterations, backprop=strategy, **options)

    def gradient(strategy: Backprop) -> Tensor:
        return torch.autograd.grad(0.5 * (restored(strategy) - truth).square().sum(), operator)[0].double()

    full = {mask: gradient(Full(primal_mask=mask)) for mask in {mode.primal_mask for mode in modes.values()}}
    rows = {
        name: {
            **closeness_to("limit", found := gradient(strategy), limit),
            **closeness_to("full", found, full[strategy.primal_mask]),
            "seconds": min(seconds(partial(gradient, strategy)) for _ in range(repeats)),
            "kept_bytes": kept_bytes(partial(restored, strategy), inputs),
        }
        for name, strategy in modes.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("mode")


def limit_gradient(operator: Tensor, observation: Observation, truth: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Return the limit of the gradient for L -> infinity, (m, n), in float64, at optima with a relative gap of 1e-9."""
    operator, observation, truth = operator.double(), observation.to(torch.float64), truth.double()
    optimum = theory.limit(chambolle_pock(operator, **options), operator, truth, observation)
    return -(optimum.multiplier.T @ optimum.solution.primal)


def closeness_to(name: str, gradient: Tensor, reference: Tensor) -> dict[str, float]:
    """Return cosine, ratio of the norms and relative error of a gradient to a reference, as `<name>_cosine` etc."""
    ratio = float(gradient.norm() / reference.norm())
    return {**theory.compare(name, gradient, reference), f"{name}_ratio": ratio}


def seconds(call: Callable[[], Tensor]) -> float:
    """Return the time that a call takes."""
    start = time.perf_counter()
    call().sum().item()  # waits for a GPU
    return time.perf_counter() - start


def kept_bytes(forward: Callable[[], Tensor], inputs: set[int]) -> int:
    """Return the bytes of all tensors that a forward pass keeps for the backward pass, except those at `inputs`."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(size for address, size in kept.items() if address not in inputs)
