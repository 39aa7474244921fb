"""Blocks of iterations of Algorithms 1 and 2, by the pure steps.

The definition is `ChambollePock.step` and `ChambollePock.adjoint_step`. An `Engine` runs blocks of them in a loop, for
any dtype and device. Two subclasses compute the same faster: `core.compiled` for float32 on CPUs, `core.graphed` on
GPUs; `core.dispatch` chooses. The pure engine is the oracle of both.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import Adjoint, ChambollePock, Iterate, Masks
from pdunroll.core.problem import Box, MaskOf, Observation

SEGMENT = 50  # iterations in one CUDA graph of a loop whose length varies


class Tape(NamedTuple):
    """What Algorithm 2 and the lemma need of the iterations l = f + 1, ..., f + s of Algorithm 1."""

    dual: Tensor  # psi^l  (s, B, m)
    extrapolated: Tensor  # ybar^{l-1}  (s, B, n)
    masks: Masks  # of both proximal operators  (s, B, m) and (s, B, n), booleans


class Engine:
    """Runs blocks of iterations of one algorithm; operator K (m, n), frames x (B, n) or their box."""

    name = "torch"

    def __init__(self, algorithm: ChambollePock) -> None:
        self.algorithm = algorithm

    def _call(self, loop: Callable[..., tuple[Tensor, ...]], fixed: Hashable, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return loop(algorithm, fixed, *tensors)."""
        return loop(self.algorithm, fixed, *tensors)

    def iterate(self, K: Tensor, x: Observation, count: int, start: Iterate | None = None) -> Iterate:
        """Return the iterate `count` iterations after `start`, by default after y^0 = x, psi^0 = 0."""
        iterate = self.algorithm.start(K, x) if start is None else start
        box = self.algorithm.problem.box(x).tensors()
        for part in _segments(count):
            iterate = Iterate(*self._call(_iterate, part, K, *box, *iterate))
        return iterate

    def record(self, K: Tensor, x: Observation, count: int, mask: MaskOf, start: Iterate) -> tuple[Tape, Iterate]:
        """Run `count` iterations; return what Algorithm 2 needs of them, with this primal mask, and the last one."""
        (B, n), m = start.primal.shape, len(K)
        tape = Tape(
            memory((count, B, m), K),
            memory((count, B, n), K),
            Masks(memory((count, B, m), K, torch.bool), memory((count, B, n), K, torch.bool)),
        )
        return tape, self._record(K, self.algorithm.problem.box(x), mask, start, tape)

    def _record(self, K: Tensor, box: Box, mask: MaskOf, start: Iterate, tape: Tape) -> Iterate:
        first, tensors = 0, box.tensors()
        for part in _segments(len(tape.dual)):
            dual, extrapolated, *masks, z_dual, z_primal, primal, last = self._call(
                _record, (part, mask), K, *tensors, *start
            )
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


def _iterate(algorithm: ChambollePock, count: int, K: Tensor, *tensors: Tensor) -> Iterate:
    box, iterate = Box(*tensors[:3]), Iterate(*tensors[3:])
    for _ in range(count):
        iterate = algorithm.step(K, box, iterate)
    return iterate


def _record(algorithm: ChambollePock, fixed: tuple[int, MaskOf], K: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    (count, mask_of), box, iterate = fixed, Box(*tensors[:3]), Iterate(*tensors[3:])
    mask, kept = mask_of(box), []
    for _ in range(count):
        before = iterate
        iterate, masks = algorithm.step_with_masks(K, box, before, mask)
        kept.append((iterate.dual, before.extrapolated, *masks))
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


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush subnormal floats to zero in this context, on CPUs, in the calling thread.

    Computing with them is a hundred times slower, and a backward pass that has decayed to them would continue with
    them for hundreds of iterations if no mask sets them to zero.
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

    On CPUs the memory is reused when the tensor is deleted, since new pages from the system cost up to a third of the
    time of an iteration that writes to them. (On GPUs, torch's allocator caches memory already.)
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
