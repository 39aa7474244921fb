"""Unrolled reflected Halpern iterations against autograd, in float64."""

from __future__ import annotations

import pytest
import torch

from oracles import ETA, NORMS, SHAPES, mask_dual, mask_primal, problem, relative, steps
from pdunroll import Full, Implicit, InputError, Truncated, solve
from pdunroll.core.unrolled_halpern import unroll_halpern


def halpern(K, x, L, ratio=10.0, norm="frobenius"):
    """The iteration in differentiable operations, with constant step sizes and the anchor written out."""
    sigma, tau = steps(K.detach().numpy(), ratio, norm)
    y0, psi0 = x, x.new_zeros(len(x), len(K))
    y, psi = y0, psi0
    for k in range(L):
        y_t = (y - tau * psi @ K - x).clamp(-ETA, ETA) + x
        psi_t = (psi + sigma * (2 * y_t - y) @ K.T).clamp(-1, 1)
        c = (k + 1) / (k + 2)
        y, psi = c * (2 * y_t - y) + (1 - c) * y0, c * (2 * psi_t - psi) + (1 - c) * psi0
    return y_t


def loss(restored, truth):
    return 0.5 * (restored - truth).square().sum()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("L", [1, 2, 7, 40])
def test_the_result_and_the_full_gradient_are_those_of_autograd(m, n, L, norm):
    K, y, x = problem(m, n)
    restored = unroll_halpern(K, x, radius=ETA, iterations=L, step_norm=norm)
    expected = halpern(K, x, L, norm=norm)
    torch.testing.assert_close(restored, expected, rtol=1e-12, atol=1e-13)
    (found,) = torch.autograd.grad(loss(restored, y), K)
    (wanted,) = torch.autograd.grad(loss(expected, y), K)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_the_gradient_is_that_of_differences():
    K, y, x = problem()
    restored = unroll_halpern(K, x, radius=ETA, iterations=9, step_norm="spectral", step_ratio=3.0)
    (found,) = torch.autograd.grad(loss(restored, y), K)
    direction = torch.randn(K.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    up, down = (loss(fixed_steps(K, K + e * direction, x, 9), y) for e in (1e-6, -1e-6))
    assert float((found * direction).sum()) == pytest.approx(float((up - down) / 2e-6), rel=1e-5)


def fixed_steps(K, moved, x, L):
    """The result for another operator with the step sizes of K."""
    sigma, tau = steps(K.detach().numpy(), 3.0, "spectral")
    y, psi = x, x.new_zeros(len(x), len(K))
    for k in range(L):
        y_t = (y - tau * psi @ moved - x).clamp(-ETA, ETA) + x
        psi_t = (psi + sigma * (2 * y_t - y) @ moved.T).clamp(-1, 1)
        c = (k + 1) / (k + 2)
        y, psi = c * (2 * y_t - y) + (1 - c) * x, c * (2 * psi_t - psi)
    return y_t.detach()


def test_it_comes_to_the_optimum_and_to_the_limit_gradient():
    K, y, x = problem()
    optimum = solve(K.detach(), x, radius=ETA, tolerance=1e-10).primal
    restored = unroll_halpern(K, x, radius=ETA, iterations=20_000, step_norm="spectral", backprop=Implicit())
    torch.testing.assert_close(restored.detach(), optimum, rtol=0, atol=1e-3)
    (found,) = torch.autograd.grad(loss(restored, y), K)
    certified = unroll_halpern(K, x, radius=ETA, iterations=1, backprop=Implicit(tolerance=1e-10))
    assert relative(found, torch.autograd.grad(loss(certified, y), K)[0]) < 0.05


@pytest.mark.parametrize("kind", ["active_set", "released"])
def test_the_truncated_gradient_freezes_the_masks_of_the_last_iteration(kind):
    K, y, x = problem(B=1)
    L, b = 30, 8
    strategy = Truncated(iterations=b, primal_mask=kind)
    restored = unroll_halpern(K, x, radius=ETA, iterations=L, backprop=strategy, step_norm="spectral")
    (found,) = torch.autograd.grad(loss(restored, y), K)

    sigma, tau = steps(K.detach().numpy(), 10.0, "spectral")
    matrix, observation = K.detach(), x[0]
    z, psi = observation, torch.zeros(len(K), dtype=torch.float64)
    for k in range(L):
        z_primal = z - tau * matrix.T @ psi
        y_t = (z_primal - observation).clamp(-ETA, ETA) + observation
        z_dual = psi + sigma * matrix @ (2 * y_t - z)
        psi_t, c = z_dual.clamp(-1, 1), (k + 1) / (k + 2)
        z, psi = c * (2 * y_t - z) + (1 - c) * observation, c * (2 * psi_t - psi)
    dual = torch.from_numpy(mask_dual(z_dual.numpy()))
    primal = torch.from_numpy(mask_primal(kind, z_primal.numpy(), observation.numpy(), ETA))
    a_y, a_psi, g = torch.zeros_like(z), torch.zeros_like(psi), y_t - y[0]
    sums = torch.zeros_like(z), torch.zeros_like(psi)
    for k in range(L - 1, L - 1 - b, -1):
        c = (k + 1) / (k + 2)
        delta_d = dual * 2 * c * a_psi
        delta_p = primal * (2 * c * a_y + g + 2 * sigma * matrix.T @ delta_d)
        a_y = -c * a_y + delta_p - sigma * matrix.T @ delta_d
        a_psi = -c * a_psi + delta_d - tau * matrix @ delta_p
        g = torch.zeros_like(g)
        sums = sums[0] + delta_p, sums[1] + delta_d
    wanted = sigma * torch.outer(sums[1], y_t) - tau * torch.outer(psi_t, sums[0])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_what_it_cannot_do_is_refused():
    K, _, x = problem()
    with pytest.raises(InputError, match="checkpoint"):
        unroll_halpern(K, x, radius=ETA, iterations=3, backprop=Full(checkpoint_every=2))
    restored = unroll_halpern(K, x, radius=ETA, iterations=3, backprop=Truncated(iterations=5))
    with pytest.raises(InputError, match="take b up to that"):
        restored.sum().backward()
