"""The two matrix products that all time goes into, by the library that is fastest at them on this machine.

    product  base + scale x K^T   (B, n) times (n, m), with one K for many x
    outer    total + a^T b        (R, m) and (R, n) with many rows R, the sum of R outer products

The plain form is torch.addmm, which is MKL on x86 CPUs and cuBLAS on GPUs. MKL takes its AVX2 path on AMD,
half the rate of oneDNN on CPUs with full AVX-512 units; on others there is nothing between them, or oneDNN's overhead
of some microseconds a call costs more than it wins. So each shape is measured once in a process, at first use.
Where the two are about a fifth apart, noise can tip the measurement and with it the last bits of a result: the
environment variable PDUNROLL_LIBRARY, plain or onednn, takes the choice away.
"""

from __future__ import annotations

import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from pdunroll.errors import InputError


class Product(Protocol):
    """base + scale x K^T: base (B, m) and x (B, n) -> (B, m), in `out` if given; else in `spare` if that helps."""

    def __call__(self, base: Tensor, x: Tensor, out: Tensor | None = None, spare: Tensor | None = None) -> Tensor: ...


class Library(ABC):
    """A way to do both products."""

    @abstractmethod
    def product(self, operator: Tensor, scale: float, batch: int) -> Product:
        """Prepare base + scale x K^T for an operator (m, n) and batches of `batch` frames."""

    @abstractmethod
    def add_outer(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a^T b to `total`, in place; a (R, m), b (R, n), total (m, n)."""


class Plain(Library):
    """torch.addmm: any dtype and device, and the oracle of the others."""

    def product(self, operator, scale, batch):
        transposed = operator.T.contiguous()

        def product(base, x, out=None, spare=None):
            return torch.addmm(base, x, transposed, alpha=scale, out=spare if out is None else out)

        return product

    def add_outer(self, total, a, b):
        total.addmm_(a.T, b)


class OneDNN(Library):
    """oneDNN's inner product on a weight packed for the batch size, with the addition fused. float32 on CPUs."""

    def product(self, operator, scale, batch):
        weight = torch.ops.mkldnn._reorder_linear_weight((scale * operator).contiguous(), batch)
        linear = torch.ops.mkldnn._linear_pointwise.binary

        def product(base, x, out=None, spare=None):
            result = linear(x, base, weight, None, "add")
            return result if out is None else out.copy_(result)

        return product

    def add_outer(self, total, a, b):
        total += torch.ops.mkldnn._linear_pointwise(a.T, b.T, None, "none", [], "")


class Fastest(Library):
    """Of the two, for each shape, what a measurement prefers."""

    def product(self, operator, scale, batch):
        rows = 1 << (batch - 1).bit_length()  # batches that shrink meet few new sizes
        return choice("product", rows, *operator.shape, *_machine(operator)).product(operator, scale, batch)

    def add_outer(self, total, a, b):
        choice("outer", *a.shape, b.shape[1], *_machine(a)).add_outer(total, a, b)


FASTEST = Fastest()

# oneDNN must win by so much to be taken: the choice decides the last bits of a result and should not hang on noise.
MARGIN = 1.2
ROUNDS = 15


def _machine(tensor: Tensor) -> tuple[torch.dtype, str, int]:
    return tensor.dtype, tensor.device.type, torch.get_num_threads()


@cache
def choice(task: str, rows: int, m: int, n: int, dtype: torch.dtype, device: str, threads: int) -> Library:
    """The library for `task` ("product" or "outer") with `rows` frames or rows."""
    pinned = os.environ.get("PDUNROLL_LIBRARY", "")
    if pinned not in ("", "plain", "onednn"):
        raise InputError(f"the environment variable PDUNROLL_LIBRARY must be plain or onednn, got {pinned!r}")
    if dtype != torch.float32 or device != "cpu" or not torch.backends.mkldnn.is_available() or pinned == "plain":
        return Plain()
    if pinned == "onednn":
        return OneDNN()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, columns, generator=generator) for columns in (m, n))
    operator = torch.randn(m, n, generator=generator)
    libraries = (Plain(), OneDNN())
    if task == "outer":
        calls = [partial(library.add_outer, torch.zeros(m, n), a, b) for library in libraries]
    else:
        calls = [partial(library.product(operator, 0.5, rows), a, b) for library in libraries]
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):  # taken in turns, so that other work on the machine meets both
        for number, call in enumerate(calls):
            call()
            start = time.perf_counter()
            call()
            best[number] = min(best[number], time.perf_counter() - start)
    return libraries[int(best[1] * MARGIN < best[0])]


@contextmanager
def tiny_is_zero() -> Iterator[None]:
    """Meanwhile, take numbers below the smallest one of full precision (1e-38 in float32) for 0 on CPUs.

    They are a hundred times slower to compute with, and where nothing masks it a backward pass that has decayed to
    them would go on with them for hundreds of iterations. Holds for the calling thread, which is left as it was.
    """
    before = float(torch.tensor(1e-40) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


_kept: list[Tensor] = []  # memory of dead scratch tensors
KEPT = 6  # at most so many: z_D, z_P and the four that a block of the backward pass works in


def scratch(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialized tensor for what one pass of many iterations leaves, of the dtype and device of `like`.

    On CPUs its memory is kept for the next one when it dies: pages fresh from the system cost up to a third of an
    iteration that writes to them. (On GPUs, torch's allocator keeps memory already.)
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    size = prod(shape)
    fits = [number for number, memory in enumerate(_kept) if memory.dtype == like.dtype and len(memory) >= size]
    memory = _kept.pop(min(fits, key=lambda number: len(_kept[number]))) if fits else like.new_empty(size)
    tensor = memory[:size].view(shape)
    weakref.finalize(tensor, _keep, memory).atexit = False
    return tensor


def _keep(memory: Tensor) -> None:
    _kept.append(memory)
    del _kept[:-KEPT]
