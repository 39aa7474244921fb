"""Measurements of the paper's theorems on one operator and a batch of nontrivial frames, in float64.

Each function returns rows of a tidy table. `theory.py` says for which operators and writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, Masks
from pdunroll.core.engine import engine_for
from pdunroll.core.gradients import Full, Truncated
from pdunroll.core.implicit import multipliers
from pdunroll.core.problem import PRIMAL_MASKS, dual_mask
from pdunroll.core.solve import Point, Solution, free, solve

Row = dict[str, Any]


class Limit(NamedTuple):
    """The exact optimum of each frame and the limit gradient of half the squared error there."""

    solution: Solution
    masks: Masks
    vertex: Tensor  # (B,) vertex frames; the others are degenerate
    multiplier: Tensor  # lambda (B, m): the limit gradient is -sum lambda y*^T over the frames


def limit(algorithm: ChambollePock, operator: Tensor, truth: Tensor, observation: Tensor) -> Limit:
    """Solve each frame to a relative gap of 1e-9 and take the limit gradient there."""
    found = solve(operator, observation, radius=algorithm.problem.radius, tolerance=1e-9, max_iterations=200_000)
    inside = 1 - 1e-9
    displacement = (found.primal - observation).abs()
    masks = Masks(found.dual.abs() < inside, displacement < inside * algorithm.problem.radius)
    multiplier, vertex = multipliers(operator, masks, found.primal - truth)
    return Limit(found, masks, vertex, multiplier)


def compare(name: str, gradient: Tensor, reference: Tensor) -> dict[str, float]:
    """Relative error and cosine of a gradient to another."""
    dot = float((gradient * reference).sum())
    norms = float(gradient.norm()), float(reference.norm())
    return {
        f"{name}_error": float((gradient - reference).norm()) / norms[1],
        f"{name}_cosine": dot / (norms[0] * norms[1]),
    }


def fidelity(
    algorithm: ChambollePock, operator: Tensor, truth: Tensor, observation: Tensor,
    depths: Sequence[int], backward: Sequence[int], truncated_at: Sequence[int],
) -> list[Row]:  # fmt: skip
    """Gradients of half the squared error against the limit: Full over L, Truncated over b, and Full against Truncated.

    The frames should be vertices, where the limit is exact. `limit_*` are error and cosine to the limit, `full_*` those
    to Full at the same L with the same mask.
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


def settling(algorithm: ChambollePock, operator: Tensor, observation: Tensor, iterations: int) -> tuple[Tensor, Point]:
    """The iteration after which each frame's masks change no more, (B,), as far as seen, and the last point."""
    since = torch.zeros(len(observation), dtype=torch.int64)
    previous = None
    for l, iterate in enumerate(islice(algorithm.iterates(operator, observation), iterations), start=1):
        masks = torch.cat(free(algorithm.problem, Point(*iterate[:4]), observation), dim=1)
        if previous is not None:
            since[(masks != previous).any(dim=1)] = l
        previous = masks
    return since, Point(*iterate[:4])


def decay(
    algorithm: ChambollePock, operator: Tensor, truth: Tensor, observation: Tensor, point: Point, grid: Sequence[int]
) -> tuple[list[Row], list[Row]]:
    """Algorithm 2 with the masks of `point`, counted backwards: norms along `grid`, and a fit for each frame.

    Norms (medians over the frames, and the 10th and 90th percentile): delta_P and delta_D, Ktilde delta_P and
    Ktilde^T delta_D (which the kernel theorem sends to 0), the distance of (delta_P, delta_D) to the kernels, and the
    sums of delta_P and delta_D so far. The fit is of c kappa^count to the norm of (delta_P, delta_D) over the second
    half of the counts; the assumption of the limit theorem is taken to hold where kappa < 1 and the norm has fallen
    below 1e-3 of its first value. `kappa_exact` is what it falls by in the end, (1 - sigma tau s^2)^{1/2} with the
    smallest singular value s > 0 of Ktilde and theta = 1 (`core.closed_form`; the backward recursion is its transpose).
    """
    norms: list[Row] = []
    fits: list[Row] = []
    for name, mask in PRIMAL_MASKS.items():
        masks = Masks(dual_mask(point.z_dual), mask(algorithm.problem.radius).of(point.z_primal, observation))
        kernels = [kernel(operator, Masks(d, p)) for d, p in zip(*masks, strict=True)]
        adjoint = algorithm.adjoint_start(operator, point.primal - truth)
        sum_primal, sum_dual = torch.zeros_like(point.primal), torch.zeros_like(point.dual)
        wanted = set(grid)
        history = []
        for count in range(1, max(grid) + 1):
            delta_primal, delta_dual, _ = adjoint = algorithm.adjoint_step(operator, masks, adjoint)
            sum_primal += delta_primal
            sum_dual += delta_dual
            if count not in wanted:
                continue
            within = torch.stack([
                torch.cat([p - right @ (right.T @ p), d - left @ (left.T @ d)]).norm()
                for p, d, (right, left, _) in zip(delta_primal, delta_dual, kernels, strict=True)
            ])  # fmt: skip
            values = {
                "delta_primal": delta_primal.norm(dim=1),
                "delta_dual": delta_dual.norm(dim=1),
                "k_delta_primal": ((delta_primal @ operator.T) * masks.dual).norm(dim=1),
                "kt_delta_dual": ((delta_dual @ operator) * masks.primal).norm(dim=1),
                "kernel_distance": within,
                "sum_delta_primal": sum_primal.norm(dim=1),
                "sum_delta_dual": sum_dual.norm(dim=1),
            }
            history.append(torch.hypot(values["delta_primal"], values["delta_dual"]))
            for quantity, value in values.items():
                low, middle, high = np.quantile(value.numpy(), [0.1, 0.5, 0.9])
                norms.append({
                    "primal_mask": name, "count": count, "quantity": quantity,
                    "median": middle, "p10": low, "p90": high,
                })  # fmt: skip
        size = torch.stack(history).numpy()  # (grid, B)
        counts = np.asarray(sorted(wanted), dtype=float)
        half = slice(np.searchsorted(counts, counts[-1] / 2), None)
        for frame in range(size.shape[1]):
            slope, level = np.polyfit(counts[half], np.log(size[half, frame] + 1e-300), 1)
            fell = float(size[-1, frame] / size[0, frame]) if size[0, frame] > 0 else 0.0
            q = algorithm.sigma * algorithm.tau * kernels[frame][2] ** 2
            fits.append({
                "primal_mask": name, "frame": frame, "kappa": float(np.exp(slope)), "log_c": float(level),
                "kappa_exact": (1.0 - q) ** 0.5,
                "kernel_primal": kernels[frame][0].shape[1], "kernel_dual": kernels[frame][1].shape[1],
                "fell_to": fell, "holds": int(slope < 0 and fell < 1e-3),
            })  # fmt: skip
    return norms, fits


def kernel(operator: Tensor, masks: Masks) -> tuple[Tensor, Tensor, float]:
    """Orthonormal bases of ker(Ktilde) in the free columns (n, .) and of ker(Ktilde^T) in the free rows (m, .).

    And the smallest singular value of Ktilde that is not 0 (0 if there is none).
    """
    rows, columns = masks.dual.nonzero()[:, 0], masks.primal.nonzero()[:, 0]
    left, values, right = torch.linalg.svd(operator[rows][:, columns], full_matrices=True)
    rank = int((values > 1e-10 * values.max()).sum()) if len(values) else 0
    primal = operator.new_zeros(operator.shape[1], len(columns) - rank)
    dual = operator.new_zeros(operator.shape[0], len(rows) - rank)
    primal[columns] = right[rank:].T
    dual[rows] = left[:, rank:]
    return primal, dual, float(values[rank - 1]) if rank else 0.0
