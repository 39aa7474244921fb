"""Backpropagation through the last iterations only, with the masks of each: truncated backpropagation through time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pdunroll.core.engine import Engine, Tape
from pdunroll.core.gradients import Taped
from pdunroll.core.problem import Masks, Observation
from pdunroll.errors import require_integer


@dataclass(frozen=True, kw_only=True)
class LastIterations(Taped):
    """Algorithm 2 over the last b iterations: the iterate y^{L-b} is taken as a constant.

    grad_K = sum_{l=L-b+1}^{L}  sigma delta_D^l (ybar^{l-1})^T - tau psi^l (delta_P^l)^T

    It differs from `Truncated` in that every iteration has its own masks and iterates. With b >= L it is `Full`.
    It keeps 5 b (m + n) bytes per frame in float32 for any L.

    Sources: truncated backpropagation through time (Williams and Peng, Neural Computation 1990). Mehmood, Knoll and
    Ochs, "Understanding the Curse of Unrolling" (arXiv 2602.19733, 2026), show that leaving out the early iterations
    avoids the initial growth of the derivative's error.

    Attributes:
        iterations: b >= 1.

    Raises:
        InputError: for settings out of range.

    Examples:
        >>> import pdunroll, torch
        >>> operator, x = torch.eye(2, requires_grad=True), torch.tensor([[0.5, 0.1]])
        >>> gradients = []
        >>> for backprop in (pdunroll.Full(), pdunroll.LastIterations(iterations=100)):
        ...     y = pdunroll.unroll(operator, x, radius=0.2, iterations=100, backprop=backprop)
        ...     gradients += torch.autograd.grad(y.sum(), operator)
        >>> torch.equal(*gradients)
        True
    """

    iterations: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("backprop.iterations (b)", self.iterations, 1)

    def forward(self, engine: Engine, K: Tensor, x: Observation, iterations: int) -> tuple[Tensor, tuple[Any, ...]]:
        """Return y^L, (B, n), and the tape of the last b iterations."""
        b = self.length(iterations)
        start = engine.iterate(K, x, iterations - b)
        tape, last = engine.record(K, x, b, self.mask(engine), start)
        return last.primal, (tape.dual, tape.extrapolated, *tape.masks)

    def length(self, iterations: int) -> int:
        """Return b, or L where that is smaller."""
        return min(self.iterations, iterations)

    def tapes(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int) -> list[Tape]:
        """Return the one tape."""
        dual, extrapolated, *masks = kept
        return [Tape(dual, extrapolated, Masks(*masks))]


@dataclass(frozen=True, kw_only=True)
class OneStep(LastIterations):
    """One-step differentiation, or Jacobian-free backpropagation: Algorithm 2 over the last iteration alone.

    grad_K = sigma delta_D (ybar^{L-1})^T - tau psi^L delta_P^T

    with delta_P = mask_P grad_y loss and delta_D = -tau mask_D K delta_P.

    Sources: Bolte, Pauwels and Vaiter, "One-step differentiation of iterative algorithms" (NeurIPS 2023), who bound
    its error by a multiple of the contraction factor, and Fung, Heaton, Li, McKenzie, Osher and Yin, "JFB:
    Jacobian-Free Backpropagation for Implicit Networks" (AAAI 2022), who show for well-conditioned contractions that
    it is a descent direction. Chambolle-Pock on this problem contracts slowly, so neither result says much here.

    Examples:
        >>> import pdunroll
        >>> pdunroll.OneStep(primal_mask="released")
        OneStep(primal_mask='released')
    """

    iterations: int = field(default=1, init=False, repr=False)
