"""Algorithms 1 and 2 over blocks of iterations, for float32 on CPUs, compiled by numba; called by `core.engine`.

Rows are frames, all arrays are contiguous; KT is K^T written out. An iteration is two products, each followed by
short loops over its result that add, project, mask and extrapolate. But for the products, nothing is rounded
otherwise than in the pure steps.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numba import njit, types

_PLAIN, _TRANSPOSED = np.int8(ord("N")), np.int8(ord("T"))
_ZERO, _ONE = np.float32(0), np.float32(1)

# dnnl_sgemm(transa, transb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc), row-major, everything but arrays by value
_dnnl_sgemm = types.ExternalFunction(
    "pdunroll_dnnl_sgemm",
    types.intc(
        types.int8, types.int8, types.int64, types.int64, types.int64, types.float32, types.uintp, types.int64,
        types.uintp, types.int64, types.float32, types.uintp, types.int64,
    ),
)  # fmt: skip
# sgemm_ of Fortran: column-major, everything by address
_sgemm = types.ExternalFunction("pdunroll_sgemm_", types.void(*[types.uintp] * 13))

try:  # beside this file, or where the user's cache is; not at all if neither can be written to
    njit(cache=True)(lambda: None)
    _options = {"cache": True, "nogil": True}
except RuntimeError:
    _options = {"nogil": True}
jit = njit(**_options)  # pyright: ignore[reportCallIssue, reportArgumentType]

assert ctypes.sizeof(ctypes.c_void_p) == 8


@jit
def _gemm(number, trans_a, trans_b, rows, columns, inner, scale, a, lda, b, ldb, beta, c):
    """c (rows, columns) = scale a b + beta c, row-major; a, b transposed as told, lda, ldb their rows' lengths."""
    if number == 0:
        _dnnl_sgemm(
            trans_a, trans_b, rows, columns, inner, scale, a.ctypes.data, lda, b.ctypes.data, ldb, beta, c.ctypes.data,
            columns,
        )  # fmt: skip
    else:  # column-major, c^T = b^T a^T
        letters = np.empty(2, np.int8)
        letters[0], letters[1] = trans_b, trans_a
        sizes = np.empty(6, np.int32)
        sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5] = columns, rows, inner, ldb, lda, columns
        factors = np.empty(2, np.float32)
        factors[0], factors[1] = scale, beta
        letter, size, factor = letters.ctypes.data, sizes.ctypes.data, factors.ctypes.data
        _sgemm(
            letter, letter + 1, size, size + 4, size + 8, factor, b.ctypes.data, size + 12, a.ctypes.data, size + 16,
            factor + 4, c.ctypes.data, size + 20,
        )  # fmt: skip
        letters[0] = sizes[0] = factors[0] = 0  # used after the call, so that numba does not free them before it


@jit
def multiply(number, out, a, matrix, scale):
    """out (B, p) = scale a matrix; a (B, q), matrix (q, p). No library is faster with a transposed matrix."""
    rows, (inner, columns) = len(a), matrix.shape
    _gemm(number, _PLAIN, _PLAIN, rows, columns, inner, scale, a, inner, matrix, columns, _ZERO, out)


@jit
def add_outer(number, total, scale, a, b):
    """total (m, n) += scale a^T b; a (R, m), b (R, n)."""
    if len(a) > 0:
        _gemm(number, _TRANSPOSED, _PLAIN, a.shape[1], b.shape[1], len(a), scale, a, a.shape[1], b, b.shape[1], _ONE,
              total)  # fmt: skip


@jit
def reflected(out, point, previous, anchor, share):
    """out (B, p) = share (2 point - previous) + (1 - share) anchor, with one share (B, 1) a row."""
    for b in range(len(out)):
        new, old = share[b, 0], _ONE - share[b, 0]
        for i in range(out.shape[1]):
            out[b, i] = new * (np.float32(2) * point[b, i] - previous[b, i]) + old * anchor[b, i]


# One pass each, over flat arrays.


@jit
def _dual_update(z, previous, dual, free):
    """z becomes z_D = psi + sigma K ybar, of which it held the second term; dual = prox(z_D); its mask if wanted."""
    z, previous, dual = z.ravel(), previous.ravel(), dual.ravel()
    if free is None:  # numba compiles a version without the other branch
        for i in range(z.size):
            z[i] += previous[i]
            dual[i] = min(max(z[i], -_ONE), _ONE)
    else:
        mask = free.ravel()
        for i in range(z.size):
            z[i] += previous[i]
            dual[i] = min(max(z[i], -_ONE), _ONE)
            mask[i] = abs(z[i]) <= _ONE


@jit
def _primal_update(z, previous, primal, lower, upper, extrapolated, theta, free, x, shift, bound):
    """z becomes z_P = y - tau K^T psi, of which it held the second term; primal = prox(z_P), then ybar and the mask."""
    z, previous, primal, extrapolated = z.ravel(), previous.ravel(), primal.ravel(), extrapolated.ravel()
    lower, upper = lower.ravel(), upper.ravel()
    for i in range(z.size):  # three short loops: with more arrays in one, LLVM does not vectorize it
        z[i] += previous[i]
        primal[i] = min(max(z[i], lower[i]), upper[i])
    for i in range(z.size):
        extrapolated[i] = primal[i] + theta * (primal[i] - previous[i])
    if free is not None:
        mask, x = free.ravel(), x.ravel()
        for i in range(z.size):
            mask[i] = abs(z[i] - shift * x[i]) <= bound


@jit
def iterate(
    number, count, K, KT, lower, upper, sigma, tau, theta, z_dual, dual, z_primal, primal, extrapolated
):  # fmt: skip
    """`count` iterations of Algorithm 1, in place."""
    duals, primals = (dual, np.empty_like(dual)), (primal, np.empty_like(primal))  # a pass in place is not vectorized
    for l in range(count):
        old, new = l % 2, 1 - l % 2
        multiply(number, z_dual, extrapolated, KT, sigma)
        _dual_update(z_dual, duals[old], duals[new], None)
        multiply(number, z_primal, duals[new], K, -tau)
        _primal_update(z_primal, primals[old], primals[new], lower, upper, extrapolated, theta, None, lower, _ONE, _ONE)
    if count % 2:
        dual[:], primal[:] = duals[1], primals[1]


@jit
def record(
    number, K, KT, x, lower, upper, sigma, tau, theta, shift, bound, z_dual, dual, z_primal, primal, extrapolated,
    duals, bars, free_dual, free_primal,
):  # fmt: skip
    """As `iterate`, with psi^l, ybar^{l-1} and masks of each of the s iterations kept."""
    s = len(duals)
    primals = (primal, np.empty_like(primal))
    if s > 0:
        bars[0] = extrapolated
    for l in range(s):
        multiply(number, z_dual, bars[l], KT, sigma)
        _dual_update(z_dual, dual if l == 0 else duals[l - 1], duals[l], free_dual[l])
        multiply(number, z_primal, duals[l], K, -tau)
        _primal_update(
            z_primal, primals[l % 2], primals[1 - l % 2], lower, upper, bars[l + 1] if l < s - 1 else extrapolated,
            theta, free_primal[l], x, shift, bound,
        )  # fmt: skip
    if s > 0:
        dual[:] = duals[-1]
    if s % 2:
        primal[:] = primals[1]


@jit
def _back(number, z, bar, K, sigma):
    """z = sigma K^T deltabar_D; where Algorithm 2 starts, deltabar_D is 0 and needs no product."""
    if bar.any():
        multiply(number, z, bar, K, sigma)
    else:
        z[:] = _ZERO


@jit
def _adjoint_primal(z, previous, free, delta):
    """delta_P = mask_P (delta_P + sigma K^T deltabar_D), with the second term in z. Eq. (1)."""
    z, previous, free, delta = z.ravel(), previous.ravel(), free.ravel(), delta.ravel()
    for i in range(z.size):
        delta[i] = previous[i] + z[i] if free[i] else _ZERO


@jit
def _adjoint_dual(z, previous, free, delta, bar, theta):
    """delta_D = mask_D (delta_D - tau K delta_P), with the second term in z; deltabar_D. Eqs. (2), (3)."""
    z, previous, free, delta, bar = z.ravel(), previous.ravel(), free.ravel(), delta.ravel(), bar.ravel()
    for i in range(z.size):
        before = previous[i]
        value = before + z[i] if free[i] else _ZERO
        bar[i] = value + theta * (value - before)
        delta[i] = value


@jit
def backward(
    number, K, KT, sigma, tau, theta, free_dual, free_primal, primal, dual, bar, delta_primal, delta_dual
):  # fmt: skip
    """Algorithm 2 over s iterations, the last one first; primal, dual and bar are moved on in place."""
    s = len(delta_primal)
    z_primal, z_dual = np.empty_like(primal), np.empty_like(dual)
    for l in range(s - 1, -1, -1):
        _back(number, z_primal, bar, K, sigma)
        _adjoint_primal(z_primal, primal if l == s - 1 else delta_primal[l + 1], free_primal[l], delta_primal[l])
        multiply(number, z_dual, delta_primal[l], KT, -tau)
        _adjoint_dual(z_dual, dual if l == s - 1 else delta_dual[l + 1], free_dual[l], delta_dual[l], bar, theta)
    if s > 0:
        primal[:] = delta_primal[0]
        dual[:] = delta_dual[0]


@jit
def _add(total, term):
    total, term = total.ravel(), term.ravel()
    for i in range(total.size):
        total[i] += term[i]


@jit
def backward_sums(
    number, count, K, KT, sigma, tau, theta, free_dual, free_primal, primal, dual, bar, sum_primal, sum_dual
):  # fmt: skip
    """`count` iterations of Algorithm 2 with the same masks, in place; delta_P and delta_D are added to the sums."""
    z_primal, z_dual = np.empty_like(primal), np.empty_like(dual)
    primals, duals = (primal, np.empty_like(primal)), (dual, np.empty_like(dual))
    for l in range(count):
        old, new = l % 2, 1 - l % 2
        _back(number, z_primal, bar, K, sigma)
        _adjoint_primal(z_primal, primals[old], free_primal, primals[new])
        _add(sum_primal, primals[new])
        multiply(number, z_dual, primals[new], KT, -tau)
        _adjoint_dual(z_dual, duals[old], free_dual, duals[new], bar, theta)
        _add(sum_dual, duals[new])
    if count % 2:
        primal[:], dual[:] = primals[1], duals[1]
