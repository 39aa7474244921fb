"""How fast, beside the machine's limit and what one would pick instead.  python -m pdunroll benchmark [experiment=...]

On prepared test frames, all in one process and in turns, medians over rounds. Writes to outputs/<name>/benchmark/:
    steps.csv   ms of a training step (forward and gradient) over L, batch size, threads and mode
    memory.csv  its peak memory, each in a process of its own
    other.csv   solving to a certificate, checkpoints, Lightning's part of a step, trainings side by side, a GPU
and steps.png, .svg. The limit is the time of the products alone, 6 L of them for the full gradient and 2 L + 2 b for
the truncated one, at the best float32 rate that any size and any library reached in the same run.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, Config, one_line_errors, settings

if TYPE_CHECKING:
    from torch import Tensor

    from pdunroll.core.engine import Engine
    from pdunroll.core.gradients import Backprop

log = logging.getLogger(__name__)

Step = Callable[[], Any]
Row = dict[str, Any]
B_TRUNCATED = 30
CHECKPOINTS = "full, checkpoints"  # every sqrt(L)-th state


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        measure(settings(cfg))


def measure(config: Config) -> None:
    """Measure, print and write everything."""
    import torch

    from pdunroll.files import write_table
    from pdunroll.training.run_folder import origin

    options = config.benchmark
    folder = config.outputs / "benchmark"
    steps = [
        row
        for threads in options.threads
        for batch in options.batches
        for row in step_times(config, batch, options.depths, threads, options.rounds)
    ]
    write_table(folder / "steps.csv", steps)
    report_steps(steps)
    memory = peaks(config, options.batches[0], (min(options.depths), max(options.depths)))
    write_table(folder / "memory.csv", memory)
    report(memory)
    other = [*checkpoints(config), *certificates(config), *lightning(config), *side_by_side(config, options.jobs)]
    if torch.cuda.is_available():
        other += on_gpu(config)
    write_table(folder / "other.csv", other)
    report(other)
    draw(
        steps, folder / "steps", f"{origin('benchmark', config.name, config.data.name, config.prepared)}   {machine()}"
    )


class Problem(NamedTuple):
    """What a training step starts from."""

    operator: Tensor  # (m, n), the DCT
    truth: Tensor  # y  (B, n)
    observation: Tensor  # x  (B, n)
    radius: float
    step_norm: str = "frobenius"


def problem(config: Config, count: int) -> Problem:
    """The DCT and the first `count` nontrivial test frames (some twice if there are fewer)."""
    import torch

    from pdunroll.core.problem import Dequantization, dct_operator
    from pdunroll.speech.frames import load
    from pdunroll.speech.quantizer import radius

    half_step = radius(config.data.bits)
    test = load(config.prepared, "test")
    truth, observation = torch.from_numpy(test.truth), torch.from_numpy(test.observation)
    hard = (~Dequantization(half_step).trivial(observation)).nonzero()[:, 0]
    chosen = hard.repeat(-(-count // len(hard)))[:count]
    operator = dct_operator(*config.shape)
    return Problem(operator.requires_grad_(), truth[chosen], observation[chosen], half_step, config.network.step_norm)


def training_step(problem: Problem, depth: int, backprop: Backprop) -> Step:
    """Forward and gradient of one batch through `unroll`."""
    import torch

    from pdunroll.core.gradients import unroll

    operator, y, x, radius, step_norm = problem

    def step() -> Tensor:
        restored = unroll(operator, x, radius=radius, iterations=depth, backprop=backprop, step_norm=step_norm)
        return torch.autograd.grad(0.5 * (restored - y).square().sum(), operator)[0]

    return step


def autograd_step(problem: Problem, depth: int, *, compiled: bool = False) -> Step:
    """What one would write without this package: the loop in differentiable operations, the step compiled or not."""
    import torch

    from pdunroll.core.chambolle_pock import chambolle_pock

    K, y, x, eta, step_norm = problem
    algorithm = chambolle_pock(K, radius=eta, step_norm=step_norm)
    sigma, tau = algorithm.sigma, algorithm.tau

    def iteration(primal: Tensor, extrapolated: Tensor, dual: Tensor, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dual = (dual + sigma * extrapolated @ K.T).clamp(-1, 1)
        following = (primal - tau * dual @ K - x).clamp(-eta, eta) + x
        return following, 2 * following - primal, dual

    turn = torch.compile(iteration) if compiled else iteration

    def step() -> Tensor:
        primal, extrapolated, dual = x, x, x.new_zeros(len(x), len(K))
        for _ in range(depth):
            primal, extrapolated, dual = turn(primal, extrapolated, dual, K)
        return torch.autograd.grad(0.5 * (primal - y).square().sum(), K)[0]

    return step


def modes() -> dict[str, Callable[[Problem, int], Step]]:
    """What is compared: a training step for a batch and L."""
    from shutil import which

    from pdunroll.core.gradients import Full, Truncated
    from pdunroll.core.implicit import Implicit

    found: dict[str, Callable[[Problem, int], Step]] = {
        "full": partial(training_step, backprop=Full()),
        "truncated": partial(training_step, backprop=Truncated(iterations=B_TRUNCATED)),
        "implicit": partial(training_step, backprop=Implicit()),
        "autograd": autograd_step,
    }
    if which("c++") or which("g++") or which("clang++"):  # torch.compile needs one on CPUs
        found["compiled"] = partial(autograd_step, compiled=True)
    return found


def step_times(config: Config, batch: int, depths: list[int], threads: int, rounds: int) -> list[Row]:
    """Medians over rounds in which all modes and depths take turns, and the limit from the same rounds."""
    import torch

    torch.set_num_threads(threads)
    given = problem(config, batch)
    m, n = given.operator.shape
    steps = {(mode, depth): make(given, depth) for mode, make in modes().items() for depth in depths}
    for step in steps.values():
        step()  # what is measured, compiled or allocated at first use
    times: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    rate = 0.0
    for _ in range(rounds):
        rate = max(rate, product_rate(m, n))
        for key, step in steps.items():
            times[key].append(timed(step))
    rows = []
    for (mode, depth), values in times.items():
        limit = products(mode, depth) * 2 * batch * m * n / rate
        median = statistics.median(values)
        rows.append({
            "threads": threads, "batch": batch, "l": depth, "mode": mode, "ms": 1e3 * median, "limit_ms": 1e3 * limit,
            "ratio": median / limit, "gflops": rate / 1e9,
        })  # fmt: skip
    return rows


def products(mode: str, depth: int) -> int:
    """How many products of a batch with an operator a training step needs."""
    return {"truncated": 2 * depth + 2 * B_TRUNCATED, "implicit": 2 * depth}.get(mode, 6 * depth)


def product_rate(m: int, n: int, device: str = "cpu") -> float:
    """Return the best rate of a float32 product of frames with an operator over sizes and libraries, in FLOP/s."""
    import torch

    from pdunroll.core.chambolle_pock import chambolle_pock
    from pdunroll.core.engine import CompiledEngine, Engine, compiled_loops

    best = 0.0
    for rows in (32, 128, 512, 2048):
        operator, base, x = (torch.randn(*shape, device=device) for shape in ((m, n), (rows, m), (rows, n)))
        algorithm = chambolle_pock(operator, radius=1.0)
        engines: list[Engine] = [Engine(algorithm)]
        if device == "cpu":
            engines += [CompiledEngine(algorithm, product) for product in compiled_loops()[1]]
        for engine in engines:
            repeats = max(1, 2048 // rows)
            for _ in range(3):
                seconds = timed(lambda: [engine.product(base, x, operator, 1.0) for _ in range(repeats)], device)  # noqa: B023
                best = max(best, 2 * rows * m * n * repeats / seconds)
    return best


def peaks(config: Config, batch: int, depths: tuple[int, int]) -> list[Row]:
    """Peak memory of one training step beyond what a step at L = 1 takes."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    rows = []
    for mode in (*modes(), CHECKPOINTS):
        for depth in depths:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a process of its own
                megabytes = pool.submit(peak, config, mode, batch, depth).result()
            rows.append({"mode": mode, "batch": batch, "l": depth, "peak_mb": megabytes})
    return rows


def peak(config: Config, mode: str, batch: int, depth: int) -> float:
    """By how much a step raises this process's peak resident memory, MB."""
    import torch

    from pdunroll.core.gradients import Full
    from pdunroll.core.problem import dct_operator
    from pdunroll.speech import quantizer

    n = config.data.frame_length
    operator = dct_operator(*config.shape).requires_grad_()
    truth = torch.rand(batch, n) - 0.5  # reading files would raise the peak before
    bits = config.data.bits
    given = Problem(operator, truth, quantizer.quantize(truth, bits), quantizer.radius(bits), config.network.step_norm)

    def make(depth: int) -> Step:
        if mode == CHECKPOINTS:
            return training_step(given, depth, Full(checkpoint_every=round(depth**0.5)))
        return modes()[mode](given, depth)

    torch.set_num_threads(1)
    make(1)()
    step = make(depth)
    before = peak_resident()
    step()
    return (peak_resident() - before) / 1e6


def peak_resident() -> int:
    """Return the peak resident memory of this process, in bytes."""
    import resource
    import sys

    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says on Linux has been inherited from the parent process
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def checkpoints(config: Config) -> list[Row]:
    """Full with checkpoints against without."""
    import torch

    from pdunroll.core.gradients import Full

    torch.set_num_threads(1)
    depth, batch = max(config.benchmark.depths), config.benchmark.batches[0]
    every = round(depth**0.5)
    given = problem(config, batch)
    plain, checked = (training_step(given, depth, Full(checkpoint_every=s)) for s in (None, every))
    pairs = [(timed(plain), timed(checked)) for _ in range(config.benchmark.rounds + 1)][1:]
    ratio = statistics.median(b / a for a, b in pairs)
    return [entry(f"full with checkpoint_every={every} against without, L={depth}", ratio, "times")]


def certificates(config: Config) -> list[Row]:
    """Solve nontrivial frames to a relative gap of 1e-6."""
    import torch

    from pdunroll.core.solve import solve

    torch.set_num_threads(1)
    count = config.benchmark.frames
    given = problem(config, count)
    start = time.perf_counter()
    found = solve(given.operator, given.observation, radius=given.radius, tolerance=1e-6)
    seconds = time.perf_counter() - start
    return [
        entry(f"solve to 1e-6, {count} nontrivial frames: time", seconds, "s"),
        entry("solve to 1e-6: median iterations", float(found.iterations.double().median()), ""),
        entry("solve to 1e-6: frames certified", 100 * float((found.gap <= 1e-6).double().mean()), "%"),
    ]


def lightning(config: Config) -> list[Row]:
    """A step of `fit` less the same step in a bare loop, at L = 1: it does not depend on L, what else there is does.

    The shortest of some turns each: whatever else the machine does comes on top.
    """
    import tempfile

    import torch

    from pdunroll.speech.frames import load
    from pdunroll.training.data import FrameData
    from pdunroll.training.fit import fit

    torch.set_num_threads(1)
    steps = 300
    train, validation = load(config.prepared, "train"), load(config.prepared, "validation")
    times: dict[str, list[float]] = {"bare": [], "lightning": []}
    for _ in range(2 * config.benchmark.rounds):
        data = FrameData(train, validation, train_frames=32 * steps)
        bare, (truth, observation) = module(config).network, data.train.tensors
        optimizer = torch.optim.Adam(bare.parameters(), lr=1e-6, fused=True)
        start = time.perf_counter()
        for chunk in torch.arange(data.frames_per_pass).split(32):
            loss = 0.5 * (bare(observation[chunk]) - truth[chunk]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        times["bare"].append(time.perf_counter() - start)
        logging.disable(logging.WARNING)  # what `fit` says
        with tempfile.TemporaryDirectory() as folder:
            history = fit(module(config), data, Path(folder), epochs=1, title="benchmark")
        logging.disable(logging.NOTSET)
        times["lightning"].append(history.seconds)
    difference = min(times["lightning"]) - min(times["bare"])
    return [entry("Lightning's part of a step", 1e3 * difference / data.steps_per_pass, "ms")]


def module(config: Config) -> Any:
    from pdunroll.speech.quantizer import radius
    from pdunroll.training.module import UnrolledTraining

    rows, n = config.shape
    return UnrolledTraining(
        rows=rows, frame_length=n, radius=radius(config.data.bits), iterations=1, step_norm=config.network.step_norm
    )


def side_by_side(config: Config, jobs: int) -> list[Row]:
    """Throughput of several trainings at L = 100, a process and a thread each, against one."""
    from joblib import Parallel, delayed

    seconds = {}
    for number in (1, jobs):
        with Parallel(n_jobs=number) as parallel:
            parallel(delayed(work)(config, 1) for _ in range(number))  # start the processes
            start = time.perf_counter()
            parallel(delayed(work)(config, 100) for _ in range(number))
            seconds[number] = time.perf_counter() - start
    return [entry(f"throughput of {jobs} trainings side by side against 1", jobs * seconds[1] / seconds[jobs], "times")]


def on_gpu(config: Config, device: str = "cuda") -> list[Row]:
    """Forward pass and gradient at the largest L, by graphs and kernel by kernel, and the limit. Untested on CUDA."""
    from pdunroll.core.chambolle_pock import chambolle_pock
    from pdunroll.core.engine import Engine, GraphedEngine
    from pdunroll.core.gradients import Full, Truncated

    depth, rows = max(config.benchmark.depths), []
    for batch in config.benchmark.batches:
        given = problem(config, batch)
        K, y, x = (tensor.detach().to(device) for tensor in given[:3])
        algorithm = chambolle_pock(K, radius=given.radius, step_norm=given.step_norm)
        kinds = {"by graphs": GraphedEngine(algorithm), "kernel by kernel": Engine(algorithm)}
        rate = product_rate(*K.shape, device)
        for mode, backprop in {"full": Full(), "truncated": Truncated(iterations=B_TRUNCATED)}.items():

            def step(
                kind: Engine, backprop: Backprop = backprop, K: Tensor = K, y: Tensor = y, x: Tensor = x
            ) -> Tensor:
                primal, kept = backprop.forward(kind, K, x, depth)
                return backprop.gradient(kind, K, kept, depth, primal - y)

            times: dict[str, list[float]] = {name: [] for name in kinds}
            for _ in range(config.benchmark.rounds + 1):  # the first one captures
                for name, kind in kinds.items():
                    times[name].append(timed(partial(step, kind), device))
            what = f"{device}, {mode}, L={depth}, batch {batch}"
            limit = products(mode, depth) * 2 * batch * K.numel() / rate
            rows.append(entry(f"{what}: limit", 1e3 * limit, "ms"))
            rows += [entry(f"{what}, {name}", 1e3 * statistics.median(t[1:]), "ms") for name, t in times.items()]
    return rows


def work(config: Config, steps: int) -> None:
    """Some training steps, as a job of a sweep takes them."""
    import torch

    from pdunroll.core.gradients import Full

    torch.set_num_threads(1)
    step = training_step(problem(config, 32), 100, Full())
    for _ in range(steps):
        step()


def timed(call: Step, device: str = "cpu") -> float:
    start = time.perf_counter()
    call()
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - start


def entry(what: str, value: float, unit: str) -> Row:
    return {"what": what, "value": value, "unit": unit}


def machine() -> str:
    """The CPU's name as the system gives it, and torch's version."""
    import os
    import platform
    from importlib.metadata import version

    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, torch {version('torch')}"


def report_steps(rows: list[Row]) -> None:
    """ms (ratio to the limit) of each mode, a line for each size."""
    names = list(dict.fromkeys(row["mode"] for row in rows))
    print(f"\nms of a training step, and its ratio to the limit; {machine()}")
    print(f"{'threads':>7}{'batch':>7}{'L':>6}" + "".join(f"{name:>18}" for name in names))
    for size in dict.fromkeys((row["threads"], row["batch"], row["l"]) for row in rows):
        cells = [row for row in rows if (row["threads"], row["batch"], row["l"]) == size]
        line = "".join(f"{cell['ms']:>10.1f} ({cell['ratio']:.2f})".rjust(18) for cell in cells)
        print(f"{size[0]:>7}{size[1]:>7}{size[2]:>6}{line}")


def report(rows: list[Row]) -> None:
    """A small table as it is."""
    print()
    for row in rows:
        print("  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))


def draw(rows: list[Row], stem: Path, origin: str) -> None:
    """Ratio to the limit over L, a panel for each batch size and number of threads."""
    import matplotlib.pyplot as plt

    from pdunroll.report.style import save, set_style

    set_style()
    panels = list(dict.fromkeys((row["threads"], row["batch"]) for row in rows))
    size = (3.4 * len(panels), 3.2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (threads, batch) in zip(axes[0], panels, strict=True):
        mine = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
        for mode in dict.fromkeys(row["mode"] for row in mine):
            points = [row for row in mine if row["mode"] == mode]
            axis.plot([row["l"] for row in points], [row["ratio"] for row in points], marker="o", ms=3, label=mode)
        axis.set(xscale="log", yscale="log", xlabel="L", title=f"batch {batch}, {threads} thread{'s'[: threads > 1]}")
        axis.axhline(1.0, color="0.4", lw=0.8)
    axes[0][0].set_ylabel("time / limit")
    axes[0][-1].legend(fontsize=7)
    save(figure, stem, origin)
