"""Reflected Halpern iterations without restarts as an algorithm that can be unrolled, and their backward recursion.

With T one primal-dual step and z = (y, psi), anchored at z^0 = (x, 0),

    z_P  = y^k - tau K^T psi^k                  z_D   = psi^k + sigma K (2 y_T - y^k)
    y_T  = prox_{tau G}(z_P - x) + x            psi_T = prox_{sigma F*}(z_D)
    z^{k+1} = c_k (2 T(z^k) - z^k) + (1 - c_k) z^0,    c_k = (k+1)/(k+2),    T(z^k) = (y_T, psi_T).

The result of L iterations is y_T of z^{L-1}, which is feasible. Backwards, with a the gradient at z^{k+1} and g that of
the loss at the result (zero for the other iterations),

    delta_D = J_D 2 c_k a_psi                            delta_P = J_P (2 c_k a_y + g + 2 sigma K^T delta_D)
    a_y' = -c_k a_y + delta_P - sigma K^T delta_D        a_psi' = -c_k a_psi + delta_D - tau K delta_P

and the gradient has the form of the paper's lemma, so that the strategies of `pdunroll.core.gradients` serve both:

    grad_K = sum_k  sigma delta_D (2 y_T - y^k)^T - tau psi^k delta_P^T

Source of the iteration: Lu and Yang, "Restarted Halpern PDHG for linear programming" (2024); the recursion is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, chambolle_pock
from pdunroll.core.engine import Engine, Tape
from pdunroll.core.gradients import Backprop, Full
from pdunroll.core.implicit import Implicit
from pdunroll.core.problem import MaskOf, Masks, Observation
from pdunroll.core.truncated import Truncated
from pdunroll.core.unroll import check, iterated
from pdunroll.errors import InputError


class HalpernIterate(NamedTuple):
    """T(z^k), with the arguments of both proximal operators, and z^{k+1}."""

    z_dual: Tensor  # z_D  (B, m)
    dual: Tensor  # psi_T  (B, m)
    z_primal: Tensor  # z_P  (B, n)
    primal: Tensor  # y_T  (B, n)
    extrapolated: Tensor  # 2 y_T - y^k  (B, n)
    next_primal: Tensor  # y^{k+1}  (B, n)
    next_dual: Tensor  # psi^{k+1}  (B, m)
    k: int  # k + 1


class HalpernAdjoint(NamedTuple):
    """The gradient at z^{k+1}, and that of the loss at y_T of the last iteration."""

    primal: Tensor  # a_y  (B, n)
    dual: Tensor  # a_psi  (B, m)
    loss: Tensor  # g  (B, n)
    k: int


@dataclass(frozen=True)
class ReflectedHalpern(ChambollePock):
    """The iteration and its backward recursion, with the step sizes of Chambolle-Pock; theta has no meaning here.

    Attributes:
        iterations: L, which the backward recursion starts from.
    """

    iterations: int = 1

    def start(self, K: Tensor, x: Observation) -> Any:
        """Return z^0 = (x, 0), for K (m, n) and x (B, n); of a box, x is its `start`."""
        y = self.problem.box(x).start
        dual = y.new_zeros(len(y), len(K))
        return HalpernIterate(dual, dual, y, y, y, y, dual, 0)

    def step(self, K: Tensor, x: Observation, s: Any) -> Any:
        """Return the iterate after `s`."""
        y, psi, share = s.next_primal, s.next_dual, (s.k + 1) / (s.k + 2)
        z_primal = y - self.tau * psi @ K
        box = self.problem.box(x)
        primal = self.problem.prox_primal(z_primal, box)
        extrapolated = 2 * primal - y
        z_dual = psi + self.sigma * extrapolated @ K.T
        dual = self.problem.prox_dual(z_dual)
        after = share * extrapolated + (1 - share) * box.start, share * (2 * dual - psi)
        return HalpernIterate(z_dual, dual, z_primal, primal, extrapolated, *after, s.k + 1)

    def adjoint_start(self, K: Tensor, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the start of the backward recursion for grad_y of the loss at the result, (B, n)."""
        return HalpernAdjoint(torch.zeros_like(grad), grad.new_zeros(len(grad), len(K)), grad, self.iterations - 1)

    def adjoint_deltas(self, K: Tensor, masks: Masks, d: HalpernAdjoint) -> tuple[Tensor, Tensor, HalpernAdjoint]:
        """Return delta_P and delta_D of iteration `d.k`, and the adjoint of the iteration before."""
        if d.k < 0:
            raise InputError(f"Halpern's backward recursion has L = {self.iterations} iterations; take b up to that")
        share = (d.k + 1) / (d.k + 2)
        delta_dual = masks.dual * (2 * share * d.dual)
        back = self.sigma * delta_dual @ K
        delta_primal = masks.primal * (2 * share * d.primal + d.loss + 2 * back)
        primal = delta_primal - share * d.primal - back
        dual = delta_dual - share * d.dual - self.tau * delta_primal @ K.T
        return delta_primal, delta_dual, HalpernAdjoint(primal, dual, torch.zeros_like(d.loss), d.k - 1)


class HalpernEngine(Engine):
    """Runs blocks of these iterations for the strategies, step by step."""

    algorithm: ReflectedHalpern

    def iterate(self, K: Tensor, x: Observation, count: int, start: Any = None) -> Any:
        """Return the iterate `count` iterations after `start`, by default after z^0."""
        s = self.algorithm.start(K, x) if start is None else start
        for _ in range(count):
            s = self.algorithm.step(K, x, s)
        return s

    def record(self, K: Tensor, x: Observation, count: int, mask: MaskOf, start: Any) -> tuple[Tape, Any]:
        """Run `count` iterations; return what the backward recursion needs of them, and the last one."""
        s, kept = start, []
        for _ in range(count):
            before, s = s, self.algorithm.step(K, x, s)
            kept.append((before.next_dual, s.extrapolated, *self.algorithm.masks(s, x, mask)))
        dual, extrapolated, *masks = map(torch.stack, zip(*kept, strict=True))
        return Tape(dual, extrapolated, Masks(*masks)), s

    def backward(self, K: Tensor, masks: Masks, adjoint: Any, delta_primal: Tensor, delta_dual: Tensor) -> Any:
        """Run the recursion over the iterations of `masks`, the last one first; write its deltas."""
        for l in reversed(range(len(masks.dual))):
            own = Masks(masks.dual[l], masks.primal[l])
            delta_primal[l], delta_dual[l], adjoint = self.algorithm.adjoint_deltas(K, own, adjoint)
        return adjoint

    def backward_sums(self, K: Tensor, masks: Masks, count: int, adjoint: Any, sums: tuple[Tensor, Tensor]) -> Any:
        """Run `count` iterations of the recursion with the same masks; add its deltas to `sums`."""
        for _ in range(count):
            *deltas, adjoint = self.algorithm.adjoint_deltas(K, masks, adjoint)
            for total, delta in zip(sums, deltas, strict=True):
                total.add_(delta)
        return adjoint


def unroll_halpern(
    operator: Tensor, observation: Observation, *, radius: float | None = None, iterations: int,
    backprop: Backprop | None = None, step_ratio: float = 10.0, step_norm: str = "frobenius",
) -> Tensor:  # fmt: skip
    """Return the result of L reflected Halpern iterations, (B, n), differentiable with respect to the operator.

    Args:
        operator: K, (m, n), float32 or float64.
        observation: x, (B, n), of the same dtype and device, or a `Box`; a constant in the gradient.
        radius: half a quantization step, > 0, if the observation is x.
        iterations: L >= 1.
        backprop: the backward pass: `Full` without checkpoints (default), `Truncated` with b <= L, or `Implicit`.
        step_ratio: see `pdunroll.unroll`.
        step_norm: see `pdunroll.unroll`.

    Raises:
        InputError: for shapes, dtypes or settings out of range.

    Examples:
        >>> import torch
        >>> from pdunroll.core.unrolled_halpern import unroll_halpern
        >>> operator, x = torch.eye(2, requires_grad=True), torch.tensor([[0.5, 0.1]])
        >>> y = unroll_halpern(operator, x, radius=0.2, iterations=2000, step_norm="spectral")
        >>> y.allclose(torch.tensor([[0.3, 0.0]]), atol=1e-2)
        True
    """
    backprop = Full() if backprop is None else backprop
    check(operator, observation, radius, iterations, backprop)
    if not isinstance(backprop, Full | Truncated | Implicit) or getattr(backprop, "damping", 0.0):
        raise InputError(f"Halpern iterations take Full, Truncated without damping or Implicit, got {backprop}")
    if isinstance(observation, Tensor) and observation.requires_grad:
        raise InputError("Halpern iterations give no gradient with respect to the observation; detach it")
    if getattr(backprop, "checkpoint_every", None) is not None:
        raise InputError("Halpern iterations keep no checkpoints; set checkpoint_every to None")
    steps = chambolle_pock(operator, radius=radius, step_ratio=step_ratio, step_norm=step_norm)
    algorithm = ReflectedHalpern(steps.problem, steps.sigma, steps.tau, 1.0, iterations=iterations)
    engine = HalpernEngine(algorithm)
    needed = operator.requires_grad and torch.is_grad_enabled()
    numbers = radius, steps.sigma, steps.tau
    return iterated(engine, operator, observation, numbers, iterations, backprop, needed=needed)
