"""The unrolled network: an nn.Module that holds the operator K, its only parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pdunroll.core.chambolle_pock import Iterate, chambolle_pock
from pdunroll.core.engine import engine_for, flush_denormals
from pdunroll.core.gradients import Backprop, unroll
from pdunroll.core.problem import dct_operator


class UnrolledNetwork(nn.Module):
    """A^L(K, x) with learned K, (m, n), which starts as the orthonormal DCT-II."""

    def __init__(
        self,
        *,
        rows: int,
        frame_length: int,
        radius: float,
        iterations: int,
        backprop: Backprop,
        step_ratio: float = 10.0,
        extrapolation: float = 1.0,
        step_norm: str = "frobenius",
    ) -> None:
        super().__init__()
        self.operator = nn.Parameter(dct_operator(rows, frame_length))  # K (m, n)
        self.radius = radius
        self.iterations = iterations  # L
        self.backprop = backprop
        self.step_ratio = step_ratio
        self.extrapolation = extrapolation
        self.step_norm = step_norm

    def forward(
        self, observation: Tensor, *, iterations: int | None = None, backprop: Backprop | None = None,
        step_norm: str | None = None, start: Iterate | None = None,
    ) -> Tensor:  # fmt: skip
        """Return y^L (B, n) for x (B, n).

        Args:
            observation: x.
            iterations: a number of iterations other than L.
            backprop: another strategy.
            step_norm: another norm of the step sizes.
            start: the iterate to go on from.
        """
        return unroll(
            self.operator,
            observation,
            radius=self.radius,
            iterations=iterations or self.iterations,
            backprop=backprop or self.backprop,
            step_ratio=self.step_ratio,
            extrapolation=self.extrapolation,
            step_norm=step_norm or self.step_norm,
            start=None if start is None else (start.primal, start.dual),
        )

    @torch.no_grad()
    def advanced(self, observation: Tensor, primal: Tensor, dual: Tensor, count: int) -> Iterate:
        """Return the iterate `count` iterations after y (B, n) and psi (B, m), for x (B, n), without a gradient."""
        operator = self.operator.detach()
        algorithm = chambolle_pock(
            operator, radius=self.radius, step_ratio=self.step_ratio, extrapolation=self.extrapolation,
            step_norm=self.step_norm,
        )  # fmt: skip
        with flush_denormals():
            start = Iterate(dual, dual, primal, primal, primal)
            return engine_for(algorithm, operator).iterate(operator, observation, count, start)
