"""The unrolled algorithm as a function that autograd differentiates by a strategy of `pdunroll.core.gradients`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, chambolle_pock, magnitude
from pdunroll.core.dispatch import engine_for
from pdunroll.core.engine import Engine, flush_denormals
from pdunroll.core.gradients import Backprop, Full
from pdunroll.core.problem import Box, Observation, require_problem, require_untransformed
from pdunroll.errors import InputError, require_integer, shown

Scalar = float | Tensor


class _Unrolled(torch.autograd.Function):
    """Hands a strategy's gradients to autograd."""

    @staticmethod
    def forward(
        ctx: Any, operator: Tensor, observation: Observation, radius: Scalar | None, sigma: Scalar, tau: Scalar,
        engine: Engine, iterations: int, backprop: Backprop,
    ) -> Tensor:  # fmt: skip
        primal, kept = backprop.forward(engine, operator, observation, iterations)
        ends = (engine.algorithm.problem.box(observation).centre, primal) if any(ctx.needs_input_grad[1:]) else ()
        ctx.save_for_backward(operator, *ends, *(part for part in kept if isinstance(part, Tensor)))
        ctx.settings = engine, iterations, backprop, [None if isinstance(part, Tensor) else part for part in kept]
        return primal

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        operator, *saved = ctx.saved_tensors
        engine, iterations, backprop, boxes = ctx.settings
        found: list[Tensor | None] = [None] * 5
        ends = [saved.pop(0) for _ in range(len(saved) - boxes.count(None))]
        tensors = iter(saved)
        kept = tuple(next(tensors) if box is None else box for box in boxes)
        with flush_denormals(), without_autocast(grad):
            if any(ctx.needs_input_grad[1:]):
                *found[1:], found[0] = backprop.input_gradients(engine, operator, *ends, kept, iterations, grad)
            if ctx.needs_input_grad[0] and found[0] is None:
                found[0] = backprop.gradient(engine, operator, kept, iterations, grad)
        wanted = (part if needed else None for part, needed in zip(found, ctx.needs_input_grad, strict=False))
        return *wanted, None, None, None


def unroll(
    operator: Tensor,
    observation: Observation,
    *,
    radius: Scalar | None = None,
    iterations: int,
    backprop: Backprop | None = None,
    step_ratio: Scalar = 10.0,
    step_scale: Scalar = 0.99,
    extrapolation: float = 1.0,
    step_norm: str = "frobenius",
    start: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return A^L(K, x), the L-th Chambolle-Pock iterate, differentiable with respect to its inputs.

    All strategies compute the gradient with respect to the operator. Some also compute that with respect to
    `observation` and, if they are tensors, `radius`, `step_ratio` and `step_scale` (docs/modes.md); the others raise
    `InputError`. A `Box` gets no gradient.

    Args:
        operator: K, (m, n), float32 or float64, on any device.
        observation: x, (B, n), of the same dtype and device, one frame per row; or a `Box`, whose `start` is y^0.
        radius: half a quantization step, > 0, if the observation is x: the box is x - radius <= y <= x + radius. A
            number or a tensor with one element.
        iterations: L >= 1.
        backprop: the backward pass: `Full` (default), `LastIterations`, `OneStep`, `Truncated`, `Implicit`,
            `Piggyback`, or a `Backprop` of your own.
        step_ratio: r > 0 in sigma = r c / ||K|| and tau = c / (r ||K||); a number or a tensor with one element. The
            gradient treats ||K|| as a constant.
        step_scale: c in (0, 1), likewise. Since sigma tau ||K||_2^2 <= c^2 < 1, the iteration converges with every
            ratio and scale.
        extrapolation: theta in [0, 1].
        step_norm: the norm ||K||: "frobenius", as in the published experiments, or "spectral", which gives the
            largest steps that the theory allows.
        start: y^0 (B, n) and psi^0 (B, m), constants in the gradient; x and 0 if None.

    Returns:
        y^L, (B, n).

    Raises:
        InputError: (a ValueError) for shapes, dtypes or settings out of range.

    Examples:
        >>> import pdunroll, torch
        >>> operator, x = torch.eye(2, requires_grad=True), torch.tensor([[0.5, 0.1]])
        >>> y = pdunroll.unroll(operator, x, radius=0.2, iterations=100, backprop=pdunroll.Full())
        >>> y.allclose(torch.tensor([[0.3, 0.0]]))  # the entries of x, moved towards 0 by up to 0.2
        True
        >>> y.sum().backward()
        >>> operator.grad.allclose(torch.tensor([[0.0, 0.0], [-0.3, 0.0]]))
        True
    """
    settings = {
        "radius": radius, "step_ratio": step_ratio, "step_scale": step_scale, "extrapolation": extrapolation,
        "step_norm": step_norm,
    }  # fmt: skip
    run = _outside_of_graphs if torch.compiler.is_compiling() else _unroll
    return run(operator, observation, iterations, Full() if backprop is None else backprop, settings, start)


def _unroll(
    operator: Tensor, observation: Observation, iterations: int, backprop: Backprop, settings: dict[str, Any],
    start: tuple[Tensor, Tensor] | None,
) -> Tensor:  # fmt: skip
    numbers = {name: _number(name, value) for name, value in settings.items()}
    check(operator, observation, numbers["radius"], iterations, backprop)
    algorithm = chambolle_pock(operator, **numbers)
    if not SAFE_STEPS[0] < algorithm.sigma * algorithm.tau < SAFE_STEPS[1]:  # a scaled K gives the same iterates
        operator = operator / magnitude(operator)
        algorithm = chambolle_pock(operator, **numbers)
    engine = engine_for(replace(algorithm, initial=start), operator)
    scalars = _scalars(settings, numbers, algorithm, operator)
    inputs = {"observation": observation, "radius": scalars[0], "steps": scalars[1] + scalars[2]}
    wanted = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad]
    needed = (operator.requires_grad or bool(wanted)) and torch.is_grad_enabled()
    if needed and start is not None and "observation" in wanted:
        raise InputError("no gradient with respect to the observation is given beside a start; detach one of them")
    if needed and (missing := [name for name in wanted if name not in backprop.inputs]):
        mode = f"{type(backprop).__name__}(primal_mask={backprop.primal_mask!r})"
        raise InputError(f"{mode} gives no gradient with respect to the {missing[0]}; detach it, or use Full()")
    return iterated(engine, operator, observation, scalars, iterations, backprop, needed=needed)


def iterated(
    engine: Engine, operator: Tensor, observation: Observation, scalars: Iterable[Scalar | None], iterations: int,
    backprop: Backprop, *, needed: bool,
) -> Tensor:  # fmt: skip
    """Return y^L, (B, n), by the iterations of an engine, differentiable by a strategy where a gradient is needed.

    Args:
        engine: runs blocks of iterations.
        operator: K, (m, n).
        observation: x, (B, n), or a box.
        scalars: the radius (None with a box), sigma and tau, as tensors where they get a gradient.
        iterations: L.
        backprop: the strategy.
        needed: whether a gradient is needed.
    """
    with flush_denormals(), without_autocast(operator):
        if not needed:
            return backprop.restore(engine, operator, observation, iterations)
        return _Unrolled.apply(operator, observation, *scalars, engine, iterations, backprop)


def _number(name: str, value: Any) -> Any:
    """Return the number in a tensor with one element, other values as they are."""
    if not isinstance(value, Tensor):
        return value
    require_untransformed(name, value)
    if value.ndim or not value.dtype.is_floating_point:
        raise InputError(f"{name} must be a number or a tensor of one, got {value.dtype} {tuple(value.shape)}")
    return value.item()


def _scalars(
    settings: dict[str, Any], numbers: dict[str, Any], algorithm: ChambollePock, operator: Tensor
) -> list[Scalar]:
    """Return the radius, sigma and tau, as tensors of the operator's kind where they depend on tensors."""
    ratio, scale = (settings[name] / numbers[name] for name in ("step_ratio", "step_scale"))  # 1, with a derivative
    scalars = settings["radius"], algorithm.sigma * ratio * scale, algorithm.tau * scale / ratio
    return [value.to(operator) if isinstance(value, Tensor) else value for value in scalars]


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which products keep the dtype of their factors on the device of `tensor`."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


# torch.compile breaks its graph here; torch.compiler.disable would load its compiler, which takes seconds
_outside_of_graphs = torch._disable_dynamo(_unroll)  # pyright: ignore[reportPrivateImportUsage]

SAFE_STEPS = 2.0**-80, 2.0**80  # of sigma tau = 0.99^2 / ||K||^2: products with K are then in the range of float32


def check(
    operator: Tensor, observation: Observation, radius: float | None, iterations: int, backprop: Backprop
) -> None:
    """Raise `InputError` for arguments that `unroll` cannot take."""
    require_problem(operator, observation, radius)
    x = observation if isinstance(observation, Tensor) else observation.start
    if operator.dtype != x.dtype:
        raise InputError(
            f"operator and observation must both be float32 or float64, got {operator.dtype} and {x.dtype}"
        )
    if isinstance(observation, Box) and any(part.requires_grad for part in observation.tensors()):
        raise InputError("no gradient with respect to a box is given; detach it")
    require_integer("iterations (L)", iterations, 1)
    if not isinstance(backprop, Backprop):
        raise InputError(
            f"backprop must be a strategy such as pdunroll.Full() or pdunroll.Truncated(), got {shown(backprop)}"
        )
