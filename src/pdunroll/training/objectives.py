"""The loss of a training: the error after L iterations, or a variant that aims at speed and a good optimum.

Each variant is one class and one file in conf/objective/.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdunroll.core.implicit import Implicit
from pdunroll.core.unrolled_halpern import unroll_halpern
from pdunroll.errors import InputError, require_integer
from pdunroll.training.network import UnrolledNetwork


class KeptPairs(NamedTuple):
    """A primal-dual pair of each training frame."""

    primal: Tensor  # y  (frames, n)
    dual: Tensor  # psi  (frames, m)


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """The loss of a batch; every error in it is half a squared error, summed over the batch."""

    @property
    def keeps_pairs(self) -> bool:
        """Whether `loss` is given `KeptPairs`; the last part of a batch is then the numbers of its frames, (B,)."""
        return False

    @abstractmethod
    def loss(self, network: UnrolledNetwork, batch: tuple[Tensor, ...], step: int, pairs: KeptPairs | None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            network: the network, which is differentiable.
            batch: y and x of the frames, (B, n) each, and their bounds if they have any.
            step: the number of the training step.
            pairs: the pairs of all training frames, which `loss` may change; None unless `keeps_pairs`.
        """

    def restore(self, network: UnrolledNetwork, *observed: Tensor) -> Tensor:
        """Return the frames that validation compares with the truth, here y^L (B, n), for x (B, n) or x and bounds."""
        return network(*observed)


@dataclass(frozen=True, kw_only=True)
class AtDepth(Objective):
    """The error after L iterations, as in the paper."""

    def loss(self, network: UnrolledNetwork, batch: tuple[Tensor, ...], step: int, pairs: KeptPairs | None) -> Tensor:
        """Return the error of y^L."""
        return half_squares(network(*batch[1:]), batch[0])


@dataclass(frozen=True, kw_only=True)
class RandomDepth(Objective):
    """The error after a number of iterations that is drawn for each step, log-uniformly between `lowest` and L.

    Attributes:
        lowest: the smallest number of iterations, at most L.
        seed: the seed; the number drawn for a step depends only on the seed and the number of the step.

    Examples:
        >>> [RandomDepth(lowest=10, seed=0).depth(step, 1000) for step in range(4)]
        [188, 602, 15, 617]
    """

    lowest: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        require_integer("objective.loss.lowest", self.lowest, 1)
        require_integer("objective.loss.seed", self.seed, 0)

    def depth(self, step: int, largest: int) -> int:
        """Return the number of iterations of a step, where `largest` is L."""
        share = np.random.default_rng([self.seed, step]).uniform()
        return round(self.lowest * (largest / self.lowest) ** share)

    def loss(self, network: UnrolledNetwork, batch: tuple[Tensor, ...], step: int, pairs: KeptPairs | None) -> Tensor:
        """Return the error after the iterations of this step."""
        require_integer("network.iterations (L)", network.iterations, self.lowest)
        return half_squares(network(*batch[1:], iterations=self.depth(step, network.iterations)), batch[0])


@dataclass(frozen=True, kw_only=True)
class SeveralDepths(Objective):
    """The mean of the errors after several numbers of iterations, after L iterations, and at the optimum.

    The optimum is approached by iterations with spectral step sizes, the largest ones, and always differentiated by
    `Implicit`.

    Attributes:
        depths: the numbers of iterations besides L.
        optimum_iterations: the number of iterations towards the optimum.
    """

    depths: tuple[int, ...] = (10, 30, 100)
    optimum_iterations: int = 200

    def __post_init__(self) -> None:
        for depth in self.depths:
            require_integer("objective.loss.depths", depth, 1)
        require_integer("objective.loss.optimum_iterations", self.optimum_iterations, 1)

    def loss(self, network: UnrolledNetwork, batch: tuple[Tensor, ...], step: int, pairs: KeptPairs | None) -> Tensor:
        """Return the mean of the errors."""
        truth, *observed = batch
        restored = [network(*observed, iterations=depth) for depth in (*self.depths, network.iterations)]
        restored.append(
            network(*observed, iterations=self.optimum_iterations, backprop=Implicit(), step_norm="spectral")
        )
        return torch.stack([half_squares(y, truth) for y in restored]).mean()


@dataclass(frozen=True, kw_only=True)
class WarmStarts(Objective):
    """The error after L iterations that start at a pair stored for each frame from pass to pass.

    In each pass the stored pair is first advanced by some iterations with the current operator, without a gradient; the
    L differentiated iterations start there. From pass to pass, and as the operator changes less, the pairs approach
    their optima.

    Attributes:
        advance: the number of iterations by which a stored pair is advanced in each pass.
        validation_iterations: the number of iterations in validation, which starts as usual and needs more than L.
    """

    advance: int = 30
    validation_iterations: int = 1000

    def __post_init__(self) -> None:
        require_integer("objective.loss.advance", self.advance, 1)
        require_integer("objective.loss.validation_iterations", self.validation_iterations, 1)

    @property
    def keeps_pairs(self) -> bool:
        """True: pairs are kept."""
        return True

    def loss(self, network: UnrolledNetwork, batch: tuple[Tensor, ...], step: int, pairs: KeptPairs | None) -> Tensor:
        """Advance the pairs of the batch, and return the error after L further iterations."""
        assert pairs is not None
        truth, *observed, frames = batch
        start = network.advanced(*observed, primal=pairs.primal[frames], dual=pairs.dual[frames], count=self.advance)
        pairs.primal[frames], pairs.dual[frames] = start.primal, start.dual
        return half_squares(network(*observed, start=start), truth)

    def restore(self, network: UnrolledNetwork, *observed: Tensor) -> Tensor:
        """Return y, (B, n), after `validation_iterations`."""
        return network(*observed, iterations=self.validation_iterations)


@dataclass(frozen=True, kw_only=True)
class HalpernDepth(Objective):
    """The error after L reflected Halpern iterations instead of those of Chambolle-Pock (theta has no meaning)."""

    def loss(self, network: UnrolledNetwork, batch: tuple[Tensor, ...], step: int, pairs: KeptPairs | None) -> Tensor:
        """Return the error after L Halpern iterations."""
        return half_squares(self.restore(network, *batch[1:]), batch[0])

    def restore(self, network: UnrolledNetwork, *observed: Tensor) -> Tensor:
        """Return the result of L Halpern iterations, (B, n)."""
        if network.learned_steps:
            raise InputError("objective=halpern learns no step sizes; set network.learned_steps=false")
        return unroll_halpern(
            network.operator, **network.known(*observed), iterations=network.iterations,
            backprop=network.backprop, step_ratio=network.step_ratio, step_norm=network.step_norm,
        )  # fmt: skip


def half_squares(restored: Tensor, truth: Tensor) -> Tensor:
    """Return half the squared error, summed over frames and samples."""
    return 0.5 * (restored - truth).square().sum()
