"""GPUs: blocks of iterations as two products and two fused kernels each, captured once as CUDA graphs and replayed.

A kernel is a function of this module that torch.compile makes into one (with Triton). On other devices the functions
run as they are, so that tests on a CPU compare them with the pure steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import Adjoint, ChambollePock, Iterate
from pdunroll.core.engine import Engine
from pdunroll.core.problem import Masks, Observation, PrimalMask


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an elementwise function of tensors that is one kernel on GPUs."""

    @cache
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    @wraps(function)
    def call(first: Tensor, *others: Any) -> Any:
        return (compiled() if first.is_cuda else function)(first, *others)

    return call


@fused
def _ascend(dual: Tensor, product: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    z = dual + sigma * product
    return z, z.clamp(-1.0, 1.0), z.abs() <= 1.0


@fused
def _descend(
    primal: Tensor, product: Tensor, lower: Tensor, upper: Tensor, tau: float, theta: float, mask: PrimalMask
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = primal - tau * product
    following = torch.clamp(z, lower, upper)
    return z, following, following + theta * (following - primal), mask.of(z)


@fused
def _adjoint_primal(primal: Tensor, product: Tensor, mask: Tensor, sigma: float) -> Tensor:
    return mask * (primal + sigma * product)


@fused
def _adjoint_dual(dual: Tensor, product: Tensor, mask: Tensor, tau: float, theta: float) -> tuple[Tensor, Tensor]:
    following = mask * (dual - tau * product)
    return following, following + theta * (following - dual)


class FusedChambollePock(ChambollePock):
    """Chambolle-Pock with the elementwise part of each half step in one kernel."""

    def step_with_masks(self, K: Tensor, x: Observation, s: Iterate, mask: PrimalMask) -> tuple[Iterate, Masks]:
        """Return the iterate after `s`, and the Jacobians' diagonals there."""
        box = self.problem.box(x)
        z_dual, dual, free_dual = _ascend(s.dual, s.extrapolated @ K.T, self.sigma)
        z_primal, primal, extrapolated, free_primal = _descend(
            s.primal, dual @ K, box.lower, box.upper, self.tau, self.theta, mask
        )
        return Iterate(z_dual, dual, z_primal, primal, extrapolated), Masks(free_dual, free_primal)

    def step(self, K: Tensor, x: Observation, s: Iterate) -> Iterate:
        """Return the iterate after `s`."""
        return self.step_with_masks(K, x, s, PrimalMask(s.primal, 0.0))[0]  # whose mask has no meaning

    def adjoint_step(self, K: Tensor, masks: Masks, d: Adjoint) -> Adjoint:
        """Return the adjoint of the iteration before `d`."""
        primal = _adjoint_primal(d.primal, d.dual_bar @ K, masks.primal, self.sigma)
        dual, dual_bar = _adjoint_dual(d.dual, primal @ K.T, masks.dual, self.tau, self.theta)
        return Adjoint(primal, dual, dual_bar)


class GraphedEngine(Engine):
    """CUDA: each loop is captured as a graph at its first call and replayed at the others.

    A graph holds its step sizes, but K changes from step to step of a training, and sigma and tau with its norm. So
    what is captured is the same iteration for K / f and the step sizes f sigma and f tau, with the f that makes their
    product 1: they depend on `step_ratio` only.
    """

    name = "cuda graphs"

    def _call(self, loop: Callable[..., tuple[Tensor, ...]], fixed: Hashable, *tensors: Tensor) -> tuple[Tensor, ...]:
        K, *others = tensors
        algorithm = self.algorithm
        ratio = float(f"{(algorithm.sigma / algorithm.tau) ** 0.5:.12g}")  # without the rounding of a norm
        unit = FusedChambollePock(algorithm.problem, ratio, 1.0 / ratio, algorithm.theta)
        return replayed((loop, unit, fixed), partial(loop, unit, fixed), (K * (algorithm.sigma / ratio), *others))


def captured(
    function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]
) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Return what computes function(*inputs) again as a CUDA graph, and the tensors that it leaves the results in."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*inputs)  # libraries set themselves up outside of the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = tuple(function(*inputs))
    return graph.replay, outputs


# Kept, those that were used last; each holds the memory of what it computes. An error curve uses one of each length up
# to SEGMENT again and again, and fewer would all be captured anew.
GRAPHS = 64
_graphs: OrderedDict[Hashable, tuple[tuple[Tensor, ...], Callable[[], None], tuple[Tensor, ...]]] = OrderedDict()


def replayed(
    key: Hashable, function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return function(*inputs) by a graph that was captured when `key`, shapes, dtypes and device were met first.

    Whatever else `function` depends on must be in `key`.
    """
    key = key, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
    if key not in _graphs:
        places = tuple(tensor.clone() for tensor in inputs)
        _graphs[key] = places, *captured(function, places)
        if len(_graphs) > GRAPHS:
            _graphs.popitem(last=False)
    _graphs.move_to_end(key)
    places, replay, outputs = _graphs[key]
    for place, tensor in zip(places, inputs, strict=True):
        place.copy_(tensor)
    replay()
    return tuple(tensor.clone() for tensor in outputs)
