"""GPUs: the blocks of iterations captured once as CUDA graphs and replayed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import ChambollePock
from pdunroll.core.engine import Engine


class GraphedEngine(Engine):
    """CUDA: each loop is captured as a graph at its first call and replayed at the others. Untested on CUDA.

    A graph holds its step sizes, but K changes from step to step of a training, and sigma and tau with its norm. So
    what is captured is the same iteration for K / f and the step sizes f sigma and f tau, with the f that makes their
    product 1: they depend on `step_ratio` only.
    """

    name = "cuda graphs"

    def _call(self, loop: Callable[..., tuple[Tensor, ...]], fixed: Hashable, *tensors: Tensor) -> tuple[Tensor, ...]:
        K, *others = tensors
        algorithm = self.algorithm
        ratio = float(f"{(algorithm.sigma / algorithm.tau) ** 0.5:.12g}")  # without the rounding of a norm
        unit = ChambollePock(algorithm.problem, ratio, 1.0 / ratio, algorithm.theta)
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


GRAPHS = 32  # kept, those that were used last; each holds the memory of what it computes
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
