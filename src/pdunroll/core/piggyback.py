"""The derivative of the optimum by an iteration that runs together with Algorithm 1 (piggyback).

The sums of Algorithm 2, S_P = sum delta_P and S_D = sum delta_D, are themselves iterates. Summing (1) to (3) gives

    S_P <- mask_P (S_P + grad_y loss + sigma K^T Sbar_D)
    S_D <- mask_D (S_D - tau K S_P)
    Sbar_D <- S_D + theta (S_D - its value before)

one adjoint step on (S_P + grad_y loss, S_D, Sbar_D): a Chambolle-Pock iteration for the adjoint problem. Its fixed
points have Ktilde S_P = 0 and sigma Ktilde^T S_D = -mask_P grad_y loss, those of the limit theorem. They depend only
on the current masks, not on those of earlier iterations, so that the masks may change with the iterate.

Sources: Griewank and Faure, "Piggyback differentiation and optimization" (2003); Chambolle and Pock, "Learning
consistent discretizations of the total variation" (SIAM J. Imaging Sci. 2021); Bogensperger, Ehrhardt, Pock, Salehi and
Wong, "An Adaptively Inexact Method for Bilevel Learning Using Primal-Dual Style Differentiation" (J. Math. Imaging
Vis. 67:49, 2025), who stop by an a-posteriori error bound, for strongly convex problems. Neither part of this one is
strongly convex; the estimate and the bound used here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdunroll.core.backward import add_gradient
from pdunroll.core.chambolle_pock import Adjoint, ChambollePock, Iterate
from pdunroll.core.engine import Engine
from pdunroll.core.gradients import Backprop
from pdunroll.core.polish import polish, reduced_operator
from pdunroll.core.problem import Box, MaskOf, Masks, Observation
from pdunroll.errors import InputError, require_integer, require_positive

BLOCK = 50  # iterations with the same masks, between two checks
OPTIMAL = 1e-10  # the relative duality gap, computed in float64, of a vertex that is taken as the optimum


class Derivative(NamedTuple):
    """The result of `Piggyback.differentiate` for B frames."""

    gradient: Tensor  # of the loss with respect to K  (m, n)
    error: Tensor  # the estimated relative error of each frame's multiplier, infinite where masks still change  (B,)
    iterations: Tensor  # taken beyond L; 0 for trivial frames  (B,)
    bound: Tensor | None  # of the error of each frame's gradient, if it was asked for; see `error_bound`  (B,)


@dataclass(frozen=True, kw_only=True)
class Piggyback(Backprop):
    """The derivative of the optimum, iterated together with y from the L-th iterate on.

    grad_K = sigma S_D y^T - tau psi S_P^T   with y, psi, S_P, S_D after at most `max_iterations` more iterations

    The masks are updated every 50 iterations. The memory does not depend on the numbers of iterations. A frame stops
    when its masks are those of the last check and both its relative duality gap and the estimated relative error of
    its multiplier sigma S_D (see `error_estimate`) are at most `tolerance`. Trivial frames (y* = 0) add nothing.

    The following is guaranteed for theta = 1 if the optimum is a vertex at which no entry of a mask is on its border.
    The masks are those of the vertex after finitely many iterations, and then S_P and S_D converge linearly, so
    that for tolerance -> 0 and max_iterations -> inf the result is -lambda (y*)^T with Ktilde^T lambda = grad_P,
    the derivative of y* applied to `grad`, the loss's gradient at y^L. For L -> inf, where y^L = y*, this is the
    certified limit, that of `Implicit`. The estimate approaches the error from below and does not certify the masks.
    `differentiate(..., bound=True)` returns a bound as well, which does both. It needs the smallest singular value of
    each Ktilde, for more than the cost of the linear solves by which `Implicit` is exact, so that training uses the
    estimate.

    Attributes:
        tolerance: > 0.
        max_iterations: the most iterations of a frame beyond L, >= 1, rounded up to a multiple of 50. Frames that have
            not stopped by then contribute their current sums; `differentiate` returns their estimated errors.

    Raises:
        InputError: for settings out of range, and for a `primal_mask` other than "active_set", which has no limit.

    Examples:
        >>> import pdunroll, torch
        >>> operator, x = torch.eye(2, requires_grad=True), torch.tensor([[0.5, 0.1]])
        >>> backprop = pdunroll.Piggyback(tolerance=1e-5)
        >>> y = pdunroll.unroll(operator, x, radius=0.2, iterations=100, backprop=backprop)
        >>> y.sum().backward()
        >>> operator.grad.allclose(torch.tensor([[0.0, 0.0], [-0.3, 0.0]]), atol=1e-5)
        True
    """

    tolerance: float = 1e-3
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("tolerance", self.tolerance)
        require_integer("max_iterations", self.max_iterations, 1)
        if self.primal_mask != "active_set":
            raise InputError(f"Piggyback needs primal_mask=active_set, got {self.primal_mask!r}: others have no limit")

    def forward(self, engine: Engine, K: Tensor, x: Observation, iterations: int) -> tuple[Tensor, tuple[Any, ...]]:
        """Return y^L, (B, n), and x or its box, psi^L, y^L and ybar^L, from which the iteration continues."""
        last = engine.iterate(K, x, iterations)
        return last.primal, (x, last.dual, last.primal, last.extrapolated)

    def gradient(self, engine: Engine, K: Tensor, kept: tuple[Any, ...], iterations: int, grad: Tensor) -> Tensor:
        """Return the gradient, (m, n)."""
        return self.differentiate(engine, K, kept, grad).gradient

    def differentiate(
        self, engine: Engine, K: Tensor, kept: tuple[Any, ...], grad: Tensor, *, bound: bool = False
    ) -> Derivative:
        """Return the gradient, and for each frame the estimated error and the iterations taken.

        Args:
            engine: that of `forward`.
            K: the operator, (m, n).
            kept: what `forward` has kept.
            grad: grad_y of the loss at y^L, (B, n).
            bound: whether to return a bound of the error of each frame, too; see `error_bound`.
        """
        algorithm, B = engine.algorithm, len(grad)
        gradient = torch.zeros_like(K, memory_format=torch.contiguous_format)
        bounds = grad.new_zeros(B, dtype=torch.float64) if bound else None
        found = Derivative(gradient, grad.new_zeros(B), torch.zeros(B, dtype=torch.int64, device=grad.device), bounds)
        box = algorithm.problem.box(kept[0])
        state = _State.of(box, kept, grad).select(~algorithm.problem.trivial(box))
        for count in range(BLOCK, self.max_iterations + BLOCK, BLOCK):
            if not len(state.frames):
                break
            state, error = update(engine, K, self.mask(engine), state)
            gap = algorithm.problem.duality_gap(K, state.box, state.iterate.primal, state.iterate.dual)
            finished = (gap <= self.tolerance) & (error <= self.tolerance)
            if count >= self.max_iterations:
                finished = torch.ones_like(finished)
            found.error[state.frames[finished]] = error[finished].to(grad.dtype)
            found.iterations[state.frames[finished]] = count
            stopped, state = state.select(finished), state.select(~finished)
            sums = stopped.sums
            add_gradient(engine, gradient, sums.dual, stopped.iterate.primal, stopped.iterate.dual, sums.primal)
            if bounds is not None and len(stopped.frames):
                bounds[stopped.frames] = error_bound(algorithm, K, stopped)
        return found


class _State(NamedTuple):
    """The frames that have not stopped."""

    frames: Tensor  # their numbers  (B,)
    box: Box  # (B, n)
    grad: Tensor  # grad_y of the loss at y^L  (B, n)
    iterate: Iterate
    masks: Masks  # at the last check
    sums: Adjoint  # S_P, S_D and Sbar_D

    @staticmethod
    def of(box: Box, kept: tuple[Any, ...], grad: Tensor) -> _State:
        _, dual, primal, extrapolated = kept
        none = Masks(torch.zeros_like(dual, dtype=torch.bool), torch.zeros_like(primal, dtype=torch.bool))
        sums = Adjoint(torch.zeros_like(primal), torch.zeros_like(dual), torch.zeros_like(dual))
        iterate = Iterate(dual, dual, primal, primal, extrapolated)
        return _State(torch.arange(len(grad), device=grad.device), box, grad, iterate, none, sums)

    def select(self, keep: Tensor) -> _State:
        frames, box, grad, iterate, masks, sums = self
        return _State(
            frames[keep], box[keep], grad[keep], Iterate(*(part[keep] for part in iterate)),
            Masks(*(part[keep] for part in masks)), Adjoint(*(part[keep] for part in sums)),
        )  # fmt: skip


def update(engine: Engine, K: Tensor, mask: MaskOf, state: _State) -> tuple[_State, Tensor]:
    """Return the state after a block of iterations, and the estimated relative error of each frame, (B,).

    Changes of S_P, S_D and Sbar_D are differences of two steps with the same masks and the same grad_y loss, so that
    Algorithm 2 itself carries them on: after the first step a block is the same as one of `Truncated`.
    """
    algorithm = engine.algorithm
    iterate = engine.iterate(K, state.box, BLOCK, state.iterate)
    masks = algorithm.masks(iterate, state.box, mask)
    after = algorithm.adjoint_step(K, masks, state.sums._replace(primal=state.sums.primal + state.grad))
    first = Adjoint(*(new - old for new, old in zip(after, state.sums, strict=True)))
    sum_primal, sum_dual = after.primal.clone(), after.dual.clone()
    last = engine.backward_sums(K, masks, BLOCK - 1, first, (sum_primal, sum_dual))
    sums = Adjoint(sum_primal, sum_dual, sum_dual + algorithm.theta * last.dual)
    error = torch.where(masks.equal(state.masks), error_estimate(algorithm, K, masks, first, last, sum_dual), torch.inf)
    return state._replace(iterate=iterate, masks=masks, sums=sums), error


def error_estimate(
    algorithm: ChambollePock, K: Tensor, masks: Masks, first: Adjoint, last: Adjoint, sum_dual: Tensor
) -> Tensor:
    """Return the estimated error of S_D relative to its norm, (B,), from the first and last change of a block.

    In the norm of `energy`, the iteration is (I + N)^{-1} with N skew-adjoint, for theta = 1. Therefore the square of
    the error is the sum of the squares of all changes still to come, and the ratio of two successive ones only rises,
    to kappa^2 = 1 - sigma tau s^2 with the smallest singular value s > 0 of Ktilde. With the ratio kappa^2 seen in this
    block the sum is ||last||^2 / (1 - kappa^2), which approaches the square of the error from below.

    Args:
        algorithm: Chambolle-Pock with its step sizes.
        K: the operator, (m, n).
        masks: those of the block.
        first: the first change.
        last: the change BLOCK - 1 iterations later.
        sum_dual: S_D, (B, m).
    """
    before, now = energy(algorithm, K, masks, first), energy(algorithm, K, masks, last)
    decay = -torch.expm1((now.log() - before.log()) / (BLOCK - 1))  # 1 - kappa^2
    square = torch.where(decay > 0, now / decay, torch.inf)
    square = torch.where(now > 0, square, 0.0)
    return (square / (algorithm.sigma * sum_dual.double().square().sum(dim=1))).sqrt().nan_to_num(0.0, posinf=torch.inf)


def error_bound(algorithm: ChambollePock, K: Tensor, state: _State) -> Tensor:
    """Return a bound of the error of each frame's part of the gradient in the Frobenius norm, (B,) in float64.

    Let a frame's masks be those of its optimum, a vertex (y*, psi*), and s the smallest singular value of Ktilde. The
    limit multiplier sigma S_D* is supported on the free rows and has sigma Ktilde^T S_D* = -grad_P. Therefore

        ||sigma S_D - sigma S_D*|| <= e = ||grad_P + sigma Ktilde^T S_D|| / s,
        ||sigma S_D y^T - tau psi S_P^T - sigma S_D* (y*)^T||_F
            <= e ||y|| + (||sigma S_D|| + e) ||y - y*|| + tau ||psi|| ||S_P||.

    The masks are certified by their vertex: it is the optimum if it has no duality gap (at most 1e-10 in float64) and
    its entries are strictly inside their bounds exactly where the masks say so. Otherwise the bound is infinite.
    Everything is computed in float64, so that the bound holds up to its rounding.

    Args:
        algorithm: Chambolle-Pock with its step sizes.
        K: the operator, (m, n).
        state: the frames, at a check.
    """
    problem, K, box = algorithm.problem, K.double(), state.box.to(torch.float64)
    at_bounds = problem.prox_primal(state.iterate.z_primal.double(), box)  # in float64, not those of float32
    vertex_primal, vertex_dual, exists = polish(problem, K, box, state.masks, at_bounds, state.iterate.dual.double())
    same = problem.interior_masks(vertex_primal, vertex_dual, box).equal(state.masks)
    optimal = exists & same & (problem.duality_gap(K, box, vertex_primal, vertex_dual) <= OPTIMAL)
    bound = torch.full_like(state.grad[:, 0], torch.inf, dtype=torch.float64)

    certified = state.select(optimal)
    primal, dual = certified.iterate.primal.double(), certified.iterate.dual.double()
    sum_primal, multiplier = certified.sums.primal.double(), algorithm.sigma * certified.sums.dual.double()
    residual = (certified.grad + multiplier @ K).masked_fill(~certified.masks.primal, 0.0).norm(dim=1)
    ktilde = reduced_operator(K, certified.masks).matrix
    error = residual / torch.linalg.svdvals(ktilde)[:, -1] if ktilde.shape[1] else residual
    apart = (primal - vertex_primal[optimal]).norm(dim=1)
    by_multiplier = error * primal.norm(dim=1) + (multiplier.norm(dim=1) + error) * apart
    bound[optimal] = by_multiplier + algorithm.tau * dual.norm(dim=1) * sum_primal.norm(dim=1)
    return bound


def energy(algorithm: ChambollePock, K: Tensor, masks: Masks, change: Adjoint) -> Tensor:
    """Return the square of the norm, (B,) in float64, in which Algorithm 2 with these masks is nonexpansive.

    sigma ||delta_D||^2 + tau ||delta_P||^2 - 2 sigma tau <K delta_P, delta_D>    with delta_P of the iteration after
    """
    sigma, tau = algorithm.sigma, algorithm.tau
    primal = masks.primal * (change.primal + sigma * change.dual_bar @ K)
    cross = (primal @ K.T).double() * change.dual
    squares = sigma * change.dual.double().square().sum(dim=1) + tau * primal.double().square().sum(dim=1)
    return (squares - 2.0 * sigma * tau * cross.sum(dim=1)).clamp(min=0.0)
