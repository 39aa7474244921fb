"""The unrolled network: an nn.Module that holds what is learned, the operator K and possibly the step sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pdunroll.core.gradients import Backprop, Scalar, unroll
from pdunroll.core.problem import dct_operator
from pdunroll.errors import InputError

SCALE, LARGEST_SCALE = 0.99, 0.999  # where c starts if it is learned, and its bound


class UnrolledNetwork(nn.Module):
    """A^L(K, x) with learned K, (m, n), which starts as the orthonormal DCT-II.

    With `learned_steps` the step sizes sigma = r c / ||K|| and tau = c / (r ||K||) are learned, too, by the logarithm
    of r and the logit of c / 0.999: sigma tau ||K||_2^2 < 1 whatever they are, so that the iteration converges. r
    starts at `step_ratio` and c at 0.99.
    """

    def __init__(
        self,
        *,
        rows: int,
        frame_length: int,
        radius: float,
        iterations: int,
        backprop: Backprop,
        step_ratio: float = 10.0,
        learned_steps: bool = False,
        extrapolation: float = 1.0,
        step_norm: str = "frobenius",
    ) -> None:
        super().__init__()
        if learned_steps and "steps" not in backprop.inputs:
            raise InputError(
                f"network.learned_steps needs a gradient with respect to the step sizes, which "
                f"{type(backprop).__name__} does not give; take full, lastiterations or truncated"
            )
        self.operator = nn.Parameter(dct_operator(rows, frame_length))  # K (m, n)
        self.learned_steps = learned_steps
        if learned_steps:
            self.log_ratio = nn.Parameter(torch.tensor(math.log(step_ratio)))
            self.scale_logit = nn.Parameter(torch.tensor(math.log(SCALE / (LARGEST_SCALE - SCALE))))
        self.radius = radius
        self.iterations = iterations  # L
        self.backprop = backprop
        self.step_ratio = step_ratio
        self.extrapolation = extrapolation
        self.step_norm = step_norm

    @property
    def steps(self) -> dict[str, Scalar]:
        """The step sizes as `unroll` takes them: the ratio r and, if they are learned, the scale c."""
        if not self.learned_steps:
            return {"step_ratio": self.step_ratio}
        return {"step_ratio": self.log_ratio.exp(), "step_scale": LARGEST_SCALE * self.scale_logit.sigmoid()}

    def forward(self, observation: Tensor) -> Tensor:
        """Return y^L (B, n) for x (B, n)."""
        return unroll(
            self.operator,
            observation,
            radius=self.radius,
            iterations=self.iterations,
            backprop=self.backprop,
            extrapolation=self.extrapolation,
            step_norm=self.step_norm,
            **self.steps,
        )
