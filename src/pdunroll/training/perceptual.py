"""A loss that weights errors by how well speech masks them, with linear prediction as speech coders have it.

Noise is heard less where speech has much energy. So the spectrum of the error is weighted by abs(W)^2, where

    W(z) = A(z / g1) / A(z / g2)

and A is the linear-prediction polynomial of the clean frame: W is small near the formants and large between them.
Source of W: B. Atal and M. Schroeder, "Predictive coding of speech signals and subjective error criteria" (1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdunroll.errors import require_integer, require_within
from pdunroll.training.network import UnrolledNetwork
from pdunroll.training.objectives import KeptPairs, Objective

FLOOR = 1e-3  # share of a frame's power that is added as white noise, so that silence predicts nothing


@dataclass(frozen=True, kw_only=True)
class PerceptuallyWeighted(Objective):
    """Half the squared error after L iterations, its spectrum weighted by linear prediction from the clean frame.

    Attributes:
        order: of the prediction; 16 for speech at 16 kHz.
        near: g1, from g2 to 1. The nearer to 1, the less errors near formants count.
        far: g2, from 0 to g1. The nearer to g1, the more all frequencies count alike.
    """

    order: int = 16
    near: float = 0.9
    far: float = 0.6

    def __post_init__(self) -> None:
        require_integer("objective.order", self.order, 1)
        require_within("objective.far", self.far, 0.0, 1.0)
        require_within("objective.near", self.near, self.far, 1.0)

    def loss(self, network: UnrolledNetwork, batch: tuple[Tensor, ...], step: int, pairs: KeptPairs | None) -> Tensor:
        """Return the weighted error of y^L."""
        truth, *observed = batch
        spectrum = torch.fft.rfft(network(*observed) - truth, 2 * truth.shape[-1]).abs().square()
        spectrum = torch.cat([spectrum[:, :1], 2.0 * spectrum[:, 1:-1], spectrum[:, -1:]], dim=1)  # both halves
        return 0.5 * (self.weights(truth) * spectrum).sum() / (2 * truth.shape[-1])

    def weights(self, truth: Tensor) -> Tensor:
        """Return abs(W)^2 at the n + 1 frequencies of a transform of 2 n samples, (B, n + 1), with mean 1.

        Args:
            truth: y, (B, n).

        Examples:
            >>> import torch
            >>> tone = torch.sin(torch.arange(320.0) / 2)[None]  # at 1 / (4 pi) of the sampling rate
            >>> weights = PerceptuallyWeighted().weights(tone)
            >>> weights[0, 51] < 0.2 < weights.mean()
            tensor(True)
        """
        n = truth.shape[-1]
        windowed = truth.detach() * torch.hann_window(n, dtype=truth.dtype, device=truth.device)
        power = torch.fft.rfft(windowed, 2 * n).abs().square()
        correlation = torch.fft.irfft(power, 2 * n)[:, : self.order + 1]
        correlation[:, 0] = correlation[:, 0] * (1.0 + FLOOR) + torch.finfo(truth.dtype).tiny ** 0.5
        lags = torch.arange(self.order, device=truth.device)
        matrix = correlation[:, (lags[:, None] - lags).abs()]  # (B, order, order), Toeplitz
        tail = -torch.linalg.solve(matrix, correlation[:, 1:])
        polynomial = torch.cat([torch.ones_like(tail[:, :1]), tail], dim=1)
        powers = torch.arange(self.order + 1, dtype=truth.dtype, device=truth.device)
        above, below = (
            torch.fft.rfft(polynomial * share**powers, 2 * n).abs().square() for share in (self.near, self.far)
        )
        weights = above / below
        return weights / weights.mean(dim=1, keepdim=True)
