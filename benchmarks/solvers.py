"""`pdunroll.solve` beside solvers of linear programs: seconds a frame to the same relative error of the optimum.

    python benchmarks/solvers.py outputs/quick/prepared docs/solvers.csv [--python ortools=PYTHON --python mpax=PYTHON]

The lower-level problem as a linear program in y (n) and t (m):

    min sum t    subject to    -t <= K y <= t,    x - radius <= y <= x + radius

for nontrivial 4-bit test frames and the operator that comes with pdunroll. HiGHS (in SciPy) solves it to its default
accuracy, PDLP (of OR-tools) and r2HPDHG (of MPAX) to a relative tolerance of 1e-6; ours is certified to 1e-6. All are
pinned to one core. `excess` is the largest relative excess of the objective over the certified lower bound of
`solve`. OR-tools and MPAX come with `pip install -e '.[peers]'`, or from the interpreters that --python names.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ETA, TOLERANCE = 1 / 16, 1e-6
Answer = tuple[Any, float]  # y of each frame, and the seconds that all took


def linear_program(K: Any, x: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return c, G, h, lower and upper of: min c z subject to G z <= h, lower <= z <= upper; z = (y, t)."""
    from scipy import sparse

    m, n = K.shape
    identity = np.eye(m)
    G = sparse.csc_matrix(np.block([[K, -identity], [-K, -identity]]))
    c, h = np.concatenate([np.zeros(n), np.ones(m)]), np.zeros(2 * m)
    lower, upper = np.concatenate([x - ETA, np.zeros(m)]), np.concatenate([x + ETA, np.full(m, np.inf)])
    return c, G, h, lower, upper


def highs(K: Any, frames: Any) -> Answer:
    from scipy.optimize import linprog

    start, found = time.perf_counter(), []
    for x in frames:
        c, G, h, lower, upper = linear_program(K, x)
        found.append(linprog(c, G, h, bounds=np.stack([lower, upper], axis=1), method="highs").x[: K.shape[1]])
    return np.stack(found), time.perf_counter() - start


def pdlp(K: Any, frames: Any) -> Answer:
    from ortools.pdlp import solve_log_pb2, solvers_pb2
    from ortools.pdlp.python import pdlp as library

    parameters = solvers_pb2.PrimalDualHybridGradientParams()
    simple = parameters.termination_criteria.simple_optimality_criteria
    simple.eps_optimal_relative, simple.eps_optimal_absolute = TOLERANCE, 1e-9
    start, found = time.perf_counter(), []
    for x in frames:
        c, G, h, lower, upper = linear_program(K, x)
        program = library.QuadraticProgram()
        program.objective_vector, program.constraint_matrix = c, G
        program.constraint_lower_bounds, program.constraint_upper_bounds = np.full(len(h), -np.inf), h
        program.variable_lower_bounds, program.variable_upper_bounds = lower, upper
        result = library.primal_dual_hybrid_gradient(program, parameters)
        assert result.solve_log.termination_reason == solve_log_pb2.TERMINATION_REASON_OPTIMAL
        found.append(result.primal_solution[: K.shape[1]])
    return np.stack(found), time.perf_counter() - start


def mpax(K: Any, frames: Any) -> Answer:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp
    from mpax import create_lp, r2HPDHG

    jax.config.update("jax_enable_x64", True)
    solver = r2HPDHG(eps_abs=1e-9, eps_rel=TOLERANCE)
    optimize = jax.jit(solver.optimize)

    def solved(x: Any) -> Any:
        c, G, h, lower, upper = linear_program(K, x)
        none = jnp.zeros((0, len(c)))
        program = create_lp(c, none, jnp.zeros(0), jnp.asarray(-G.toarray()), -h, lower, upper)
        return np.asarray(optimize(program).primal_solution)[: K.shape[1]]

    solved(frames[0])  # compiles
    start = time.perf_counter()
    found = [solved(x) for x in frames]
    return np.stack(found), time.perf_counter() - start


# name -> the function, the package that it needs, and on how many frames it is timed
PEERS = {"HiGHS": (highs, "scipy", 8), "PDLP": (pdlp, "ortools", 8), "MPAX": (mpax, "mpax", 4)}


def serve(name: str) -> None:
    """Solve what is on standard input: the part of a peer's own process."""
    os.sched_setaffinity(0, {0})
    K, frames = pickle.load(sys.stdin.buffer)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the libraries print goes elsewhere
    pickle.dump(PEERS[name][0](K, frames), answers)
    answers.flush()


def ours(K: Any, frames: Any) -> tuple[Any, Any, float]:
    """Return y, the certified lower bounds of the objective, and the seconds."""
    import torch

    import pdunroll

    torch.set_num_threads(1)
    operator, x = torch.from_numpy(K), torch.from_numpy(frames)
    pdunroll.solve(operator, x[:2], radius=ETA)  # loads what is compiled
    start = time.perf_counter()
    found = pdunroll.solve(operator, x, radius=ETA, tolerance=TOLERANCE)
    seconds = time.perf_counter() - start
    assert (found.gap <= TOLERANCE).all()
    objective = np.abs(found.primal.numpy() @ K.T).sum(axis=1)
    return found.primal.numpy(), objective * (1 - found.gap.numpy()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="a folder that `prepare` wrote, of 4-bit frames of 320 samples")
    parser.add_argument("table", type=Path, help="the CSV file to write")
    parser.add_argument("--python", action="append", default=[], metavar="PACKAGE=PYTHON")
    parser.add_argument("--frames", type=int, default=256)
    options = parser.parse_args()
    from peers import cpu

    from pdunroll.files import write_table
    from pdunroll.restore.operator_file import SHIPPED, load
    from pdunroll.speech.frames import load as load_frames

    os.sched_setaffinity(0, {0})
    test = load_frames(options.prepared, "test").observation.astype(np.float64)
    frames = test[(np.abs(test) > ETA).any(axis=1)][: options.frames]
    K = load(SHIPPED).matrix.astype(np.float64)
    _, bound, seconds = ours(K, frames)
    rows = [{"solver": "pdunroll.solve", "frames": len(frames), "seconds_a_frame": seconds / len(frames)}]
    rows[0]["excess"] = TOLERANCE
    pythons = dict(entry.split("=", 1) for entry in options.python)
    for name, (_, package, count) in PEERS.items():
        done = subprocess.run(
            [pythons.get(package, sys.executable), __file__, "--serve", name], input=pickle.dumps((K, frames[:count])),
            capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            print(name, "failed:", done.stderr.decode().strip().splitlines()[-1:], file=sys.stderr)
            continue
        y, seconds = pickle.loads(done.stdout)
        y = y.clip(frames[:count] - ETA, frames[:count] + ETA)
        excess = (np.abs(y @ K.T).sum(axis=1) / bound[:count] - 1).max()
        rows.append({"solver": name, "frames": count, "seconds_a_frame": seconds / count, "excess": float(excess)})
    for row in rows:
        print("  ".join(str(value) for value in row.values()))
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    write_table(options.table, [{**row, "cpu": cpu(), "commit": commit.stdout.strip()} for row in rows])


if __name__ == "__main__":
    serve(sys.argv[2]) if "--serve" in sys.argv else main()
