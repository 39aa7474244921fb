"""What a training costs beside its products: memory, checkpoints, Lightning, and trainings side by side.

    python benchmarks/training.py outputs/quick [--depths 10 1000]

Writes to OUTPUTS/benchmark/, where OUTPUTS/prepared has the frames:
    memory.csv  peak memory of a training step, each in a process of its own; `pdunroll verdicts` reads it
    other.csv   Full with checkpoints against without, Lightning's part of a step, and the throughput of trainings side
                by side
Steps beside those of other libraries are timed by peers.py, `solve` beside other solvers by solvers.py.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import pdunroll
from pdunroll.core.gradients import Backprop
from pdunroll.files import write_table
from pdunroll.speech.frames import load, read_manifest
from pdunroll.speech.quantizer import radius
from pdunroll.training.data import FrameData
from pdunroll.training.fit import fit
from pdunroll.training.module import UnrolledTraining

Row = dict[str, Any]
MODES: dict[str, Callable[[int], Backprop]] = {
    "full": lambda depth: pdunroll.Full(),
    "full, checkpoints": lambda depth: pdunroll.Full(checkpoint_every=round(depth**0.5)),
    "truncated": lambda depth: pdunroll.Truncated(),
    "implicit": lambda depth: pdunroll.Implicit(),
}


class Problem(NamedTuple):
    """What a training step starts from."""

    operator: Tensor  # the DCT  (m, n)
    truth: Tensor  # y  (B, n)
    observation: Tensor  # x  (B, n)
    radius: float


def random_problem(batch: int, n: int = 320, bits: int = 4) -> Problem:
    """Return random frames: reading files would raise the peak of memory beforehand."""
    truth = torch.rand(batch, n) - 0.5
    return Problem(pdunroll.dct_operator(n, n).requires_grad_(), truth, pdunroll.quantize(truth, bits), radius(bits))


def training_step(problem: Problem, depth: int, backprop: Backprop) -> Tensor:
    """Return the gradient of half the squared error of one batch."""
    K, y, x, eta = problem
    restored = pdunroll.unroll(K, x, radius=eta, iterations=depth, backprop=backprop)
    return torch.autograd.grad(0.5 * (restored - y).square().sum(), K)[0]


def memory(batch: int, depths: list[int]) -> list[Row]:
    """Return the peak memory of one training step of each mode beyond what a step at L = 1 takes."""
    rows = []
    for mode in MODES:
        for depth in depths:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a process of its own
                megabytes = pool.submit(peak, mode, batch, depth).result()
            rows.append({"mode": mode, "batch": batch, "l": depth, "peak_mb": megabytes})
    return rows


def peak(mode: str, batch: int, depth: int) -> float:
    """Return by how much a step raises this process's peak resident memory, MB."""
    torch.set_num_threads(1)
    given = random_problem(batch)
    training_step(given, 1, MODES[mode](1))
    before = peak_resident()
    training_step(given, depth, MODES[mode](depth))
    return (peak_resident() - before) / 1e6


def peak_resident() -> int:
    """Return the peak resident memory of this process, bytes; getrusage would tell the parent process's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def checkpoints(depth: int, rounds: int) -> Row:
    """Return the time of Full with checkpoints over that without."""
    given = random_problem(32)
    times: dict[str, list[float]] = {"full": [], "full, checkpoints": []}
    for _ in range(rounds):
        for mode in times:
            timer = Timer("f()", globals={"f": partial(training_step, given, depth, MODES[mode](depth))})
            times[mode].append(timer.timeit(2).median)
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    return entry(f"full with checkpoint_every={round(depth**0.5)} against without, L={depth}", ratio, "times")


def lightning(prepared: Path, bits: int, rounds: int, steps: int = 300) -> Row:
    """Return the time of a step of `fit` less that in a bare loop, at L = 1: it does not depend on L.

    The shortest of some turns each: whatever else the machine does comes on top.
    """
    train, validation = load(prepared, "train"), load(prepared, "validation")
    times: dict[str, list[float]] = {"bare": [], "lightning": []}
    logging.disable(logging.WARNING)  # what `fit` says
    for _ in range(rounds):
        data = FrameData(train, validation, train_frames=32 * steps)
        bare, fitted = (
            UnrolledTraining(frame_length=train.truth.shape[1], radius=radius(bits), iterations=1) for _ in range(2)
        )
        truth, observation = data.train.tensors
        optimizer = torch.optim.Adam(bare.parameters(), lr=1e-6, fused=True)
        start = time.perf_counter()
        for chunk in torch.arange(data.frames_per_pass).split(32):
            loss = 0.5 * (bare(observation[chunk]) - truth[chunk]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        times["bare"].append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            times["lightning"].append(fit(fitted, data, Path(folder), epochs=1, title="benchmark").seconds)
    logging.disable(logging.NOTSET)
    difference = min(times["lightning"]) - min(times["bare"])
    return entry("Lightning's part of a step", 1e3 * difference / data.steps_per_pass, "ms")


def side_by_side(jobs: int) -> Row:
    """Return the throughput of several trainings at L = 100, a process and a thread each, against one."""
    seconds = {}
    for number in (1, jobs):
        with ProcessPoolExecutor(number, get_context("spawn")) as pool:
            list(pool.map(work, number * [1]))  # start the processes
            start = time.perf_counter()
            list(pool.map(work, number * [100]))
            seconds[number] = time.perf_counter() - start
    return entry(f"throughput of {jobs} trainings side by side against 1", jobs * seconds[1] / seconds[jobs], "times")


def work(steps: int) -> None:
    """Take some training steps, as a job of a sweep does."""
    torch.set_num_threads(1)
    given = random_problem(32)
    for _ in range(steps):
        training_step(given, 100, pdunroll.Full())


def entry(what: str, value: float, unit: str) -> Row:
    """Return a row of other.csv, and print it."""
    print(f"{what}: {value:.3g} {unit}", flush=True)
    return {"what": what, "value": value, "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path, help="an experiment's folder, with the frames in prepared/")
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 1000], help="L; the last also of the checkpoints")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder, prepared, depth = given.outputs / "benchmark", given.outputs / "prepared", given.depths[-1]
    bits = read_manifest(prepared)["settings"]["bits"]
    rows = memory(32, given.depths)
    write_table(folder / "memory.csv", rows)
    for row in rows:
        print(f"{row['mode']}, L={row['l']}: {row['peak_mb']:.1f} MB", flush=True)
    other = [checkpoints(depth, given.rounds), lightning(prepared, bits, given.rounds), side_by_side(given.jobs)]
    write_table(folder / "other.csv", other)


if __name__ == "__main__":
    main()
