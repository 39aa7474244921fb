"""Sums over Algorithm 2: the lemma's gradient with respect to the operator, and those to all other inputs.

sigma and tau enter iteration l through z_D = psi + sigma K ybar and z_P = y - tau K^T psi. Hence

    d sigma = sum_l <delta_D^l, K ybar^{l-1}>,    d tau = -sum_l <delta_P^l, K^T psi^l>,

inner products of K with the two sums of the lemma. x and the radius enter through the projection of z_P onto the box,
where it holds an entry (mask_P = 0). With g^l = delta_P^{l+1} + sigma K^T deltabar_D^{l+1}, the gradient with respect
to y^l,

    d x = sum_l (1 - mask_P^l) g^l + that with respect to the start y^0 = ybar^0 = x,
    d radius = sum_l <(1 - mask_P^l) g^l, sign(y^l - x)>.

Source: Algorithm 2 and the lemma of Brauer and Lorenz (EUSIPCO 2023), who differentiate with respect to K alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import Adjoint
from pdunroll.core.engine import Engine, Tape, memory
from pdunroll.core.problem import Masks

ROWS = 1024  # frames times iterations whose outer products are summed by one matrix product

# The inputs beside the operator that Algorithm 2 differentiates with each primal mask; "steps" are sigma and tau. The
# released mask is not the derivative of the projection, by which x and the radius enter.
INPUTS = {"active_set": ("observation", "radius", "steps"), "released": ("steps",)}


class InputGradients(NamedTuple):
    """Gradients of the loss with respect to the inputs of `unroll`, where a mode has them."""

    observation: Tensor  # (B, n)
    radius: Tensor  # ()
    sigma: Tensor | None = None  # ()
    tau: Tensor | None = None  # ()
    operator: Tensor | None = None  # (m, n), where the same sums give it


def lemma(engine: Engine, K: Tensor, tapes: Iterable[Tape], iterations: int, grad: Tensor) -> Tensor:
    """Return the sum of the lemma over taped iterations, with the outer products of many in one matrix product.

    Args:
        engine: runs Algorithm 2.
        K: the operator, (m, n).
        tapes: those of consecutive iterations, the last ones first.
        iterations: how many are on the tapes.
        grad: grad_y of the loss at y^L, (B, n).

    Returns:
        The gradient, (m, n).
    """
    total = torch.zeros_like(K, memory_format=torch.contiguous_format)
    for tape, delta_primal, delta_dual, *_ in backward_blocks(engine, K, tapes, iterations, grad):
        rows = (part.flatten(0, 1) for part in (delta_dual, tape.extrapolated, tape.dual, delta_primal))
        add_gradient(engine, total, *rows)
    return total


def add_gradient(
    engine: Engine, total: Tensor, delta_dual: Tensor, primal: Tensor, dual: Tensor, delta_primal: Tensor
) -> None:
    """Add sigma delta_D^T y - tau psi^T delta_P to `total`, (m, n); the rows of all arguments are frames or iterations.

    Args:
        engine: computes the outer products.
        total: the gradient so far, contiguous.
        delta_dual: delta_D or a sum of them, (rows, m).
        primal: y or ybar, (rows, n).
        dual: psi, (rows, m).
        delta_primal: delta_P or a sum of them, (rows, n).
    """
    engine.add_outer(total, engine.algorithm.sigma, delta_dual, primal)
    engine.add_outer(total, -engine.algorithm.tau, dual, delta_primal)


class BackwardBlock(NamedTuple):
    """Consecutive iterations l = f + 1, ..., f + s of Algorithm 2."""

    tape: Tape  # of these iterations
    delta_primal: Tensor  # delta_P^l  (s, B, n), overwritten by the next block
    delta_dual: Tensor  # delta_D^l  (s, B, m), likewise
    later: Adjoint  # of iteration f + s + 1
    first: Adjoint  # of iteration f + 1


def backward_blocks(
    engine: Engine, K: Tensor, tapes: Iterable[Tape], iterations: int, grad: Tensor
) -> Iterator[BackwardBlock]:
    """Yield the iterations of Algorithm 2 over `tapes` in blocks, the last ones first; arguments as for `lemma`."""
    (B, n), m = grad.shape, len(K)
    size = max(1, min(ROWS // max(B, 1), iterations))  # iterations in a block
    delta_primal, delta_dual = memory((size, B, n), K), memory((size, B, m), K)
    later = engine.algorithm.adjoint_start(K, grad)
    for tape in tapes:
        for end in range(len(tape.dual), 0, -size):
            l = slice(max(0, end - size), end)
            part = Tape(tape.dual[l], tape.extrapolated[l], Masks(tape.masks.dual[l], tape.masks.primal[l]))
            deltas = delta_primal[: len(part.dual)], delta_dual[: len(part.dual)]
            first = engine.backward(K, part.masks, later, *deltas)
            yield BackwardBlock(part, *deltas, later, first)
            later = first


def input_gradients(
    engine: Engine, K: Tensor, x: Tensor, tapes: Iterable[Tape], iterations: int, y: Tensor, grad: Tensor,
    *, from_start: bool,
) -> InputGradients:  # fmt: skip
    """Return the gradients with respect to x, the radius, the step sizes and the operator over taped iterations.

    Args:
        engine: runs Algorithm 2.
        K: the operator, (m, n).
        x: the observations, (B, n).
        tapes: those of consecutive iterations up to L, the last ones first.
        iterations: how many are on the tapes.
        y: y^L, (B, n).
        grad: grad_y of the loss at y^L, (B, n).
        from_start: whether the first of these iterations is the first of Algorithm 1, which starts from x.
    """
    sigma, tau, theta = engine.algorithm.sigma, engine.algorithm.tau, engine.algorithm.theta
    dual_terms, primal_terms = (torch.zeros_like(K, memory_format=torch.contiguous_format) for _ in range(2))
    observation, radius = torch.zeros_like(x), x.new_zeros(())
    following, earliest = y, engine.algorithm.adjoint_start(K, grad)
    for tape, delta_primal, delta_dual, later, first in backward_blocks(engine, K, tapes, iterations, grad):
        engine.add_outer(dual_terms, sigma, delta_dual.flatten(0, 1), tape.extrapolated.flatten(0, 1))
        engine.add_outer(primal_terms, -tau, tape.dual.flatten(0, 1), delta_primal.flatten(0, 1))
        dual = torch.cat([delta_dual, later.dual[None]])
        dual_bar = dual[:-1] + theta * (dual[:-1] - dual[1:])
        at_primal = torch.cat([delta_primal[1:], later.primal[None]])  # g, (s, B, n)
        at_primal += sigma * torch.cat([dual_bar[1:], later.dual_bar[None]]) @ K
        held = at_primal.masked_fill_(tape.masks.primal, 0.0)
        observation += held.sum(dim=0)
        extrapolated = torch.cat([tape.extrapolated[1:], following[None]])  # where y^l is held, on its side of x
        radius += (held * (extrapolated - x).sign()).sum()
        following, earliest = tape.extrapolated[0].clone(), first
    if from_start:  # of y^0 and ybar^0
        observation += earliest.primal + sigma * (earliest.dual_bar - theta * earliest.dual) @ K
    steps = (K * dual_terms).sum() / sigma, (K * primal_terms).sum() / tau
    return InputGradients(observation, radius, *steps, operator=dual_terms + primal_terms)
