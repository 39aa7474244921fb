"""Chambolle-Pock on a GPU, where launching kernels takes longer than they do: stretches of the loops as CUDA graphs.

A graph repeats what was captured, at the same places in memory and with the same numbers, but for what its inputs hold.
Untested on CUDA; on CPUs the tests replay recorded operations instead.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from pdunroll.chambolle_pock import Adjoint, ChambollePock, Iterate, Jacobians, State
from pdunroll.errors import InputError
from pdunroll.problem import Jacobian

STRETCH = 50  # iterations in one graph

Tensors = tuple[Tensor, ...]


def captured(function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensors]:
    """What computes function(*inputs) once more as a CUDA graph, and the tensors it leaves the results in.

    Untested on CUDA.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*inputs)  # libraries set themselves up outside of the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = tuple(function(*inputs))
    return graph.replay, outputs


GRAPHS = 32  # kept, those that were used last; each holds the memory of what it computes
_graphs: OrderedDict[Hashable, tuple[Tensors, Callable[[], None], Tensors]] = OrderedDict()


def replayed(key: Hashable, function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> Tensors:
    """function(*inputs) by a graph that was captured when `key`, shapes, dtype and device were met first.

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
    _copy(inputs, places)
    replay()
    return tuple(tensor.clone() for tensor in outputs)


class GraphedChambollePock(ChambollePock):
    """The same on a GPU, where launching a kernel takes longer than the kernel: stretches of the loops as CUDA graphs.

    A graph holds its step sizes, but K changes from step to step of a training, and sigma and tau with its norm. So
    what is captured is the same iteration for K / f and the step sizes f sigma and f tau, with the f that makes their
    product 1: they depend on `step_ratio` only. Untested on CUDA.
    """

    def _unit(self, operator: Tensor) -> tuple[ChambollePock, Tensor]:
        """The algorithm of the graphs, and its operator."""
        ratio = float(f"{(self.sigma / self.tau) ** 0.5:.12g}")  # without the rounding of a norm
        unit = ChambollePock(self.problem, ratio, 1.0 / ratio, self.theta, self.library)
        return unit, operator * (self.sigma / ratio)

    def iterate(self, operator, observation, number, state=None):
        unit, scaled = self._unit(operator)
        state = self.start(operator, observation) if state is None else state
        for count in _stretches(number):

            def stretch(operator: Tensor, observation: Tensor, *state: Tensor, count: int = count) -> Tensors:
                return unit.iterate(operator, observation, count, State(*state))

            iterate = Iterate(*replayed(("iterate", unit, count), stretch, (scaled, observation, *state)))
            state = iterate.state
        return iterate

    def record(self, operator, observation, state, z_dual, z_primal):
        unit, scaled = self._unit(operator)
        for z in zip(z_dual.split(STRETCH), z_primal.split(STRETCH), strict=True):

            def stretch(operator: Tensor, observation: Tensor, *state: Tensor, z: Tensors = z) -> Tensors:
                recorded = tuple(map(torch.empty_like, z))
                return *recorded, *unit.record(operator, observation, State(*state), *recorded)

            found = replayed(("record", unit, len(z[0])), stretch, (scaled, observation, *state))
            _copy(found[:2], z)
            state = State(*found[2:])
        return state

    def adjoint_blocks(self, operator, grad):
        unit, scaled = self._unit(operator)
        adjoint = Adjoint(*(part.clone() for part in self.adjoint_start(operator, grad)))

        def block(jacobians: Jacobians, delta_primal: Tensor, delta_dual_bar: Tensor) -> Adjoint:
            arguments, bounds = zip(*jacobians, strict=True)

            def stretch(operator: Tensor, *inputs: Tensor) -> Tensors:
                jacobians, adjoint = Jacobians(*map(Jacobian, inputs[:2], bounds)), Adjoint(*inputs[2:])
                dual_bar, primal = map(torch.empty_like, inputs[:2])
                duals = torch.empty_like(adjoint.dual), torch.empty_like(adjoint.dual)
                products = unit._backward_products(operator, adjoint)
                return primal, dual_bar, *unit._adjoint_block(products, duals, adjoint, jacobians, primal, dual_bar)

            found = replayed(("block", unit, *bounds), stretch, (scaled, *arguments, *adjoint))
            _copy(found, (delta_primal, delta_dual_bar, *adjoint))
            return adjoint

        return block

    def adjoint_sums(self, operator, jacobians, number, start, sums):
        unit, scaled = self._unit(operator)
        arguments, bounds = zip(*jacobians, strict=True)
        for count in _stretches(number):

            def stretch(operator: Tensor, *inputs: Tensor, count: int = count) -> Tensors:
                jacobians, adjoint = Jacobians(*map(Jacobian, inputs[:2], bounds)), Adjoint(*inputs[2:5])
                return *unit.adjoint_sums(operator, jacobians, count, adjoint, inputs[5:]), *inputs[5:]

            found = replayed(("sums", unit, count, *bounds), stretch, (scaled, *arguments, *start, *sums))
            start = Adjoint(*found[:3])
            _copy(found[3:], sums)
        return start


def graphed(algorithm: ChambollePock) -> GraphedChambollePock:
    """The same algorithm by graphs."""
    return GraphedChambollePock(algorithm.problem, algorithm.sigma, algorithm.tau, algorithm.theta, algorithm.library)


def suited(algorithm: ChambollePock, device: torch.device) -> ChambollePock:
    """By graphs on a GPU, unless the environment variable PDUNROLL_GRAPHS is off."""
    wanted = os.environ.get("PDUNROLL_GRAPHS", "on")
    if wanted not in ("on", "off"):
        raise InputError(f"the environment variable PDUNROLL_GRAPHS must be on or off, got {wanted!r}")
    return graphed(algorithm) if device.type == "cuda" and wanted == "on" else algorithm


def _copy(tensors: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for tensor, place in zip(tensors, places, strict=True):
        place.copy_(tensor)


def _stretches(number: int) -> Iterator[int]:
    """Numbers of iterations with the sum `number`: STRETCH and the rest."""
    yield from repeat(STRETCH, number // STRETCH)
    if rest := number % STRETCH:
        yield rest
