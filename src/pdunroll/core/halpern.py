"""Restarted reflected Halpern iterations: the default algorithm of `pdunroll.solve`.

Source: Lu and Yang, "Restarted Halpern PDHG for linear programming" (2024), as in cuPDLPx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdunroll.core.algorithms import Algorithm, Point
from pdunroll.core.engine import Engine
from pdunroll.core.problem import Box
from pdunroll.errors import require_integer, require_positive


class HalpernState(NamedTuple):
    """The state of `RestartedHalpern`; z = (y, psi) is a primal-dual pair and T one primal-dual step."""

    engine: Engine
    operator: Tensor  # K  (m, n)
    total: int  # iterations in all
    point: Point | None  # T(z^{k-1}), the result of the last iteration
    box: Box
    primal: Tensor  # y of z^k  (B, n)
    dual: Tensor  # psi of z^k  (B, m)
    anchor_primal: Tensor  # y of z^0, where the last restart was  (B, n)
    anchor_dual: Tensor  # psi of z^0  (B, m)
    k: Tensor  # iterations since the last restart  (B, 1)
    weight: Tensor  # the primal weight (sigma / tau)^{1/2}  (B, 1)
    first_residual: Tensor  # ||T(z) - z|| at the first check since the restart, infinite before it  (B, 1)
    last_residual: Tensor  # at the last check  (B, 1)

    def steps(self) -> tuple[Tensor, Tensor]:
        """Return sigma and tau of each frame, (B, 1); their product is the same for all frames."""
        algorithm = self.engine.algorithm
        scale = (algorithm.sigma * algorithm.tau) ** 0.5  # 0.99 / ||K||_2
        return scale * self.weight, scale / self.weight


@dataclass(frozen=True, kw_only=True)
class RestartedHalpern(Algorithm):
    """Restarted reflected Halpern primal-dual hybrid gradient, restarted per frame.

    With T one primal-dual step and z = (y, psi), anchored at the point z^0 of the last restart,

        z^{k+1} = (k+1)/(k+2) (2 T(z^k) - z^k) + 1/(k+2) z^0.

    A frame restarts from T(z^k) as soon as one of three conditions holds. At a restart the primal weight moves towards
    the ratio of the distances travelled in dual and primal.

    Attributes:
        sufficient: restart when the fixed-point residual has fallen to this share of that at the last restart.
        necessary: restart when it has fallen to this share and now rises.
        artificial: restart when the iterations since the last restart are this share of all iterations.
        smoothing: weight of the new ratio against the old primal weight, on a logarithmic scale.
        period: iterations between two checks of these conditions.

    Raises:
        InputError: for settings that are not positive.

    Examples:
        >>> import pdunroll, torch
        >>> operator, x = torch.eye(2), torch.tensor([[0.5, 0.1]])
        >>> found = pdunroll.solve(operator, x, radius=0.2, algorithm=pdunroll.RestartedHalpern(period=5))
        >>> bool(found.gap <= 1e-6)
        True
    """

    sufficient: float = 0.2
    necessary: float = 0.8
    artificial: float = 0.36
    smoothing: float = 0.5
    period: int = 10

    def __post_init__(self) -> None:
        for name in ("sufficient", "necessary", "artificial", "smoothing"):
            require_positive(f"algorithm.{name}", getattr(self, name))
        require_integer("algorithm.period", self.period, 1)

    def init_state(self, engine: Engine, operator: Tensor, observation: Box, start: Point | None) -> HalpernState:
        """Return the state at `start`, with the primal weight of the engine's step sizes."""
        algorithm = engine.algorithm
        primal = observation.start if start is None else start.primal
        column = primal.new_ones(len(primal), 1)
        dual = primal.new_zeros(len(primal), len(operator)) if start is None else start.dual
        return HalpernState(
            engine=engine, operator=operator, total=0, point=None, box=observation,
            primal=primal, dual=dual, anchor_primal=primal, anchor_dual=dual, k=torch.zeros_like(column),
            weight=column * (algorithm.sigma / algorithm.tau) ** 0.5,
            first_residual=column * torch.inf, last_residual=column * torch.inf,
        )  # fmt: skip

    def update(self, state: HalpernState) -> HalpernState:
        """Return the state after one more iteration, with the frames restarted that have to be."""
        point = primal_dual_step(state)
        new = halpern_step(state, point)
        if new.total % self.period and new.total != 1:
            return new
        residual = fixed_point_residual(state, point)
        first = torch.where(torch.isinf(state.first_residual), residual, state.first_residual)
        restart = (
            (residual <= self.sufficient * first)
            | ((residual <= self.necessary * first) & (residual > state.last_residual))
            | (state.k >= self.artificial * new.total)
        ) & (state.k > 0)
        new = new._replace(first_residual=first, last_residual=residual)
        return self._restarted(new, point, restart) if restart.any() else new

    def _restarted(self, state: HalpernState, point: Point, restart: Tensor) -> HalpernState:
        """Return the state with the frames where `restart` (B, 1) is true anchored at `point`."""
        dual_distance = (point.dual - state.anchor_dual).norm(dim=1, keepdim=True)
        primal_distance = (point.primal - state.anchor_primal).norm(dim=1, keepdim=True)
        moved = (dual_distance > 1e-12) & (primal_distance > 1e-12) & restart
        ratio = torch.where(moved, dual_distance / primal_distance.clamp(min=1e-12), state.weight)
        weight = ratio**self.smoothing * state.weight ** (1 - self.smoothing)
        primal = torch.where(restart, point.primal, state.primal)
        dual = torch.where(restart, point.dual, state.dual)
        return state._replace(
            primal=primal,
            dual=dual,
            anchor_primal=torch.where(restart, primal, state.anchor_primal),
            anchor_dual=torch.where(restart, dual, state.anchor_dual),
            k=torch.where(restart, 0.0, state.k),
            weight=torch.where(moved, weight, state.weight),
            first_residual=torch.where(restart, torch.inf, state.first_residual),
            last_residual=torch.where(restart, torch.inf, state.last_residual),
        )

    def point(self, state: HalpernState) -> Point:
        """Return T(z^{k-1}), which is feasible; z^k is not."""
        assert state.point is not None
        return state.point

    def select(self, state: HalpernState, keep: Tensor) -> HalpernState:
        """Return the state of the frames where `keep` is true."""
        engine, operator, total, point, box, *tensors = state
        point = None if point is None else Point(*(part[keep] for part in point))
        return HalpernState(engine, operator, total, point, box[keep], *(tensor[keep] for tensor in tensors))


def primal_dual_step(state: HalpernState) -> Point:
    """Return T(z^k), one primal-dual step from the state with both proximal operators applied."""
    engine, operator, (sigma, tau) = state.engine, state.operator, state.steps()
    y, psi, problem = state.primal, state.dual, engine.algorithm.problem
    z_primal = tau * engine.product(y / tau, psi, operator.T, -1.0)  # y - tau K^T psi
    primal = problem.prox_primal(z_primal, state.box)
    z_dual = sigma * engine.product(psi / sigma, 2.0 * primal - y, operator, 1.0)  # psi + sigma K (2 T(y) - y)
    return Point(z_dual, problem.prox_dual(z_dual), z_primal, primal)


def halpern_step(state: HalpernState, point: Point) -> HalpernState:
    """Return the state at z^{k+1}, given `point` = T(z^k)."""
    share = (state.k + 1.0) / (state.k + 2.0)
    return state._replace(
        total=state.total + 1,
        point=point,
        primal=state.engine.reflected(point.primal, state.primal, state.anchor_primal, share),
        dual=state.engine.reflected(point.dual, state.dual, state.anchor_dual, share),
        k=state.k + 1.0,
    )


def fixed_point_residual(state: HalpernState, point: Point) -> Tensor:
    """Return ||T(z^k) - z^k|| of each frame, (B, 1), where tau weighs the primal part and sigma the dual one."""
    sigma, tau = state.steps()
    return (
        (point.primal - state.primal).square().sum(1, keepdim=True) / tau
        + (point.dual - state.dual).square().sum(1, keepdim=True) / sigma
    ).sqrt()
