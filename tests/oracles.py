"""Random problems; naive transcriptions of the algorithms, frame by frame with columns as in the paper; autograd."""

from __future__ import annotations

import numpy as np
import torch

import pdunroll

ETA = 1 / 16
SHAPES = [(18, 18), (11, 18), (25, 18)]
MASKS = ["active_set", "released"]
NORMS = ("frobenius", "spectral")


def problem(m=18, n=18, B=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    noise = 0.08 * torch.randn(m, n, generator=generator, dtype=torch.float64)
    operator = (pdunroll.dct_operator(m, n, torch.float64) + noise).to(dtype).requires_grad_()
    truth = (0.3 * torch.randn(B, n, generator=generator, dtype=torch.float64)).clamp(-1, 1).to(dtype)
    return operator, truth, pdunroll.quantize(truth, bits=4)


def gradient(operator, truth, observation, L, backprop=None, loss=None, **options):
    restored = pdunroll.unroll(operator, observation, radius=ETA, iterations=L, backprop=backprop, **options)
    loss = 0.5 * (restored - truth).square().sum() if loss is None else loss(restored)
    return restored.detach(), torch.autograd.grad(loss, operator)[0]


def relative(a, b):
    return float((a - b).norm() / b.norm())


def clip(value: np.ndarray, bound: float) -> np.ndarray:
    return np.array([min(bound, max(-bound, v)) for v in value])


def size(K: np.ndarray, norm: str) -> float:
    """||K||_F, the root of the sum of all squares, or ||K||_2, the largest singular value."""
    assert norm in NORMS
    return np.linalg.svd(K, compute_uv=False)[0] if norm == "spectral" else sum(k * k for k in K.ravel()) ** 0.5


def steps(K: np.ndarray, ratio: float, norm: str = "frobenius", scale: float = 0.99) -> tuple[float, float]:
    """sigma and tau with the one or the other norm of K."""
    return ratio * scale / size(K, norm), scale / (ratio * size(K, norm))


def algorithm1(K, x, eta, L, theta=1.0, ratio=10.0, norm="frobenius"):
    """All iterates of Algorithm 1 for one frame: lists indexed by l (index 0 is the start)."""
    sigma, tau = steps(K, ratio, norm)
    y, ybar, psi, zD, zP = [x], [x], [np.zeros(len(K))], [None], [None]
    for l in range(L):
        zD.append(psi[l] + sigma * (K @ ybar[l]))
        psi.append(clip(zD[l + 1], 1.0))
        zP.append(y[l] - tau * (K.T @ psi[l + 1]))
        y.append(clip(zP[l + 1] - x, eta) + x)
        ybar.append(y[l + 1] + theta * (y[l + 1] - y[l]))
    return y, ybar, psi, zD, zP


def mask_dual(zD):
    return np.array([1.0 if abs(z) <= 1 else 0.0 for z in zD])


def mask_primal(kind, zP, x, eta):
    if kind == "active_set":
        return np.array([1.0 if abs(z - c) <= eta else 0.0 for z, c in zip(zP, x, strict=True)])
    return np.array([1.0 if abs(z - 2 * c) <= 1 else 0.0 for z, c in zip(zP, x, strict=True)])


def full_gradient(K, x, eta, L, grad, kind, theta=1.0, ratio=10.0, norm="frobenius", last=None):
    """Algorithm 2 and the lemma for one frame, with `grad` the gradient of the loss at y^L; over the last ones only."""
    sigma, tau = steps(K, ratio, norm)
    _, ybar, psi, zD, zP = algorithm1(K, x, eta, L, theta, ratio, norm)
    deltaP, deltaD, bar = {L + 1: grad}, {L + 1: np.zeros(len(K))}, {L + 1: np.zeros(len(K))}
    total = np.zeros_like(K)
    for l in range(L, max(0, L - (L if last is None else last)), -1):
        deltaP[l] = mask_primal(kind, zP[l], x, eta) * (deltaP[l + 1] + sigma * (K.T @ bar[l + 1]))
        deltaD[l] = mask_dual(zD[l]) * (deltaD[l + 1] - tau * (K @ deltaP[l]))
        bar[l] = deltaD[l] + theta * (deltaD[l] - deltaD[l + 1])
        total += sigma * np.outer(deltaD[l], ybar[l - 1]) - tau * np.outer(psi[l], deltaP[l])
    return total


def truncated_gradient(K, x, eta, L, grad, kind, b, theta=1.0, ratio=10.0, norm="frobenius", damping=0.0):
    """The frozen-mask sum over b backward iterations for one frame, with weights (1 - damping)^t."""
    sigma, tau = steps(K, ratio, norm)
    y, _, psi, zD, zP = algorithm1(K, x, eta, L, theta, ratio, norm)
    mP, mD = mask_primal(kind, zP[L], x, eta), mask_dual(zD[L])
    deltaP, deltaD, bar = grad, np.zeros(len(K)), np.zeros(len(K))
    sumP, sumD = np.zeros(len(x)), np.zeros(len(K))
    for t in range(b):
        deltaP = mP * (deltaP + sigma * (K.T @ bar))
        previous = deltaD
        deltaD = mD * (deltaD - tau * (K @ deltaP))
        bar = deltaD + theta * (deltaD - previous)
        weight = (1.0 - damping) ** t
        sumP, sumD = sumP + weight * deltaP, sumD + weight * deltaD
    return sigma * np.outer(sumD, y[L]) - tau * np.outer(psi[L], sumP)


def piggyback_gradient(K, x, eta, L, grad, count, block, theta=1.0, ratio=10.0, norm="frobenius"):
    """`count` iterations beyond L; the sums of Algorithm 2 as iterates, with the masks at the end of their block."""
    sigma, tau = steps(K, ratio, norm)
    y, _, psi, zD, zP = algorithm1(K, x, eta, L + count, theta, ratio, norm)
    sumP, sumD, bar = np.zeros(len(x)), np.zeros(len(K)), np.zeros(len(K))
    for t in range(count):
        l = L + (t // block + 1) * block
        sumP = mask_primal("active_set", zP[l], x, eta) * (sumP + grad + sigma * (K.T @ bar))
        previous = sumD
        sumD = mask_dual(zD[l]) * (sumD - tau * (K @ sumP))
        bar = sumD + theta * (sumD - previous)
    return sigma * np.outer(sumD, y[L + count]) - tau * np.outer(psi[L + count], sumP)


def autograd_unrolled(K, x, eta, L, theta=1.0, ratio=10.0, norm="frobenius", constant=0, scale=0.99):
    """The unrolled loop in differentiable torch operations, min/max projections, constant ||K|| in the step sizes.

    The iterate after the first `constant` iterations counts as a constant.
    """
    sigma, tau = steps(K.detach().numpy(), ratio, norm, scale)
    y = ybar = x
    psi = x.new_zeros(len(x), len(K))
    for l in range(L):
        psi = (psi + sigma * ybar @ K.T).clamp(-1, 1)
        y_next = (y - tau * psi @ K - x).clamp(-eta, eta) + x
        ybar = y_next + theta * (y_next - y)
        y = y_next
        if l + 1 == constant:
            y, ybar, psi = y.detach(), ybar.detach(), psi.detach()
    return y
