"""The shortest time of a training step, beside that of its products alone.

    python benchmarks/steps.py outputs/quick/prepared

Prints, for each product of `core.engine` and each L, the minimum over many steps in ms (norm, iterations, gradient,
Adam; released mask, batch 32, one thread) and its ratio to 6 L or 2 L + 2 min(b, L) products.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import pdunroll
from pdunroll.core.compiled import compiled_loops
from pdunroll.speech.frames import load

BATCH, ETA = 32, 1 / 16


def shortest(call: Callable[[], None], repeats: int) -> float:
    """Return the least of many times of a call, in ms."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    torch.set_num_threads(1)
    frames = load(Path(sys.argv[1]), "validation")
    nontrivial = (np.abs(frames.observation) > ETA).any(axis=1)
    y, x = (torch.from_numpy(part[nontrivial][:BATCH]) for part in (frames.truth, frames.observation))
    K = pdunroll.dct_operator(320, 320).requires_grad_()
    optimizer = torch.optim.Adam([K], lr=1e-6, fused=True)

    def step(L: int, backprop: pdunroll.Backprop) -> None:
        optimizer.zero_grad()
        restored = pdunroll.unroll(K, x, radius=ETA, iterations=L, backprop=backprop)
        (0.5 * (restored - y).square().sum()).backward()
        optimizer.step()

    loops, products = compiled_loops()
    matrix, out = K.detach().numpy().copy(), np.empty((BATCH, 320), np.float32)
    one = min(
        shortest(lambda n=number: loops.multiply(n, out, x.numpy(), matrix, np.float32(1)), 3000)
        for number in products.values()
    )
    for product in products:
        os.environ["PDUNROLL_PRODUCT"] = product
        for L in (10, 30, 100, 300):
            line = [product, f"L = {L}"]
            for kind, count in ((pdunroll.Full, 6 * L), (pdunroll.Truncated, 2 * L + 2 * min(30, L))):
                ms = shortest(lambda L=L, kind=kind: step(L, kind(primal_mask="released")), max(4, 600 // L))
                line.append(f"{kind.__name__} {ms:.2f} ({ms / (count * one):.2f})")
            print(*line, sep="   ")


if __name__ == "__main__":
    main()
