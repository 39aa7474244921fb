"""Algorithm 1 in closed form, once the masks of a frame have settled for good at a vertex.

Let Ktilde = U diag(s) V^T be the free rows and columns of K, y* and psi* the vertex. In the coordinates
a = V^T (y - y*), b = U^T (psi - psi*) of the free entries the iteration (theta = 1) splits into one recursion a mode,

    b^{l+1} = b^l + sigma s (2 a^l - a^{l-1}),    a^{l+1} = a^l - tau s b^{l+1},

hence, with q = sigma tau s^2 and 0 < q < 1,

    a^{l+k} = (1 - q)^{k/2} (alpha cos k phi + beta sin k phi),    cos phi = (1 - q)^{1/2}:

a damped oscillation, of rate (1 - sigma tau s_min^2)^{1/2} at worst. That the masks stay follows from the energy

    E = (a^{l-1})^2 / tau + (b^l)^2 / sigma - 2 s a^{l-1} b^l

of each mode, which does not grow (Chambolle-Pock is nonexpansive in this norm): it bounds how far any entry can still
get from its value at the vertex. Where that is less than its distance to the border of its mask, the mask is settled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock, Masks


class Vertex(NamedTuple):
    """A vertex that is optimal for one frame, and how far its entries are from changing their masks."""

    rows: Tensor  # free rows of K, numbers
    columns: Tensor  # free columns
    left: Tensor  # U
    values: Tensor  # s, descending
    right: Tensor  # V
    primal: Tensor  # y*    (n,)
    dual: Tensor  # psi*  (m,)
    slack_dual: Tensor  # distance to the border: of free psi, then of fixed y, which psi holds
    reach_dual: Tensor  # (entries of slack_dual, modes): how far a unit of each b moves them
    slack_primal: Tensor  # of free y, then of fixed psi, which y holds
    reach_primal: Tensor  # (entries of slack_primal, modes): how far a unit of each a moves them


def vertex(
    algorithm: ChambollePock, operator: Tensor, observation: Tensor, free: Masks, primal: Tensor, dual: Tensor
) -> Vertex | None:
    """The vertex of one frame's masks, if there is one and it is the optimum, strictly inside its masks.

    operator (m, n), observation (n,), the free entries as boolean masks; primal and dual of the current iterate give
    the values of the fixed entries. All in float64.
    """
    rows, columns = free.dual.nonzero()[:, 0], free.primal.nonzero()[:, 0]
    if len(rows) != len(columns) or len(rows) == 0:
        return None
    left, values, right = torch.linalg.svd(operator[rows][:, columns])
    if values[-1] <= 1e-10 * values[0]:
        return None
    primal, dual = primal.masked_fill(free.primal, 0.0), dual.masked_fill(free.dual, 0.0)
    primal[columns] = -right.T @ ((left.T @ (operator[rows] @ primal)) / values)
    dual[rows] = -left @ ((right @ (operator[:, columns].T @ dual)) / values)
    fixed_dual, fixed_primal = ~free.dual, ~free.primal
    radius = algorithm.problem.radius
    towards_border = -(dual @ operator * (primal - observation).sign())[fixed_primal]  # what K^T psi does to fixed y
    slack_dual = torch.cat([1.0 - dual[rows].abs(), towards_border])
    same_sign = (operator @ primal * dual.sign())[fixed_dual]  # of K y and fixed psi
    slack_primal = torch.cat([radius - (primal - observation)[columns].abs(), same_sign])
    if slack_dual.min() <= 0.0 or slack_primal.min() <= 0.0:
        return None
    reach_dual = torch.cat([left, operator[rows][:, fixed_primal].T @ left]).abs()
    ybar = 3.0 * operator[fixed_dual][:, columns] @ right.T  # |2 a^l - a^{l-1}| is at most three times the bound of a
    reach_primal = torch.cat([right.T, ybar]).abs()
    return Vertex(
        rows, columns, left, values, right.T, primal, dual, slack_dual, reach_dual, slack_primal, reach_primal
    )


def stays(algorithm: ChambollePock, at: Vertex, previous: Tensor, primal: Tensor, dual: Tensor) -> bool:
    """Whether no mask of a frame can change any more, given y^{l-1} (n,), y^l (n,) and psi^l (m,)."""
    for latest in (previous, primal):
        moved = latest - at.primal
        moved[at.columns] = 0.0
        if moved.any():
            return False
    sigma, tau, s = algorithm.sigma, algorithm.tau, at.values
    a = at.right.T @ (previous - at.primal)[at.columns]
    b = at.left.T @ (dual - at.dual)[at.rows]
    energy = (a.square() / tau + b.square() / sigma - 2.0 * s * a * b).clamp(min=0.0) / (1.0 - s * (sigma * tau) ** 0.5)
    inside_dual = at.reach_dual @ (sigma * energy).sqrt() < at.slack_dual
    inside_primal = at.reach_primal @ (tau * energy).sqrt() < at.slack_primal
    return bool(inside_dual.all() and inside_primal.all())


def later(
    algorithm: ChambollePock, at: Vertex, previous: Tensor, primal: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """y^{l+k} and psi^{l+k} for each k >= 1 of `steps` (k,): (k, n) and (k, m)."""
    q = algorithm.sigma * algorithm.tau * at.values.square()
    rate, phi = (1.0 - q).sqrt(), q.sqrt().arcsin()
    before, now = (at.right.T @ (y - at.primal)[at.columns] for y in (previous, primal))
    beta = (now / rate - before * phi.cos()) / phi.sin()  # k counts from y^{l-1} here

    def a(k: Tensor) -> Tensor:
        k = k[:, None].to(q.dtype)
        return rate**k * (before * (k * phi).cos() + beta * (k * phi).sin())

    latest, earlier = a(steps + 1), a(steps)
    y = at.primal.repeat(len(steps), 1)
    y[:, at.columns] += latest @ at.right.T
    psi = at.dual.repeat(len(steps), 1)
    psi[:, at.rows] -= ((latest - earlier) / (algorithm.tau * at.values)) @ at.left.T
    return y, psi
