"""The unrolled network: an nn.Module that holds the operator K, its only parameter."""

from __future__ import annotations

from torch import Tensor, nn

from pdunroll.core.gradients import Backprop, unroll
from pdunroll.core.problem import Box, dct_operator


class UnrolledNetwork(nn.Module):
    """A^L(K, x) with learned K, (m, n), which starts as the orthonormal DCT-II."""

    def __init__(
        self,
        *,
        rows: int,
        frame_length: int,
        radius: float | None,
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

    def forward(self, observation: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
        """Return y^L (B, n) for x (B, n), and the bounds of the true samples where they are not x +- radius."""
        box = None if lower is None or upper is None else Box.between(lower, upper, observation)
        return unroll(
            self.operator,
            observation if box is None else box,
            radius=self.radius if box is None else None,
            iterations=self.iterations,
            backprop=self.backprop,
            step_ratio=self.step_ratio,
            extrapolation=self.extrapolation,
            step_norm=self.step_norm,
        )
