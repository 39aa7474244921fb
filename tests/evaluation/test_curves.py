"""The closed form of settled iterates and the early leave from an evaluation, against iterating on."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from oracles import ETA, problem
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.closed_form import iterates_after, masks_are_final, vertex
from pdunroll.core.problem import Box
from pdunroll.evaluation import curves as inference


def test_frames_with_final_masks_continue_in_closed_form():
    settled, premature = 0, 0
    for seed in range(6):
        operator, _, x = problem(20, 20, B=6, seed=seed)
        K = operator.detach()
        algorithm = chambolle_pock(K, radius=ETA)
        iterates = list(islice(algorithm.iterates(K, x), 6000))
        masks = [algorithm.problem.free_masks(it.z_dual, it.z_primal, x) for it in iterates]
        for frame in range(len(x)):
            changes = [
                l
                for l in range(1, len(masks))
                if any((a[frame] != b[frame]).any() for a, b in zip(masks[l], masks[l - 1], strict=True))
            ]
            for l in range(100, 5000, 100):
                now, before = iterates[l], iterates[l - 1].primal[frame]
                mask = type(masks[l])(*(part[frame] for part in masks[l]))
                found = vertex(algorithm, K, x[frame], mask, now.primal[frame], now.dual[frame])
                if found is None or not masks_are_final(algorithm, found, before, now.primal[frame], now.dual[frame]):
                    premature += not changes or changes[-1] <= l
                    continue
                assert not changes or changes[-1] <= l, "the masks were called final, but one changed later"
                steps = torch.tensor([1, 2, 10, 999])
                y, psi = iterates_after(algorithm, found, before, now.primal[frame], steps)
                for row, k in enumerate(steps.tolist()):
                    torch.testing.assert_close(y[row], iterates[l + k].primal[frame], rtol=0, atol=1e-9)
                    torch.testing.assert_close(psi[row], iterates[l + k].dual[frame], rtol=0, atol=1e-9)
                settled += 1
                break
    assert settled >= 10  # else nothing has been tested
    assert premature  # nor would it have been if all were called settled at once


@pytest.mark.parametrize("theta", [1.0, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_curve_is_that_of_the_plain_loop(theta, dtype, monkeypatch):
    operator, truth, x = problem(20, 20, B=9, seed=3, dtype=dtype)
    x[4] = ETA * torch.sign(x[4])  # a trivial frame
    K = operator.detach()
    algorithm = chambolle_pock(K, radius=ETA, extrapolation=theta)
    assert algorithm.problem.trivial(x).any()
    grid = [1, 2, 50, 199, 200, 201, 1000, 5000]
    left = []
    monkeypatch.setattr(inference, "iterates_after", lambda *a: (left.append(1), iterates_after(*a))[1])
    errors, gaps = inference.error_curve(algorithm, K, truth, x, grid, batch_size=4)
    iterates = list(islice(algorithm.iterates(K, x), grid[-1]))
    expected = np.stack([(iterates[l - 1].primal - truth).square().mean(dim=1).numpy() for l in grid])
    np.testing.assert_allclose(errors, expected, rtol=2e-5 if dtype == torch.float32 else 1e-9)
    np.testing.assert_allclose(errors.mean(axis=1), expected.mean(axis=1), rtol=1e-6)
    assert (gaps >= 0).all()
    assert bool(left) == (theta == 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_curve_on_a_gpu_is_that_on_the_cpu():
    operator, truth, x = problem(20, 20, B=9, seed=3)
    grid = [1, 2, 50, 199, 200, 201, 1000, 5000]

    def curve(device):
        K, y, box = operator.detach().to(device), truth.to(device), Box.around(x, ETA).to(device)
        return inference.error_curve(chambolle_pock(K, radius=ETA), K, y, box, grid, batch_size=4)

    for here, there in zip(curve("cpu"), curve("cuda"), strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-12)
