"""float32 on CPUs: blocks of iterations as numba loops of one matrix product and one pass over the data each.

The loops (`core.loops`) call a C function for their products, the first of these that is there:

    onednn  `dnnl_sgemm` of the package onednn-cpu-gomp (the extra `fast`)
    mkl     `sgemm_` of the MKL that torch's x86 builds contain

Without numba or either of them the pure steps run, slower. The environment variable PDUNROLL_PRODUCT takes the choice
away: onednn, mkl, or torch for the pure steps.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdunroll.core.chambolle_pock import Adjoint, ChambollePock, Iterate, Masks
from pdunroll.core.engine import Engine, Tape
from pdunroll.core.problem import Box, MaskOf, Observation
from pdunroll.errors import InputError


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

    def _both(self, K: Tensor) -> tuple[Any, Any]:
        """Return K and K^T as contiguous arrays, the latter kept for the backward pass."""
        if self._transposed is None or self._transposed[0] is not K:
            self._transposed = K, _array(K.T)
        return _array(K), self._transposed[1]

    def iterate(self, K: Tensor, x: Observation, count: int, start: Iterate | None = None) -> Iterate:
        """Return the iterate `count` iterations after `start`."""
        if count == 0:
            return super().iterate(K, x, 0, start)
        box = self.algorithm.problem.box(x)
        z_dual, dual, z_primal, primal, extrapolated = self._fresh(
            self.algorithm.start(K, box) if start is None else start
        )
        self.loops.iterate(
            self.number, count, *self._both(K), _array(box.lower), _array(box.upper), self.sigma, self.tau, self.theta,
            z_dual.numpy(), dual.numpy(), z_primal.numpy(), primal.numpy(), extrapolated.numpy(),
        )  # fmt: skip
        return Iterate(z_dual, dual, z_primal, primal, extrapolated)

    def _record(self, K: Tensor, box: Box, mask: MaskOf, start: Iterate, tape: Tape) -> Iterate:
        state, (centre, bound) = self._fresh(start), mask(box)
        bounds = (
            (np.float32(0), _array(bound)) if isinstance(bound, Tensor) and bound.ndim else (np.float32(bound), None)
        )
        self.loops.record(
            self.number, *self._both(K), _array(box.lower), _array(box.upper), self.sigma, self.tau, self.theta,
            _array(centre), *bounds, *(part.numpy() for part in state),
            tape.dual.numpy(), tape.extrapolated.numpy(), tape.masks.dual.numpy(), tape.masks.primal.numpy(),
        )  # fmt: skip
        return state

    @staticmethod
    def _fresh(start: Iterate) -> Iterate:
        """Return a state that the loops may write to: psi, y and ybar of `start`, the others uninitialized."""
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
