"""The unrolled network: an nn.Module with the learned operator K and possibly learned step sizes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pdunroll.core.chambolle_pock import Iterate, chambolle_pock
from pdunroll.core.dispatch import engine_for
from pdunroll.core.engine import flush_denormals
from pdunroll.core.gradients import Backprop
from pdunroll.core.problem import Box, dct_operator
from pdunroll.core.unroll import Scalar, unroll
from pdunroll.errors import InputError

SCALE, LARGEST_SCALE = 0.99, 0.999  # initial value and bound of c if it is learned


class UnrolledNetwork(nn.Module):
    """A^L(K, x) with learned K, (m, n), which starts as the orthonormal DCT-II.

    With `learned_steps` the step sizes sigma = r c / ||K|| and tau = c / (r ||K||) are learned, too, by the logarithm
    of r and the logit of c / 0.999. Then sigma tau ||K||_2^2 < 1 for all their values, so that the iteration converges.
    r starts at `step_ratio` and c at 0.99.
    """

    def __init__(
        self,
        *,
        rows: int,
        frame_length: int,
        radius: float | None,
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

    def known(self, observation: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> dict[str, Any]:
        """Return x with the radius, or the box of x and bounds (B, n), as arguments of `unroll`."""
        if lower is None or upper is None:
            return {"observation": observation, "radius": self.radius}
        return {"observation": Box.between(lower, upper, observation), "radius": None}

    def forward(
        self, *observed: Tensor, iterations: int | None = None, backprop: Backprop | None = None,
        step_norm: str | None = None, start: Iterate | None = None,
    ) -> Tensor:  # fmt: skip
        """Return y^L (B, n) for x (B, n).

        Args:
            *observed: x, and the bounds of the true samples (B, n) where they are not x +- radius.
            iterations: the number of iterations; L if None.
            backprop: the strategy; that of the network if None.
            step_norm: the norm of the step sizes; that of the network if None.
            start: the iterate from which to continue.
        """
        known = self.known(*observed)
        return unroll(
            self.operator,
            known["observation"],
            radius=known["radius"],
            iterations=iterations or self.iterations,
            backprop=backprop or self.backprop,
            extrapolation=self.extrapolation,
            step_norm=step_norm or self.step_norm,
            start=None if start is None else (start.primal, start.dual),
            **self.steps,
        )

    @torch.no_grad()
    def advanced(self, *observed: Tensor, primal: Tensor, dual: Tensor, count: int) -> Iterate:
        """Return the iterate `count` iterations after y (B, n) and psi (B, m), without a gradient.

        Args:
            *observed: x (B, n), and bounds as for `forward`.
            primal: y.
            dual: psi.
            count: the number of iterations.
        """
        operator = self.operator.detach()
        steps = {name: float(value) for name, value in self.steps.items()}
        known = self.known(*observed)
        algorithm = chambolle_pock(
            operator, radius=known["radius"], extrapolation=self.extrapolation, step_norm=self.step_norm, **steps
        )
        engine = engine_for(replace(algorithm, initial=(primal, dual)), operator)
        with flush_denormals():
            return engine.iterate(operator, known["observation"], count)
