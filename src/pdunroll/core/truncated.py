"""Truncated backpropagation: backward iterations with the masks of the last iterate, without and with damping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdunroll.core.backward import INPUTS, InputGradients, add_gradient
from pdunroll.core.chambolle_pock import Adjoint
from pdunroll.core.engine import Engine
from pdunroll.core.gradients import Backprop
from pdunroll.core.problem import Masks, Observation
from pdunroll.errors import InputError, require_integer, shown


@dataclass(frozen=True, kw_only=True)
class Truncated(Backprop):
    """b backward iterations with the masks frozen at the last iterate: an approximation of the limit gradient.

    grad_K = sigma (sum_t w_t delta_D^t) (y^L)^T - tau psi^L (sum_t w_t delta_P^t)^T,    w_t = (1 - d)^{t-1}

    It keeps only the last iterate and computes one pair of outer products at the end.

    Without a damping d (the paper's mode) all weights are 1, and the sum grows linearly in b where Ktilde has a kernel,
    as with the released mask. With d > 0 it stays bounded for theta = 1 and either mask: with frozen masks Algorithm 2
    is the transpose of a Chambolle-Pock iteration, which is nonexpansive in its own norm, so that all ||delta^t|| have
    a common bound c, and the norm of the sum is at most c / d. It tends to (I - (1 - d) J^T)^{-1} for the Jacobian J of
    the iteration: an eigenvalue mu of J has the factor 1 / (1 - (1-d) mu) instead of 1 / (1 - mu), so that d changes
    little where it is much less than |1 - mu|.

    This is how the damping differs from that of phantom gradients (Geng, Zhang, Bai, Wang and Lin, "On Training
    Implicit Models", NeurIPS 2021), which put lambda J + (1 - lambda) I in the place of J: an eigenvalue 1 stays 1
    there, and the sum unbounded.

    Attributes:
        iterations: b >= 1, which may be smaller or larger than L. With primal_mask = "released" and no damping,
            min(L, b) backward iterations run, as in the authors' code.
        damping: d in [0, 1); about 1 / d iterations count.

    Raises:
        InputError: for settings out of range.

    Examples:
        >>> import pdunroll
        >>> pdunroll.Truncated(iterations=30)
        Truncated(primal_mask='active_set', iterations=30, damping=0.0)
    """

    iterations: int = 30
    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("backprop.iterations (b)", self.iterations, 1)
        number = isinstance(self.damping, int | float) and not isinstance(self.damping, bool)
        if not (number and 0.0 <= self.damping < 1.0):
            raise InputError(f"backprop.damping must be at least 0 and below 1, got {shown(self.damping)}")

    def forward(self, engine: Engine, K: Tensor, x: Observation, iterations: int) -> tuple[Tensor, tuple[Any, ...]]:
        """Return y^L, (B, n), and psi^L, y^L and both masks there."""
        last = engine.iterate(K, x, iterations)
        return last.primal, (last.dual, last.primal, *engine.algorithm.masks(last, x, self.mask(engine)))

    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return the gradient after b backward iterations, (m, n)."""
        return next(self.gradients(engine, K, kept, [self._count(iterations)], grad))

    def gradients(
        self, engine: Engine, K: Tensor, kept: tuple[Any, ...], counts: Iterable[int], grad: Tensor
    ) -> Iterator[Tensor]:
        """Yield the gradient for each b of `counts`, which ascend, from one run of Algorithm 2."""
        dual, primal, *masks = kept
        sum_primal, sum_dual = torch.zeros_like(primal), torch.zeros_like(dual)  # of delta_P and delta_D
        adjoint, done = engine.algorithm.adjoint_start(K, grad), 0
        for b in counts:
            adjoint = self._add_iterations(engine, K, Masks(*masks), b - done, adjoint, (sum_primal, sum_dual))
            done = b
            total = torch.zeros_like(K, memory_format=torch.contiguous_format)
            add_gradient(engine, total, sum_dual, primal, dual, sum_primal)
            yield total

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs with the active-set mask; the step sizes with the other."""
        return INPUTS[self.primal_mask]

    def input_gradients(
        self, engine: Engine, K: Tensor, x: Tensor, y: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor
    ) -> InputGradients:
        """Return the gradients with respect to x, the radius, the step sizes and K, from one backward pass.

        The first ones are those of the limit with the sums S of b iterations in the place of Delta. With
        sigma K^T S_D + grad_y loss where mask_P = 0, and 0 elsewhere, as d x:

            d radius = <d x, sign(y^L - x)>,    d sigma = <S_D, K y^L>,    d tau = -<S_P, K^T psi^L>
        """
        dual, primal, *masks = kept
        sum_primal, sum_dual = torch.zeros_like(primal), torch.zeros_like(dual)
        start = engine.algorithm.adjoint_start(K, grad)
        self._add_iterations(engine, K, Masks(*masks), self._count(iterations), start, (sum_primal, sum_dual))
        held = (grad + engine.algorithm.sigma * sum_dual @ K).masked_fill(masks[1], 0.0)
        sigma, tau = (sum_dual * (primal @ K.T)).sum(), -(sum_primal * (dual @ K)).sum()
        operator = torch.zeros_like(K, memory_format=torch.contiguous_format)
        add_gradient(engine, operator, sum_dual, primal, dual, sum_primal)
        return InputGradients(held, (held * (y - x).sign()).sum(), sigma, tau, operator)

    def _count(self, iterations: int) -> int:
        """Return how many backward iterations run after L forward ones."""
        as_released = self.primal_mask == "released" and self.damping == 0
        return min(iterations, self.iterations) if as_released else self.iterations

    def _add_iterations(
        self, engine: Engine, K: Tensor, masks: Masks, count: int, adjoint: Adjoint, sums: tuple[Tensor, Tensor]
    ) -> Adjoint:
        """Add w_t delta_P^t and w_t delta_D^t of `count` iterations to `sums`; return the start of the next one."""
        if self.damping == 0:
            return engine.backward_sums(K, masks, count, adjoint, sums)
        for _ in range(count):  # each on (1 - d) times the last step
            adjoint = engine.backward_sums(K, masks, 1, adjoint, sums)
            adjoint = Adjoint(*((1.0 - self.damping) * part for part in adjoint))
        return adjoint
