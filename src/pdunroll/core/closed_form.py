"""Algorithm 1 in closed form, once the masks of a frame are those of a vertex and change no more.

Let Ktilde = U diag(s) V^T be the free rows and columns of K, y* and psi* the vertex. In the coordinates
a = V^T (y - y*), b = U^T (psi - psi*) of the free entries the iteration (theta = 1) splits into one recursion a mode,

    b^{l+1} = b^l + sigma s (2 a^l - a^{l-1}),    a^{l+1} = a^l - tau s b^{l+1},

hence, with q = sigma tau s^2 and 0 < q < 1,

    a^{l+k} = (1 - q)^{k/2} (alpha cos k phi + beta sin k phi),    cos phi = (1 - q)^{1/2}:

a damped oscillation, of rate (1 - sigma tau s_min^2)^{1/2} at worst. The masks are final if the energy

    E = (a^{l-1})^2 / tau + (b^l)^2 / sigma - 2 s a^{l-1} b^l

of each mode is small enough. It does not grow, since Chambolle-Pock is nonexpansive in this norm, and bounds how far
any entry can still get from its value at the vertex. A mask is final where this bound is less than the distance of the
entry to the border of the mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock
from pdunroll.core.problem import Masks, Observation


class Vertex(NamedTuple):
    """A vertex that is optimal for one frame, and how far its entries are from changing their masks."""

    rows: Tensor  # numbers of the free rows of K
    columns: Tensor  # numbers of the free columns
    left: Tensor  # U
    values: Tensor  # s, descending
    right: Tensor  # V
    primal: Tensor  # y*    (n,)
    dual: Tensor  # psi*  (m,)
    slack_dual: Tensor  # distances to the border of a mask: of free psi, then of fixed y, which K^T psi holds there
    reach_dual: Tensor  # (entries of slack_dual, modes): how far a unit of each b moves them
    slack_primal: Tensor  # distances to the border: of free y, then of fixed psi, which K y holds there
    reach_primal: Tensor  # (entries of slack_primal, modes): how far a unit of each a moves them


def vertex(
    algorithm: ChambollePock, operator: Tensor, observation: Observation, free: Masks, primal: Tensor, dual: Tensor
) -> Vertex | None:
    """Return the vertex of one frame's masks if it exists and is the optimum, strictly inside its masks.

    Args:
        algorithm: Chambolle-Pock with the problem and its step sizes.
        operator: K, (m, n), in float64 as all others.
        observation: x, (n,), or a box of one frame.
        free: which entries of psi (m,) and y (n,) are free, as booleans.
        primal: y of the current iterate, (n,), which gives the values of the fixed entries.
        dual: psi of the current iterate, (m,), likewise.
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
    box = algorithm.problem.box(observation)
    offset = primal - box.centre
    towards_border = -(dual @ operator * offset.sign())[fixed_primal]  # what K^T psi does to fixed y
    slack_dual = torch.cat([1.0 - dual[rows].abs(), towards_border])
    same_sign = (operator @ primal * dual.sign())[fixed_dual]  # of K y and fixed psi
    slack_primal = torch.cat([(box.radius - offset.abs())[columns], same_sign])
    if slack_dual.min() <= 0.0 or slack_primal.min() <= 0.0:
        return None
    reach_dual = torch.cat([left, operator[rows][:, fixed_primal].T @ left]).abs()
    ybar = 3.0 * operator[fixed_dual][:, columns] @ right.T  # |2 a^l - a^{l-1}| is at most three times the bound of a
    reach_primal = torch.cat([right.T, ybar]).abs()
    return Vertex(
        rows, columns, left, values, right.T, primal, dual, slack_dual, reach_dual, slack_primal, reach_primal
    )


def masks_are_final(algorithm: ChambollePock, at: Vertex, previous: Tensor, primal: Tensor, dual: Tensor) -> bool:
    """Return whether no mask of a frame can change any more.

    Args:
        algorithm: Chambolle-Pock with theta = 1.
        at: the vertex of the frame's masks.
        previous: y^{l-1}, (n,).
        primal: y^l, (n,).
        dual: psi^l, (m,).
    """
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


def iterates_after(
    algorithm: ChambollePock, at: Vertex, previous: Tensor, primal: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the iterates y^{l+k}, (len(steps), n), and psi^{l+k}, (len(steps), m), if the masks are final.

    Args:
        algorithm: Chambolle-Pock with theta = 1.
        at: the vertex of the frame's masks.
        previous: y^{l-1}, (n,).
        primal: y^l, (n,).
        steps: the numbers k >= 1.
    """
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
