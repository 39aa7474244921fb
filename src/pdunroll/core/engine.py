"""Blocks of iterations of Algorithms 1 and 2: everything that makes them fast, and nothing that defines them.

The definition is `ChambollePock.step` and `ChambollePock.adjoint_step`. An `Engine` runs blocks of them:

    Engine          the pure steps in a loop: any dtype and device, and the oracle of the other two
    CompiledEngine  float32 on CPUs: numba loops of one matrix product and one pass over the data each
    GraphedEngine   CUDA: the pure loops, captured once as CUDA graphs and replayed (untested on CUDA)

`engine_for` chooses. The compiled loops call a C function for their products, the first of these that is there:

    onednn  `dnnl_sgemm` of the package onednn-cpu-gomp (the extra `fast`)
    mkl     `sgemm_` of the MKL that torch's x86 builds contain

Without numba or either of them the pure steps run, slower. The environment variable PDUNROLL_PRODUCT takes the choice
away: onednn, mkl, or torch for the pure steps.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import Adjoint, ChambollePock, Iterate, Masks
from pdunroll.core.problem import PrimalMask
from pdunroll.errors import InputError

SEGMENT = 50  # iterations in one CUDA graph of a loop whose length varies


class Tape(NamedTuple):
    """What Algorithm 2 and the lemma need of the iterations l = f + 1, ..., f + s of Algorithm 1."""

    dual: Tensor  # psi^l  (s, B, m)
    extrapolated: Tensor  # ybar^{l-1}  (s, B, n)
    masks: Masks  # of both proximal operators  (s, B, m) and (s, B, n), booleans


class Engine:
    """Runs blocks of iterations of one algorithm; operator K (m, n), frames x (B, n)."""

    name = "torch"

    def __init__(self, algorithm: ChambollePock) -> None:
        self.algorithm = algorithm

    def _call(self, loop: Callable[..., tuple[Tensor, ...]], fixed: Hashable, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return loop(algorithm, fixed, *tensors)."""
        return loop(self.algorithm, fixed, *tensors)

    def iterate(self, K: Tensor, x: Tensor, count: int, start: Iterate | None = None) -> Iterate:
        """Return the iterate `count` iterations after `start`, by default after y^0 = x, psi^0 = 0."""
        iterate = self.algorithm.start(K, x) if start is None else start
        for part in _segments(count):
            iterate = Iterate(*self._call(_iterate, part, K, x, *iterate))
        return iterate

    def record(self, K: Tensor, x: Tensor, count: int, mask: PrimalMask, start: Iterate) -> tuple[Tape, Iterate]:
        """Run `count` iterations; return what Algorithm 2 needs of them, with this primal mask, and the last one."""
        (B, n), m = x.shape, len(K)
        tape = Tape(
            memory((count, B, m), K),
            memory((count, B, n), K),
            Masks(memory((count, B, m), K, torch.bool), memory((count, B, n), K, torch.bool)),
        )
        return tape, self._record(K, x, mask, start, tape)

    def _record(self, K: Tensor, x: Tensor, mask: PrimalMask, start: Iterate, tape: Tape) -> Iterate:
        first = 0
        for part in _segments(len(tape.dual)):
            dual, extrapolated, *masks, z_dual, z_primal, primal, last = self._call(_record, (part, mask), K, x, *start)
            block = slice(first, first + part)
            tape.dual[block], tape.extrapolated[block] = dual, extrapolated
            tape.masks.dual[block], tape.masks.primal[block] = masks
            start = Iterate(z_dual, dual[-1], z_primal, primal, last)
            first += part
        return start

    def backward(self, K: Tensor, masks: Masks, adjoint: Adjoint, delta_primal: Tensor, delta_dual: Tensor) -> Adjoint:
        """Run Algorithm 2 over the iterations of `masks`, the last one first, and return its last step.

        Writes each iteration's delta_P to delta_primal (s, B, n) and its delta_D to delta_dual (s, B, m).
        """
        primal, dual, *last = self._call(_backward, None, K, *masks, *adjoint)
        delta_primal.copy_(primal)
        delta_dual.copy_(dual)
        return Adjoint(*last)

    def backward_sums(
        self, K: Tensor, masks: Masks, count: int, adjoint: Adjoint, sums: tuple[Tensor, Tensor]
    ) -> Adjoint:
        """Run `count` iterations of Algorithm 2 with the same masks (B, .); add delta_P and delta_D to `sums`."""
        for part in _segments(count):
            primal, dual, *last = self._call(_backward_sums, part, K, *masks, *adjoint)
            sums[0].add_(primal)
            sums[1].add_(dual)
            adjoint = Adjoint(*last)
        return adjoint

    def add_outer(self, total: Tensor, scale: float, a: Tensor, b: Tensor) -> None:
        """Add scale * a^T b, the sum of R outer products, to total (m, n); a (R, m), b (R, n)."""
        total.addmm_(a.T, b, alpha=scale)

    def product(self, base: Tensor, a: Tensor, matrix: Tensor, scale: float) -> Tensor:
        """Return base + scale * a matrix^T; base (B, p), a (B, q), matrix (p, q)."""
        return torch.addmm(base, a, matrix.T, alpha=scale)

    def reflected(self, point: Tensor, previous: Tensor, anchor: Tensor, share: Tensor) -> Tensor:
        """Return share (2 point - previous) + (1 - share) anchor; share (B, 1), the others (B, p)."""
        return share * (2.0 * point - previous) + (1.0 - share) * anchor


# The pure loops. All that changes between two calls is in the tensors, so that a CUDA graph can stand for a call.


def _iterate(algorithm: ChambollePock, count: int, K: Tensor, x: Tensor, *start: Tensor) -> Iterate:
    iterate = Iterate(*start)
    for _ in range(count):
        iterate = algorithm.step(K, x, iterate)
    return iterate


def _record(
    algorithm: ChambollePock, fixed: tuple[int, PrimalMask], K: Tensor, x: Tensor, *start: Tensor
) -> tuple[Tensor, ...]:
    (count, mask), iterate = fixed, Iterate(*start)
    kept = []
    for _ in range(count):
        before, iterate = iterate, algorithm.step(K, x, iterate)
        kept.append((iterate.dual, before.extrapolated, *algorithm.masks(iterate, x, mask)))
    last = iterate.z_dual, iterate.z_primal, iterate.primal, iterate.extrapolated
    return *map(torch.stack, zip(*kept, strict=True)), *last


def _backward(
    algorithm: ChambollePock, fixed: None, K: Tensor, dual: Tensor, primal: Tensor, *start: Tensor
) -> tuple[Tensor, ...]:
    adjoint, steps = Adjoint(*start), []
    for masks in zip(dual.flip(0), primal.flip(0), strict=True):
        adjoint = algorithm.adjoint_step(K, Masks(*masks), adjoint)
        steps.append(adjoint)
    delta_primal, delta_dual, _ = (torch.stack(parts).flip(0) for parts in zip(*steps, strict=True))
    return delta_primal, delta_dual, *adjoint


def _backward_sums(
    algorithm: ChambollePock, count: int, K: Tensor, dual: Tensor, primal: Tensor, *start: Tensor
) -> tuple[Tensor, ...]:
    adjoint = Adjoint(*start)
    sums = torch.zeros_like(adjoint.primal), torch.zeros_like(adjoint.dual)
    for _ in range(count):
        adjoint = algorithm.adjoint_step(K, Masks(dual, primal), adjoint)
        sums = sums[0] + adjoint.primal, sums[1] + adjoint.dual
    return *sums, *adjoint


def _segments(count: int) -> Iterator[int]:
    """Lengths of at most SEGMENT iterations with the sum `count`."""
    yield from [SEGMENT] * (count // SEGMENT)
    if count % SEGMENT:
        yield count % SEGMENT


# float32 on CPUs


def _onednn() -> str:
    """Return the file of oneDNN, which a wheel puts outside of the packages' folder."""
    files = importlib.metadata.files("onednn-cpu-gomp") or []
    return next(str(Path(file.locate()).resolve()) for file in files if file.name in ("libdnnl.so.3", "dnnl.dll"))


def _mkl() -> str:
    """Return the file of torch that contains MKL in builds for x86."""
    (path,) = (Path(torch.__file__).parent / "lib").glob("*torch_cpu.[!l]*")
    return str(path)


# name -> the shared library and its function; the faster first
PRODUCTS: dict[str, tuple[Callable[[], str], str]] = {"onednn": (_onednn, "dnnl_sgemm"), "mkl": (_mkl, "sgemm_")}


def _addresses() -> dict[str, int]:
    """Return the addresses of the products' functions that are there."""
    found = {}
    for product, (library, symbol) in PRODUCTS.items():
        try:
            found[product] = ctypes.cast(getattr(ctypes.CDLL(library()), symbol), ctypes.c_void_p).value
        except (OSError, AttributeError, StopIteration, ValueError, importlib.metadata.PackageNotFoundError):
            continue
    return {product: address for product, address in found.items() if address}


@cache
def compiled_loops() -> tuple[Any, dict[str, int]]:
    """The module of the numba loops, and the products that they can call by number; (None, {}) where there are none.

    The first call of a process loads them from numba's cache (under a second), the very first compiles them (about
    twenty).
    """
    addresses = _addresses()
    try:
        import llvmlite.binding as llvm

        if not addresses:
            return None, {}
        for product, (_, symbol) in PRODUCTS.items():  # one that is not there is never called, but needs an address
            llvm.add_symbol(f"pdunroll_{symbol}", addresses.get(product, next(iter(addresses.values()))))
        from pdunroll.core import loops
    except ImportError:
        return None, {}
    return loops, {product: number for number, product in enumerate(PRODUCTS) if product in addresses}


def product_name() -> str:
    """Return which product float32 trainings on CPUs use here: onednn, mkl or torch; recorded in run.json."""
    wanted, numbers = os.environ.get("PDUNROLL_PRODUCT", ""), compiled_loops()[1]
    if wanted in numbers:
        return wanted
    there = [*numbers, "torch"]
    if wanted and wanted not in there:
        raise InputError(
            f"the environment variable PDUNROLL_PRODUCT must be one of those that are installed here, "
            f"{', '.join(there)}; got {wanted!r}"
        )
    return wanted or there[0]


class CompiledEngine(Engine):
    """float32 on CPUs: the same blocks as numba loops."""

    def __init__(self, algorithm: ChambollePock, product: str) -> None:
        super().__init__(algorithm)
        self.name = product
        self.loops, numbers = compiled_loops()
        self.number = numbers[product]
        self._transposed: tuple[Tensor, Any] | None = None
        self.sigma, self.tau, self.theta = map(np.float32, (algorithm.sigma, algorithm.tau, algorithm.theta))

    def _box(self, x: Tensor) -> tuple[Any, Any]:
        return tuple(_array(bound) for bound in self.algorithm.problem.box(x))

    def _both(self, K: Tensor) -> tuple[Any, Any]:
        """Return K and K^T as contiguous arrays, the latter kept for the backward pass."""
        if self._transposed is None or self._transposed[0] is not K:
            self._transposed = K, _array(K.T)
        return _array(K), self._transposed[1]

    def iterate(self, K: Tensor, x: Tensor, count: int, start: Iterate | None = None) -> Iterate:
        """Return the iterate `count` iterations after `start`."""
        if count == 0:
            return super().iterate(K, x, 0, start)
        z_dual, dual, z_primal, primal, extrapolated = self._fresh(K, x, start)
        self.loops.iterate(
            self.number, count, *self._both(K), *self._box(x), self.sigma, self.tau, self.theta,
            z_dual.numpy(), dual.numpy(), z_primal.numpy(), primal.numpy(), extrapolated.numpy(),
        )  # fmt: skip
        return Iterate(z_dual, dual, z_primal, primal, extrapolated)

    def _record(self, K: Tensor, x: Tensor, mask: PrimalMask, start: Iterate, tape: Tape) -> Iterate:
        state = self._fresh(K, x, start)
        self.loops.record(
            self.number, *self._both(K), _array(x), *self._box(x), self.sigma, self.tau, self.theta,
            np.float32(mask.shift), np.float32(mask.bound), *(part.numpy() for part in state),
            tape.dual.numpy(), tape.extrapolated.numpy(), tape.masks.dual.numpy(), tape.masks.primal.numpy(),
        )  # fmt: skip
        return state

    def _fresh(self, K: Tensor, x: Tensor, start: Iterate | None) -> Iterate:
        """Return a state that the loops may write to: psi, y and ybar of `start`, the others uninitialized."""
        start = self.algorithm.start(K, x) if start is None else start
        dual, primal, extrapolated = (
            part.clone(memory_format=torch.contiguous_format) for part in (start.dual, start.primal, start.extrapolated)
        )
        return Iterate(torch.empty_like(dual), dual, torch.empty_like(primal), primal, extrapolated)

    def backward(self, K: Tensor, masks: Masks, adjoint: Adjoint, delta_primal: Tensor, delta_dual: Tensor) -> Adjoint:
        """Run Algorithm 2 over the iterations of `masks`; write its steps to the last two arguments."""
        last = Adjoint(*(part.clone(memory_format=torch.contiguous_format) for part in adjoint))
        self.loops.backward(
            self.number, *self._both(K), self.sigma, self.tau, self.theta, *(mask.numpy() for mask in masks),
            *(part.numpy() for part in last), delta_primal.numpy(), delta_dual.numpy(),
        )  # fmt: skip
        return last

    def backward_sums(
        self, K: Tensor, masks: Masks, count: int, adjoint: Adjoint, sums: tuple[Tensor, Tensor]
    ) -> Adjoint:
        """Run `count` iterations of Algorithm 2 with the same masks; add its steps to `sums`."""
        last = Adjoint(*(part.clone(memory_format=torch.contiguous_format) for part in adjoint))
        self.loops.backward_sums(
            self.number, count, *self._both(K), self.sigma, self.tau, self.theta, *map(_array, masks),
            *(part.numpy() for part in last), *(total.numpy() for total in sums),
        )  # fmt: skip
        return last

    def add_outer(self, total: Tensor, scale: float, a: Tensor, b: Tensor) -> None:
        """Add scale * a^T b to total."""
        self.loops.add_outer(self.number, total.numpy(), np.float32(scale), _array(a), _array(b))

    def product(self, base: Tensor, a: Tensor, matrix: Tensor, scale: float) -> Tensor:
        """Return base + scale * a matrix^T."""
        out = torch.empty_like(base, memory_format=torch.contiguous_format)
        transposed = self._both(matrix)[1] if matrix.is_contiguous() else _array(matrix.T)
        self.loops.multiply(self.number, out.numpy(), _array(a), transposed, np.float32(scale))
        return out.add_(base)

    def reflected(self, point: Tensor, previous: Tensor, anchor: Tensor, share: Tensor) -> Tensor:
        """Return share (2 point - previous) + (1 - share) anchor."""
        out = torch.empty_like(point, memory_format=torch.contiguous_format)
        self.loops.reflected(out.numpy(), _array(point), _array(previous), _array(anchor), _array(share))
        return out


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


# CUDA


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


def engine_for(algorithm: ChambollePock, K: Tensor) -> Engine:
    """Return the fastest engine for this operator's dtype and device."""
    if K.device.type == "cuda":
        wanted = os.environ.get("PDUNROLL_GRAPHS", "on")
        if wanted not in ("on", "off"):
            raise InputError(f"the environment variable PDUNROLL_GRAPHS must be on or off, got {wanted!r}")
        return GraphedEngine(algorithm) if wanted == "on" else Engine(algorithm)
    if K.device.type == "cpu" and K.dtype == torch.float32 and (product := product_name()) != "torch":
        return CompiledEngine(algorithm, product)
    return Engine(algorithm)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush subnormal floats to zero in this context, on CPUs, in the calling thread.

    They are a hundred times slower to compute with, and a backward pass that has decayed to them would go on with
    them for hundreds of iterations where no mask sets them to zero.
    """
    before = bool(np.float32(1e-40) * np.float32(1) == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


_kept: list[Tensor] = []  # memory of dead tensors
MAX_BUFFERS = 8
SMALL = 4 << 20  # bytes: the C library keeps memory of less than this itself


def memory(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialized tensor on the device of `like`, and of its dtype if none is given.

    On CPUs its memory is used again when it is dead: pages fresh from the system cost up to a third of an iteration
    that writes to them. (On GPUs, torch's allocator keeps memory already.)
    """
    dtype = like.dtype if dtype is None else dtype
    size = prod(shape)
    if like.device.type != "cpu" or size * dtype.itemsize < SMALL:
        return torch.empty(shape, dtype=dtype, device=like.device)
    fits = [number for number, kept in enumerate(_kept) if kept.dtype == dtype and len(kept) >= size]
    buffer = _kept.pop(min(fits, key=lambda number: len(_kept[number]))) if fits else like.new_empty(size, dtype=dtype)
    tensor = buffer[:size].view(shape)
    weakref.finalize(tensor, _keep, buffer).atexit = False
    return tensor


def _keep(buffer: Tensor) -> None:
    _kept.append(buffer)
    del _kept[:-MAX_BUFFERS]
