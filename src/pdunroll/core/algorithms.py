"""Algorithms that iterate the frames of a batch towards their optima, for `solve`.

An algorithm has methods as in jaxopt: `init_state` returns the initial state, `update` runs one iteration, `point`
returns the current iterate, and `select` drops frames. The loop that calls them is in `pdunroll.core.solve`. Two come
with the package: `PlainChambollePock` below and `pdunroll.core.halpern.RestartedHalpern`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from pdunroll.core.chambolle_pock import Iterate
from pdunroll.core.engine import Engine
from pdunroll.core.problem import Box


class Point(NamedTuple):
    """A feasible primal-dual pair of each frame, with the arguments of the proximal operators that gave it."""

    z_dual: Tensor  # z_D  (B, m)
    dual: Tensor  # psi  (B, m)
    z_primal: Tensor  # z_P  (B, n)
    primal: Tensor  # y    (B, n)


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """A way to iterate towards the optimum of every frame of a batch.

    The state can be any object, such as a named tuple.

    Attributes:
        polished: whether `solve` tries the vertex that the masks of a frame define once they do not change any more.
    """

    polished: bool = True

    @abstractmethod
    def init_state(self, engine: Engine, operator: Tensor, observation: Box, start: Point | None) -> Any:
        """Return the state before the first iteration.

        Args:
            engine: computes products and iterations for this operator; `engine.algorithm` holds the problem and the
                step sizes sigma and tau, with sigma tau ||K||_2^2 < 1.
            operator: K, (m, n).
            observation: the box of each frame; `observation[keep]` is that of some frames.
            start: where to start; None means y = observation.start and psi = 0.
        """

    @abstractmethod
    def update(self, state: Any) -> Any:
        """Return the state after one more iteration."""

    @abstractmethod
    def point(self, state: Any) -> Point:
        """Return the feasible pair that the last iteration has found; called after the first `update` only."""

    @abstractmethod
    def select(self, state: Any, keep: Tensor) -> Any:
        """Return the state of the frames where `keep`, a boolean (B,), is true; the others leave the batch."""


class ChambollePockState(NamedTuple):
    """The state of `PlainChambollePock`."""

    engine: Engine
    operator: Tensor  # K  (m, n)
    observation: Box  # (B, n)
    iterate: Iterate


@dataclass(frozen=True, kw_only=True)
class PlainChambollePock(Algorithm):
    """Plain Chambolle-Pock iterations (Algorithm 1).

    Examples:
        >>> import pdunroll, torch
        >>> operator, x = torch.eye(2), torch.tensor([[0.5, 0.1]])
        >>> found = pdunroll.solve(operator, x, radius=0.2, algorithm=pdunroll.PlainChambollePock())
        >>> bool(found.gap <= 1e-6)
        True
    """

    def init_state(self, engine: Engine, operator: Tensor, observation: Box, start: Point | None) -> ChambollePockState:
        """Return the state at `start`, with ybar = y."""
        if start is None:
            iterate = engine.algorithm.start(operator, observation)
        else:
            iterate = Iterate(*start, extrapolated=start.primal)
        return ChambollePockState(engine, operator, observation, iterate)

    def update(self, state: ChambollePockState) -> ChambollePockState:
        """Return the state after one more iteration of Algorithm 1."""
        engine, operator, observation, iterate = state
        return state._replace(iterate=engine.iterate(operator, observation, 1, iterate))

    def point(self, state: ChambollePockState) -> Point:
        """Return y^l and psi^l."""
        return Point(*state.iterate[:4])

    def select(self, state: ChambollePockState, keep: Tensor) -> ChambollePockState:
        """Return the state of the frames where `keep` is true."""
        iterate = Iterate(*(part[keep] for part in state.iterate))
        return state._replace(observation=state.observation[keep], iterate=iterate)
