"""Measurements of the paper's theorems on one operator and a batch of nontrivial frames, in float64.

Most functions return rows of tidy tables, which `pdunroll theory` writes for the DCT and the trained operators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, Iterate
from pdunroll.core.dispatch import engine_for
from pdunroll.core.gradients import Full
from pdunroll.core.implicit import multipliers
from pdunroll.core.problem import PRIMAL_MASKS, Masks, Observation
from pdunroll.core.solve import Solution, solve
from pdunroll.core.truncated import Truncated

Row = dict[str, Any]


class Limit(NamedTuple):
    """The exact optimum of each frame and the limit gradient of half the squared error there."""

    solution: Solution
    masks: Masks  # of the free entries
    vertex: Tensor  # which frames are vertices; the others are degenerate  (B,)
    multiplier: Tensor  # lambda, (B, m): the limit gradient is -sum lambda y*^T over the frames


def limit(algorithm: ChambollePock, operator: Tensor, truth: Tensor, observation: Observation) -> Limit:
    """Return the optimum of each frame, to a relative gap of 1e-9, and the limit gradient there.

    Args:
        algorithm: Chambolle-Pock with the problem; the limit does not depend on its step sizes.
        operator: K, (m, n).
        truth: y, (B, n).
        observation: x, (B, n).
    """
    problem = algorithm.problem
    found = solve(operator, problem.box(observation), tolerance=1e-9, max_iterations=200_000)
    masks = problem.interior_masks(found.primal, found.dual, observation)
    multiplier, vertex = multipliers(operator, masks, found.primal - truth)
    return Limit(found, masks, vertex, multiplier)


def compare(name: str, gradient: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the relative error and the cosine of a gradient to a reference, as `<name>_error` and `<name>_cosine`.

    They are NaN where a norm is 0.
    """
    dot = float((gradient * reference).sum())
    norms = float(gradient.norm()) or math.nan, float(reference.norm()) or math.nan
    return {
        f"{name}_error": float((gradient - reference).norm()) / norms[1],
        f"{name}_cosine": dot / (norms[0] * norms[1]),
    }


def fidelity(
    algorithm: ChambollePock, operator: Tensor, truth: Tensor, observation: Observation,
    depths: Sequence[int], backward: Sequence[int], truncated_at: Sequence[int],
) -> list[Row]:  # fmt: skip
    """Compare gradients of half the squared error with the limit: Full over L, Truncated over b.

    Args:
        algorithm: Chambolle-Pock with the problem and its step sizes.
        operator: K, (m, n).
        truth: y, (B, n), of vertices, where the limit is exact.
        observation: x, (B, n).
        depths: the numbers of iterations L.
        backward: the numbers of backward iterations b.
        truncated_at: those of `depths` where Truncated is compared, too.

    Returns:
        One row for each gradient: `limit_error` and `limit_cosine` to the limit, `full_error` and `full_cosine` to Full
        at the same L with the same mask.
    """
    optimum = limit(algorithm, operator, truth, observation)
    reference = -(optimum.multiplier.T @ optimum.solution.primal)
    engine = engine_for(algorithm, operator)
    rows: list[Row] = []
    for depth in depths:
        for mask in PRIMAL_MASKS:
            strategy = Full(primal_mask=mask, checkpoint_every=max(1, round(depth**0.5)))
            primal, kept = strategy.forward(engine, operator, observation, depth)
            grad = primal - truth
            full = strategy.gradient(engine, operator, kept, depth, grad)
            row = {"backprop": "full", "primal_mask": mask, "l": depth, "b": None}
            rows.append({**row, **compare("limit", full, reference), "full_error": None, "full_cosine": None})
            if depth not in truncated_at:
                continue
            truncated = Truncated(primal_mask=mask)
            kept = truncated.forward(engine, operator, observation, depth)[1]
            counts = sorted(set(backward))
            gradients = truncated.gradients(engine, operator, kept, counts, grad)
            for b, gradient in zip(counts, gradients, strict=True):
                row = {"backprop": "truncated", "primal_mask": mask, "l": depth, "b": b}
                rows.append({**row, **compare("limit", gradient, reference), **compare("full", gradient, full)})
    return rows


def settling(
    algorithm: ChambollePock, operator: Tensor, observation: Observation, iterations: int
) -> tuple[Tensor, Iterate]:
    """Return the iteration after which each frame's masks changed no more, (B,), and the last iterate.

    Args:
        algorithm: Chambolle-Pock with the problem and its step sizes.
        operator: K, (m, n).
        observation: x, (B, n).
        iterations: how many are run, >= 1.
    """
    since = torch.zeros(len(observation), dtype=torch.int64)
    iterate, previous = algorithm.start(operator, observation), None
    for l, iterate in enumerate(islice(algorithm.iterates(operator, observation), iterations), start=1):
        masks = torch.cat(algorithm.problem.free_masks(iterate.z_dual, iterate.z_primal, observation), dim=1)
        if previous is not None:
            since[(masks != previous).any(dim=1)] = l
        previous = masks
    return since, iterate


class Kernels(NamedTuple):
    """The kernels of one frame's Ktilde."""

    primal: Tensor  # an orthonormal basis of ker(Ktilde) in the free columns  (n, .)
    dual: Tensor  # an orthonormal basis of ker(Ktilde^T) in the free rows  (m, .)
    smallest: float  # the smallest singular value of Ktilde that is not 0, or 0 if there is none

    def distance(self, delta_primal: Tensor, delta_dual: Tensor) -> Tensor:
        """Return the distance of (delta_P, delta_D) to both kernels."""
        primal = delta_primal - self.primal @ (self.primal.T @ delta_primal)
        return torch.cat([primal, delta_dual - self.dual @ (self.dual.T @ delta_dual)]).norm()


def kernels_of(operator: Tensor, masks: Masks) -> Kernels:
    """Return the kernels of one frame's Ktilde, for K (m, n) and masks (m,) and (n,)."""
    rows, columns = masks.dual.nonzero()[:, 0], masks.primal.nonzero()[:, 0]
    left, values, right = torch.linalg.svd(operator[rows][:, columns], full_matrices=True)
    rank = int((values > 1e-10 * values.max()).sum()) if len(values) else 0
    primal = operator.new_zeros(operator.shape[1], len(columns) - rank)
    dual = operator.new_zeros(operator.shape[0], len(rows) - rank)
    primal[columns] = right[rank:].T
    dual[rows] = left[:, rank:]
    return Kernels(primal, dual, float(values[rank - 1]) if rank else 0.0)


def decay(
    algorithm: ChambollePock,
    operator: Tensor,
    truth: Tensor,
    observation: Observation,
    iterate: Iterate,
    grid: Sequence[int],
) -> tuple[list[Row], list[Row]]:
    """Measure Algorithm 2 with the masks of `iterate`, counted backwards.

    Args:
        algorithm: Chambolle-Pock with the problem and its step sizes.
        operator: K, (m, n).
        truth: y, (B, n).
        observation: x, (B, n).
        iterate: where the masks are frozen.
        grid: the counts of backward iterations to report.

    Returns:
        Rows of norms along the grid (see `backward_norms`), as medians and 10th and 90th percentiles over the frames,
        and one row for each frame with the fit of its decay (see `fit_decay`).
    """
    norms: list[Row] = []
    fits: list[Row] = []
    for name, mask in PRIMAL_MASKS.items():
        masks = algorithm.masks(iterate, observation, mask)
        kernels = [kernels_of(operator, Masks(d, p)) for d, p in zip(*masks, strict=True)]
        history = list(backward_norms(algorithm, operator, masks, kernels, iterate.primal - truth, grid))
        for count, values in history:
            for quantity, value in values.items():
                low, middle, high = np.quantile(value.numpy(), [0.1, 0.5, 0.9])
                norms.append({
                    "primal_mask": name, "count": count, "quantity": quantity,
                    "median": middle, "p10": low, "p90": high,
                })  # fmt: skip
        counts = np.asarray([count for count, _ in history], dtype=float)
        sizes = torch.stack(
            [torch.hypot(values["delta_primal"], values["delta_dual"]) for _, values in history]
        ).numpy()
        for frame, kernel in enumerate(kernels):
            fit = fit_decay(algorithm, counts, sizes[:, frame], kernel)
            fits.append({"primal_mask": name, "frame": frame, **fit})
    return norms, fits


def backward_norms(
    algorithm: ChambollePock, operator: Tensor, masks: Masks, kernels: list[Kernels], grad: Tensor, grid: Sequence[int]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield each count of the grid with norms of the backward recursion of each frame, (B,).

    The norms are those of delta_P and delta_D, of Ktilde delta_P and Ktilde^T delta_D (which the kernel theorem sends
    to 0), of the distance of (delta_P, delta_D) to the kernels, and of the sums of delta_P and delta_D so far.
    """
    adjoint = algorithm.adjoint_start(operator, grad)
    sum_primal, sum_dual = torch.zeros_like(adjoint.primal), torch.zeros_like(adjoint.dual)
    wanted = set(grid)
    for count in range(1, max(grid) + 1):
        delta_primal, delta_dual, _ = adjoint = algorithm.adjoint_step(operator, masks, adjoint)
        sum_primal += delta_primal
        sum_dual += delta_dual
        if count in wanted:
            distances = [k.distance(p, d) for k, p, d in zip(kernels, delta_primal, delta_dual, strict=True)]
            yield (
                count,
                {
                    "delta_primal": delta_primal.norm(dim=1),
                    "delta_dual": delta_dual.norm(dim=1),
                    "k_delta_primal": ((delta_primal @ operator.T) * masks.dual).norm(dim=1),
                    "kt_delta_dual": ((delta_dual @ operator) * masks.primal).norm(dim=1),
                    "kernel_distance": torch.stack(distances),
                    "sum_delta_primal": sum_primal.norm(dim=1),
                    "sum_delta_dual": sum_dual.norm(dim=1),
                },
            )


def fit_decay(algorithm: ChambollePock, counts: NDArray, sizes: NDArray, kernels: Kernels) -> Row:
    """Return the fit of c kappa^count to a frame's norms of (delta_P, delta_D), over the second half of the counts.

    `holds` says whether the assumption of the limit theorem is taken to hold: kappa < 1, and the norm has fallen below
    1e-3 of its first value. `kappa_exact` is the factor of each iteration in the end, (1 - sigma tau s^2)^{1/2} with
    the smallest singular value s > 0 of Ktilde, for theta = 1: the backward recursion is the transpose of the iteration
    that `core.closed_form` solves.

    Args:
        algorithm: Chambolle-Pock with its step sizes.
        counts: counts of backward iterations, ascending.
        sizes: the norm after each.
        kernels: those of the frame.
    """
    half = slice(np.searchsorted(counts, counts[-1] / 2), None)
    slope, level = np.polyfit(counts[half], np.log(sizes[half] + 1e-300), 1)
    fell_to = float(sizes[-1] / sizes[0]) if sizes[0] > 0 else 0.0
    q = algorithm.sigma * algorithm.tau * kernels.smallest**2
    return {
        "kappa": float(np.exp(slope)), "log_c": float(level), "kappa_exact": (1.0 - q) ** 0.5,
        "kernel_primal": kernels.primal.shape[1], "kernel_dual": kernels.dual.shape[1],
        "fell_to": fell_to, "holds": int(slope < 0 and fell_to < 1e-3),
    }  # fmt: skip
