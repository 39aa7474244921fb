"""Strategies for the backward pass of the unrolled algorithm.

Source: Brauer and Lorenz (EUSIPCO 2023), Algorithm 2, the lemma on the gradient, "Truncated backpropagation".
A strategy says what to keep of the forward pass and how to compute the gradient from it. The forward pass is the
same L iterations of Algorithm 1 for all strategies. Each mode of backpropagation is one class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pdunroll.core.backward import INPUTS, InputGradients, input_gradients, lemma
from pdunroll.core.chambolle_pock import Iterate
from pdunroll.core.engine import Engine, Tape
from pdunroll.core.problem import PRIMAL_MASKS, MaskOf, Masks, Observation
from pdunroll.errors import require_choice, require_integer


@dataclass(frozen=True, kw_only=True)
class Backprop(ABC):
    """A way to compute grad_K loss(y^L).

    Attributes:
        primal_mask: the Jacobian of the primal prox, "active_set" (the paper's formula) or "released" (that of the
            authors' released code); see `pdunroll.core.problem`.

    Raises:
        InputError: for another `primal_mask`.
    """

    primal_mask: str = "active_set"

    def __post_init__(self) -> None:
        require_choice("primal_mask", self.primal_mask, tuple(PRIMAL_MASKS))

    @abstractmethod
    def forward(self, engine: Engine, K: Tensor, x: Observation, iterations: int) -> tuple[Tensor, tuple[Any, ...]]:
        """Run Algorithm 1 and keep what `gradient` will need.

        Args:
            engine: runs blocks of iterations; `engine.algorithm` holds the problem and the step sizes.
            K: the operator, (m, n).
            x: the observations, (B, n), or their box.
            iterations: L >= 1.

        Returns:
            y^L, (B, n), and what to keep: tensors, and x itself.
        """

    def restore(self, engine: Engine, K: Tensor, x: Observation, iterations: int) -> Tensor:
        """Return y^L, (B, n), when no gradient is wanted."""
        return self.forward(engine, K, x, iterations)[0]

    @abstractmethod
    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return grad_K of the loss.

        Args:
            engine: that of `forward`.
            K: the operator, (m, n).
            kept: what `forward` has kept.
            iterations: L.
            grad: grad_y of the loss at y^L, (B, n).

        Returns:
            The gradient, (m, n), a tensor of its own.
        """

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs beside the operator that `input_gradients` covers: of "observation", "radius" and "steps"."""
        return ()

    def input_gradients(
        self, engine: Engine, K: Tensor, x: Tensor, y: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor
    ) -> InputGradients:
        """Return the gradients with respect to `inputs`.

        Args:
            engine: that of `forward`.
            K: the operator, (m, n).
            x: the observations, (B, n), or the centres of their box.
            y: y^L, (B, n).
            kept: what `forward` has kept.
            iterations: L.
            grad: grad_y of the loss at y^L, (B, n).
        """
        raise NotImplementedError(f"{type(self).__name__} gives no gradient but that of the operator")

    def mask(self, engine: Engine) -> MaskOf:
        """Return what makes the Jacobian of the primal prox that `primal_mask` names."""
        return PRIMAL_MASKS[self.primal_mask]


@dataclass(frozen=True, kw_only=True)
class Taped(Backprop):
    """Algorithm 2 and the lemma over the last iterations before y^L, with the masks of each."""

    @abstractmethod
    def length(self, iterations: int) -> int:
        """Return how many of L iterations the tapes hold."""

    @abstractmethod
    def tapes(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int) -> Iterable[Tape]:
        """Return the tapes of these iterations, the last ones first; arguments as for `gradient`."""

    def restore(self, engine: Engine, K: Tensor, x: Observation, iterations: int) -> Tensor:
        """Return y^L, (B, n), without keeping anything."""
        return engine.iterate(K, x, iterations).primal

    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return the sum of the lemma over these iterations, (m, n)."""
        return lemma(engine, K, self.tapes(engine, K, kept, iterations), self.length(iterations), grad)

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs with the active-set mask, the Jacobian of the projection; the step sizes with the other."""
        return INPUTS[self.primal_mask]

    def input_gradients(
        self, engine: Engine, K: Tensor, x: Tensor, y: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor
    ) -> InputGradients:
        """Return the gradients with respect to x, the radius, the step sizes and K, from one backward pass."""
        length, tapes = self.length(iterations), self.tapes(engine, K, kept, iterations)
        return input_gradients(engine, K, x, tapes, length, y, grad, from_start=length == iterations)


@dataclass(frozen=True, kw_only=True)
class Full(Taped):
    """Algorithm 2 over all iterations: with "active_set" the exact gradient of the L-th iterate.

    grad_K = sum_{l=1}^{L}  sigma delta_D^l (ybar^{l-1})^T - tau psi^l (delta_P^l)^T            (the lemma)

    It keeps psi, ybar and both masks of all iterations, 5 L (m + n) bytes per frame in float32.

    Attributes:
        checkpoint_every: if given, keep only every s-th iterate, and run the s iterations between two of them a second
            time for the backward pass; s = sqrt(L) keeps the least.

    Raises:
        InputError: for settings out of range.

    Examples:
        >>> import pdunroll
        >>> pdunroll.Full(primal_mask="released", checkpoint_every=10)
        Full(primal_mask='released', checkpoint_every=10)
    """

    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_every is not None:
            require_integer("checkpoint_every", self.checkpoint_every, 1)

    def forward(self, engine: Engine, K: Tensor, x: Observation, iterations: int) -> tuple[Tensor, tuple[Any, ...]]:
        """Return y^L, (B, n), and x with the tape of all iterations or the checkpoints."""
        every, start = self.checkpoint_every, engine.algorithm.start(K, x)
        if every is None:
            tape, last = engine.record(K, x, iterations, self.mask(engine), start)
            return last.primal, (x, tape.dual, tape.extrapolated, *tape.masks)
        checkpoints = [start]
        for first in range(0, iterations, every):
            last = engine.iterate(K, x, min(every, iterations - first), checkpoints[-1])
            checkpoints.append(last)
        return checkpoints[-1].primal, (x, *(tensor for iterate in checkpoints[:-1] for tensor in iterate))

    def length(self, iterations: int) -> int:
        """Return L: all iterations are on the tapes."""
        return iterations

    def tapes(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int) -> Iterator[Tape]:
        """Yield the tapes of all iterations, the last ones first."""
        x, *tensors = kept
        if self.checkpoint_every is None:
            dual, extrapolated, *masks = tensors
            yield Tape(dual, extrapolated, Masks(*masks))
            return
        for number in reversed(range(len(tensors) // 5)):
            count = min(self.checkpoint_every, iterations - number * self.checkpoint_every)
            checkpoint = Iterate(*tensors[5 * number : 5 * number + 5])
            yield engine.record(K, x, count, self.mask(engine), checkpoint)[0]
