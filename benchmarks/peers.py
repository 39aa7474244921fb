"""A training step beside what one would write instead: TensorFlow, JAX, torch autograd and torch.compile.

    python benchmarks/peers.py outputs/quick/prepared docs/peers.csv [--python tensorflow=PYTHON --python jax=PYTHON]
    python benchmarks/peers.py random docs/peers_gpu.csv --device cuda

A step is the whole of it: the Frobenius norm and the step sizes, L iterations of Algorithm 1, the gradient of half the
summed squared error (released mask; truncated with b = min(L, 30)), and Adam. Every implementation runs in a process of
its own, pinned to the same cores; the processes take turns, so that all meet the same machine. Each first shows its
gradient, which is compared with ours. Writes one row for each implementation, mode, L, batch size and number of
threads: ms (median over all steps), ratio to ours, ratio to the limit, peak memory and the gradient's distance.

The limit is the time of the products alone: 6 L or 2 L + 2 b of them at the best rate that ours reaches in the run.
On a GPU, TensorFlow is left out, and all products are of float32 numbers as they are, which JAX would round. `random`
in the place of a folder of prepared frames takes random ones.

TensorFlow and JAX come with `pip install -e '.[peers]'`, or from the interpreters that --python names.
"""

from __future__ import annotations

import argparse
import base64
import os
import pickle
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

RATE, ETA, B_TRUNCATED = 1e-5, 1 / 16, 30
Step = Callable[[], None]
Made = tuple[Step, Callable[[], Any]]  # a step, and the gradient at the first operator


def ours(K0: Any, y: Any, x: Any, mode: str, L: int, threads: int, device: str) -> Made:
    import torch

    import pdunroll

    torch.set_num_threads(threads)
    K, y, x = (torch.tensor(array, device=device) for array in (K0, y, x))
    K.requires_grad_()
    kinds = {"full": pdunroll.Full, "truncated": pdunroll.Truncated}
    backprop = kinds[mode](primal_mask="released")
    return by_autograd(K, y, lambda: pdunroll.unroll(K, x, radius=ETA, iterations=L, backprop=backprop))


def ours_without_graphs(*given: Any) -> Made:
    """Kernel by kernel on a GPU, in the place of CUDA graphs."""
    os.environ["PDUNROLL_GRAPHS"] = "off"
    return ours(*given)


def by_autograd(K: Any, y: Any, restored: Callable[[], Any]) -> Made:
    """The step of a forward pass in torch, which autograd differentiates, with torch's Adam."""
    import torch

    optimizer = torch.optim.Adam([K], lr=RATE, eps=1e-7, fused=True)

    def backward() -> None:
        optimizer.zero_grad()
        (0.5 * (restored() - y).square().sum()).backward()

    def step() -> None:
        backward()
        optimizer.step()
        if K.is_cuda:
            torch.cuda.synchronize()

    def gradient() -> Any:
        backward()
        return K.grad.cpu().numpy().copy()

    return step, gradient


def torch_autograd(
    K0: Any, y: Any, x: Any, mode: str, L: int, threads: int, device: str, compiled: bool = False
) -> Made:
    """The loop in differentiable operations; of the released mask only L = 10 has (nearly) this gradient."""
    import torch

    torch.set_num_threads(threads)
    K, y, x = (torch.tensor(array, device=device) for array in (K0, y, x))
    K.requires_grad_()

    def iteration(primal: Any, bar: Any, dual: Any, K: Any, sigma: Any, tau: Any) -> Any:
        dual = (dual + sigma * bar @ K.T).clamp(-1, 1)
        following = (primal - tau * dual @ K - x).clamp(-ETA, ETA) + x
        return following, 2 * following - primal, dual

    turn = torch.compile(iteration) if compiled else iteration

    def restored() -> Any:
        with torch.no_grad():
            norm = torch.linalg.vector_norm(K)
            sigma, tau = 9.9 / norm, 0.099 / norm
        primal, bar, dual = x, x, x.new_zeros(len(x), len(K))
        for _ in range(L):
            primal, bar, dual = turn(primal, bar, dual, K, sigma, tau)
        return primal

    return by_autograd(K, y, restored)


def torch_compile(*given: Any) -> Made:
    return torch_autograd(*given, compiled=True)


def tensorflow(K0: Any, y: Any, x: Any, mode: str, L: int, threads: int, device: str, pairs: bool = False) -> Made:
    """`tf.function` over unrolled loops; an outer product an iteration, or (`pairs`) one pair of them at the end."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    K, m = tf.Variable(K0), tf.Variable(tf.zeros_like(K0))
    v, count = tf.Variable(tf.zeros_like(K0)), tf.Variable(0.0)
    y, x = tf.constant(y), tf.constant(x)
    B, b = len(K0), min(L, B_TRUNCATED)

    def gradient_of() -> Any:
        norm = tf.norm(K)
        sigma, tau = 9.9 / norm, 0.099 / norm
        primal, bar, dual = x, x, tf.zeros((len(x), B))
        tape = []
        for _ in range(L):
            before = primal, bar
            z_dual = dual + sigma * tf.matmul(bar, K, transpose_b=True)
            dual = tf.clip_by_value(z_dual, -1.0, 1.0)
            z_primal = primal - tau * tf.matmul(dual, K)
            primal = tf.clip_by_value(z_primal, x - ETA, x + ETA)
            bar = 2 * primal - before[0]
            tape.append(
                (
                    tf.cast(abs(z_dual) <= 1, tf.float32),
                    tf.cast(abs(z_primal - 2 * x) <= 1, tf.float32),
                    before[1],
                    dual,
                )
            )
        steps = tape[::-1] if mode == "full" else [(*tape[-1][:2], primal, dual)] * b
        delta_primal, delta_dual, delta_bar = primal - y, tf.zeros_like(dual), tf.zeros_like(dual)
        total, lefts, rights = tf.zeros_like(K), [], []
        sums = tf.zeros_like(dual), tf.zeros_like(primal)
        for mask_dual, mask_primal, bar, dual in steps:
            delta_primal = mask_primal * (delta_primal + sigma * tf.matmul(delta_bar, K))
            following = mask_dual * (delta_dual - tau * tf.matmul(delta_primal, K, transpose_b=True))
            delta_bar, delta_dual = 2 * following - delta_dual, following
            if not pairs:
                total += sigma * tf.matmul(delta_dual, bar, transpose_a=True)
                total -= tau * tf.matmul(dual, delta_primal, transpose_a=True)
            elif mode == "truncated":
                sums = sums[0] + delta_dual, sums[1] + delta_primal
            else:
                lefts += [sigma * delta_dual, -tau * dual]
                rights += [bar, delta_primal]
        if pairs and mode == "truncated":
            total = sigma * tf.matmul(sums[0], primal, transpose_a=True) - tau * tf.matmul(
                dual, sums[1], transpose_a=True
            )
        elif pairs:
            total = tf.matmul(tf.concat(lefts, 0), tf.concat(rights, 0), transpose_a=True)
        return total

    @tf.function
    def update() -> None:
        grad = gradient_of()
        count.assign_add(1.0)
        m.assign(0.9 * m + 0.1 * grad)
        v.assign(0.999 * v + 0.001 * grad * grad)
        scale = tf.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        K.assign_sub(RATE * scale * m / (tf.sqrt(v) + 1e-7))

    once = tf.function(gradient_of)
    return lambda: update(), lambda: once().numpy()


def tensorflow_pairs(*given: Any) -> Made:
    return tensorflow(*given, pairs=True)


def jax(K0: Any, y: Any, x: Any, mode: str, L: int, threads: int, device: str, autodiff: bool = False) -> Made:
    """Jit of lax.scan; Algorithm 2 written out, or by JAX's own differentiation (`autodiff`, the formula's mask)."""
    if device == "cpu":
        os.environ["XLA_FLAGS"] = (
            f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}"
        )
    os.environ["JAX_PLATFORMS"] = device
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax.numpy as jnp
    from jax import grad as differentiate
    from jax import jit, lax

    y, x, b = jnp.asarray(y), jnp.asarray(x), min(L, B_TRUNCATED)

    def forward(K: Any, keep: bool) -> Any:
        norm = lax.stop_gradient(jnp.sqrt((K * K).sum()))
        sigma, tau = 9.9 / norm, 0.099 / norm

        def iteration(state: Any, _: Any) -> Any:
            primal, bar, dual = state
            z_dual = dual + sigma * bar @ K.T
            dual = jnp.clip(z_dual, -1, 1)
            z_primal = primal - tau * dual @ K
            following = jnp.clip(z_primal, x - ETA, x + ETA)
            kept = (abs(z_dual) <= 1, abs(z_primal - 2 * x) <= 1, bar, dual)
            return (following, 2 * following - primal, dual), kept if keep else None

        start = (x, x, jnp.zeros((len(x), len(K)), jnp.float32))
        if keep or autodiff:
            return (*lax.scan(iteration, start, None, length=L), sigma, tau)
        state, _ = lax.scan(iteration, start, None, length=L - 1)
        primal, bar, dual = state
        z_dual = dual + sigma * bar @ K.T
        dual = jnp.clip(z_dual, -1, 1)
        z_primal = primal - tau * dual @ K
        primal = jnp.clip(z_primal, x - ETA, x + ETA)
        return (primal, None, dual), (abs(z_dual) <= 1, abs(z_primal - 2 * x) <= 1), sigma, tau

    def adjoint(K: Any, sigma: Any, tau: Any, state: Any, masks: Any) -> Any:
        delta_primal, delta_dual, bar = state
        delta_primal = masks[1] * (delta_primal + sigma * bar @ K)
        following = masks[0] * (delta_dual - tau * delta_primal @ K.T)
        return delta_primal, following, 2 * following - delta_dual

    def gradient_of(K: Any) -> Any:
        if autodiff:
            return differentiate(lambda K: 0.5 * ((forward(K, False)[0][0] - y) ** 2).sum())(K)
        (primal, _, dual), kept, sigma, tau = forward(K, mode == "full")
        zero = jnp.zeros_like(dual)
        if mode == "truncated":

            def body(carry: Any, _: Any) -> Any:
                state, sums = carry
                state = adjoint(K, sigma, tau, state, kept)
                return (state, (sums[0] + state[0], sums[1] + state[1])), None

            (_, sums), _ = lax.scan(body, ((primal - y, zero, zero), (jnp.zeros_like(x), zero)), None, length=b)
            return sigma * sums[1].T @ primal - tau * dual.T @ sums[0]

        def back(state: Any, kept: Any) -> Any:
            state = adjoint(K, sigma, tau, state, kept[:2])
            return state, state[:2]

        _, (delta_primal, delta_dual) = lax.scan(back, (primal - y, zero, zero), kept, reverse=True)
        flat = (-1, K.shape[0]), (-1, K.shape[1])
        return sigma * delta_dual.reshape(flat[0]).T @ kept[2].reshape(flat[1]) - tau * kept[3].reshape(
            flat[0]
        ).T @ delta_primal.reshape(flat[1])

    @jit
    def update(K: Any, m: Any, v: Any, count: Any) -> Any:
        grad = gradient_of(K)
        count, m, v = count + 1, 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad * grad
        scale = jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        return K - RATE * scale * m / (jnp.sqrt(v) + 1e-7), m, v, count

    state = [jnp.asarray(K0), jnp.zeros_like(K0), jnp.zeros_like(K0), jnp.float32(0)]

    def step() -> None:
        state[:] = update(*state)
        state[0].block_until_ready()

    return step, lambda: np.asarray(jit(gradient_of)(jnp.asarray(K0)))


def jax_autodiff(*given: Any) -> Made:
    return jax(*given, autodiff=True)


# name -> what makes a step, the package it needs, the modes that it has and its devices
PEERS: dict[str, tuple[Callable[..., Made], str, tuple[str, ...], tuple[str, ...]]] = {
    "ours": (ours, "pdunroll", ("full", "truncated"), ("cpu", "cuda")),
    "ours, kernel by kernel": (ours_without_graphs, "pdunroll", ("full", "truncated"), ("cuda",)),
    "tensorflow": (tensorflow, "tensorflow", ("full", "truncated"), ("cpu",)),
    "tensorflow, one pair": (tensorflow_pairs, "tensorflow", ("full", "truncated"), ("cpu",)),
    "jax": (jax, "jax", ("full", "truncated"), ("cpu", "cuda")),
    "jax, autodiff": (jax_autodiff, "jax", ("full",), ("cpu", "cuda")),
    "torch autograd": (torch_autograd, "torch", ("full",), ("cpu", "cuda")),
    "torch.compile": (torch_compile, "torch", ("full",), ("cpu",)),
}


def serve() -> None:
    """Answer requests on standard input, one pickled object a line: the part of a peer's own process."""
    made: dict[str, Any] = {}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = pickle.loads(base64.b64decode(line))
        if request[0] == "make":
            _, name, given, cores = request
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)
            made["step"], made["gradient"] = PEERS[name][0](*given)
            answer = made["gradient"]()
            made["step"]()
        elif request[0] == "rate":
            answer = rate(*request[1:])
        else:
            answer = [timed(made["step"]) for _ in range(request[1])], peak()
        answers.write(base64.b64encode(pickle.dumps(answer)).decode() + "\n")
        answers.flush()


def timed(step: Step) -> float:
    """Return the seconds that one step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def rate(batch: int, device: str) -> float:
    """Return the seconds of one product of a batch with the operator, the best of many."""
    import torch

    import pdunroll
    from pdunroll.core.compiled import compiled_loops
    from pdunroll.core.graphed import captured

    K = pdunroll.dct_operator(320, 320)
    if device == "cuda":
        a, K = torch.ones(batch, 320, device=device), K.to(device)
        replay, _ = captured(lambda a: [a := a @ K for _ in range(1000)][-1:], (a,))
        return min(timed(lambda: (replay(), torch.cuda.synchronize())) for _ in range(10)) / 1000
    loops, products = compiled_loops()
    a, out = np.ones((batch, 320), np.float32), np.ones((batch, 320), np.float32)
    calls = [partial(loops.multiply, number, out, a, K.numpy(), np.float32(1)) for number in products.values()]
    return min(timed(call) for call in calls for _ in range(2000))


def peak() -> float:
    """Return this process's peak resident memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


class Peer:
    """An implementation in a process of its own."""

    def __init__(self, name: str, python: str, threads: int) -> None:
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [python, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip

    def ask(self, *request: Any) -> Any:
        """Return the answer of the process to a request."""
        self.process.stdin.write(base64.b64encode(pickle.dumps(request)).decode() + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} failed: {request[:2]}")
        return pickle.loads(base64.b64decode(answer))

    def end(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()


def compare(frames: tuple[Any, Any], K0: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    pythons = dict(entry.split("=", 1) for entry in options.python)
    for batch, threads, L, mode in product(options.batches, options.threads, options.depths, ("full", "truncated")):
        y, x = (part[:batch] for part in frames)
        for row in case(mode, L, threads, batch, (K0, y, x), pythons, options.rounds, options.device):
            print("  ".join(str(value) for value in row.values()), flush=True)
            yield row


def case(
    mode: str, L: int, threads: int, batch: int, given: Any, pythons: dict[str, str], rounds: int, device: str
) -> list[dict[str, Any]]:
    """Return the rows of one size: all peers take turns, a few steps each."""
    peers, gradients = {}, {}
    for name, (_, package, modes, devices) in PEERS.items():
        takes_minutes = name == "torch.compile" and L > 100  # to compile
        if mode in modes and device in devices and not takes_minutes:
            peer = Peer(name, pythons.get(package, sys.executable), threads)
            try:
                gradients[name] = peer.ask("make", name, (*given, mode, L, threads, device), set(range(threads)))
                peers[name] = peer
            except RuntimeError as error:
                print(error, file=sys.stderr)
    one = peers["ours"].ask("rate", batch, device)
    times: dict[str, list[float]] = {name: [] for name in peers}
    memory = {}
    for _ in range(rounds):
        for name, peer in peers.items():
            seconds, memory[name] = peer.ask("step", max(2, 200 // L))
            times[name] += seconds
    for peer in peers.values():
        peer.end()
    median = {name: statistics.median(values) for name, values in times.items()}
    limit = one * (6 * L if mode == "full" else 2 * L + 2 * min(L, B_TRUNCATED))
    reference = gradients["ours"]
    return [
        {
            "peer": name, "mode": mode, "l": L, "batch": batch, "threads": threads, "ms": round(1e3 * median[name], 3),
            "over_ours": round(median[name] / median["ours"], 3), "over_limit": round(median[name] / limit, 3),
            "peak_mb": round(memory[name]),
            "gradient_distance": float(np.linalg.norm(gradients[name] - reference) / np.linalg.norm(reference)),
        }
        for name in peers
    ]  # fmt: skip


def gpu() -> str:
    """Return the name of the GPU."""
    import torch

    return torch.cuda.get_device_name()


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    family, number = (
        next(line.split(":")[1].strip() for line in lines if line.startswith(k)) for k in ("cpu family", "model\t")
    )
    return f"{model} (family {family}, model {number})"


def draw(rows: list[dict[str, Any]], stem: Path, origin: str) -> None:
    """Draw each peer's time over ours against L: a panel for each mode and number of threads."""
    import matplotlib.pyplot as plt

    from pdunroll.report.style import save, set_style

    set_style()
    threads = sorted({row["threads"] for row in rows})
    figure, axes = plt.subplots(
        len(threads), 2, figsize=(9, 3.2 * len(threads)), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for line, count in zip(axes, threads, strict=True):
        for ax, mode in zip(line, ("full", "truncated"), strict=True):
            for number, name in enumerate(PEERS):
                for batch, style in zip(sorted({row["batch"] for row in rows}), ("-o", "--s"), strict=False):
                    own = [row for row in rows if (row["peer"], row["mode"], row["threads"]) == (name, mode, count)]
                    own = sorted((row for row in own if row["batch"] == batch), key=lambda row: row["l"])
                    if own and name != "ours":
                        label = f"{name}, batch {batch}"
                        ratios = [row["over_ours"] for row in own]
                        ax.plot([row["l"] for row in own], ratios, style, color=f"C{number}", label=label, markersize=4)
            ax.axhline(1, color="0.3", linewidth=1)
            ax.set(xscale="log", title=f"{mode}, {count} thread{'s' if count > 1 else ''}")
        line[0].set_ylabel("time of a step over ours")
    for ax in axes[-1]:
        ax.set_xlabel("L")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7)
    save(figure, stem, origin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", help="a folder that `prepare` wrote, of 4-bit frames of 320 samples, or `random`")
    parser.add_argument("table", type=Path, help="the CSV file to write")
    parser.add_argument("--python", action="append", default=[], metavar="PACKAGE=PYTHON")
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()

    import pdunroll
    from pdunroll.files import read_table, write_table
    from pdunroll.speech.frames import load

    if options.prepared == "random":
        truth = np.random.default_rng(0).normal(0, 0.3, (max(options.batches), 320)).clip(-1, 1).astype(np.float32)
        frames = truth, pdunroll.quantize(truth, bits=4)
    else:
        test = load(Path(options.prepared), "test")
        nontrivial = (np.abs(test.observation) > ETA).any(axis=1)
        frames = test.truth[nontrivial], test.observation[nontrivial]
    machine = f"{gpu()}, {cpu()}" if options.device == "cuda" else cpu()
    git = ["git", "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    sizes = options.batches, options.threads, options.depths
    rows = [  # of sizes that an earlier call has measured
        row
        for row in (read_table(options.table, "") if options.table.is_file() else [])
        if not all(row[key] in wanted for key, wanted in zip(("batch", "threads", "l"), sizes, strict=True))
    ]
    for row in compare(frames, pdunroll.dct_operator(320, 320).numpy(), options):
        rows.append({**row, "cpu": machine, "commit": commit})
        rows.sort(key=lambda row: (row["batch"], row["threads"], row["mode"], row["l"]))  # stable: peers in their order
        write_table(options.table, rows)  # what has been measured is kept
    draw(rows, options.table.with_suffix(""), f"benchmarks/peers.py   {machine}   commit {commit}")


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
