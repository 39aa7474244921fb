"""The paper's theorems, measured: where each holds, on real frames.  python -m pdunroll theory [experiment=...]

For the DCT and trained operators, on nontrivial test frames drawn with a seed, in float64. Writes to
outputs/<name>/theory/:
    counts.csv    trivial, vertex and degenerate frames among the test frames
    fidelity.csv  gradients of Full over L and of Truncated over b against the exact limit gradient
    settling.csv  the iteration after which a frame's masks change no more
    decay.csv     norms in the backward recursion, counted backwards, and their distance to the kernels
    fits.csv      c and kappa of each frame, and whether the limit theorem's assumption holds there
The DCT is measured with both norms of the step sizes, a trained operator with the one that it was trained with.
and fidelity, decay, settling as .png and .svg.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, Config, one_line_errors, settings
from pdunroll.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        measure(settings(cfg))


def measure(config: Config) -> None:
    """Write all tables and figures."""
    import numpy as np
    import torch

    from pdunroll.core.chambolle_pock import chambolle_pock
    from pdunroll.core.problem import Dequantization
    from pdunroll.evaluation import theory as limits
    from pdunroll.files import write_table
    from pdunroll.report.theory import draw
    from pdunroll.speech.frames import load
    from pdunroll.speech.quantizer import radius
    from pdunroll.training.run_folder import origin

    options = config.theory
    torch.set_num_threads(config.trainer.threads)
    test = load(config.prepared, "test")
    order = np.random.default_rng(options.seed).permutation(len(test.truth))[: options.count_frames]
    truth, observation = (torch.from_numpy(array[order]).double() for array in (test.truth, test.observation))
    half_step = radius(config.data.bits)
    hard = (~Dequantization(half_step).trivial(observation)).nonzero()[:, 0]
    if len(hard) < options.frames:
        raise InputError(
            f"theory.frames={options.frames} nontrivial frames are wanted, but among theory.count_frames="
            f"{options.count_frames} test frames there are {len(hard)}; lower the one or raise the other"
        )
    depths = decades(10, options.iterations)
    grid = decades(1, options.iterations, per_decade=8)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("counts", "fidelity", "settling", "decay", "fits")}
    for name, step_norm, operator in operators(config):
        algorithm = chambolle_pock(
            operator,
            radius=half_step,
            step_ratio=config.network.step_ratio,
            extrapolation=config.network.extrapolation,
            step_norm=step_norm,
        )
        key = {"operator": name, "step_norm": step_norm}
        optimum = limits.limit(algorithm, operator, truth[hard], observation[hard])
        vertices = int(optimum.vertex.sum())
        counts = {"trivial": len(truth) - len(hard), "vertex": vertices, "degenerate": len(hard) - vertices}
        tables["counts"].append({**key, **counts})
        log.info("%s, %s: %s", name, step_norm, ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        chosen = hard[optimum.vertex][: options.frames]
        y, x = truth[chosen], observation[chosen]

        since, point = limits.settling(algorithm, operator, x, options.iterations)
        tables["settling"] += [
            {**key, "frame": int(order[frame]), "settled_after": int(l), "of": options.iterations}
            for frame, l in zip(chosen, since, strict=True)
        ]
        log.info("%s, %s: masks settle after %d iterations (median)", name, step_norm, int(since.median()))
        norms, fits = limits.decay(algorithm, operator, y, x, point, grid)
        tables["decay"] += [{**key, **row} for row in norms]
        tables["fits"] += [{**key, **row, "frame": int(order[chosen[row["frame"]]])} for row in fits]
        truncated_at = [depth for depth in depths if depth in (1000, options.iterations)] or depths[-1:]
        rows = limits.fidelity(algorithm, operator, y, x, depths, decades(1, options.iterations), truncated_at)
        tables["fidelity"] += [{**key, **row} for row in rows]
        log.info("%s, %s: gradients at L = %s done", name, step_norm, ", ".join(map(str, depths)))
    folder = config.outputs / "theory"
    for name, rows in tables.items():
        write_table(folder / f"{name}.csv", rows)
    made_by = origin("theory", config.name, config.data.name, config.prepared)
    draw(folder, f"{made_by}   {options.frames} frames, seed {options.seed}")
    print(*sorted(str(path) for path in folder.iterdir()), sep="\n")


def decades(first: int, last: int, per_decade: int = 2) -> list[int]:
    """Log-spaced whole numbers from `first` to `last`: 10, 30, 100, ... with two a decade."""
    import math

    if per_decade == 2:
        values = {factor * 10**power for power in range(math.ceil(math.log10(last)) + 1) for factor in (1, 3)}
    else:
        steps = round(per_decade * math.log10(last / first))
        values = {round(first * (last / first) ** (step / steps)) for step in range(steps + 1)}
    return sorted({value for value in values if first <= value <= last} | {last})


def operators(config: Config) -> list[tuple[str, str, Tensor]]:
    """Return name, norm of the step sizes and K (float64) of the DCT and of the trainings in `theory.runs`."""
    import torch

    from pdunroll.core.chambolle_pock import STEP_NORMS
    from pdunroll.core.problem import dct_operator
    from pdunroll.training.run_folder import RECORD, read_operator, read_record
    from pdunroll.training.run_key import run_key

    shape = config.shape
    found = [("dct", norm, dct_operator(*shape, dtype=torch.float64)) for norm in STEP_NORMS]
    for run in config.theory.runs:
        folder = Path(config.evaluation.runs) / run
        if not folder.is_dir():
            raise InputError(f"theory.runs: {folder} is no training; name folders of {config.evaluation.runs}")
        norm = run_key(read_record(folder / RECORD))["step_norm"]
        found.append((run, norm, torch.from_numpy(read_operator(folder, shape)).double()))
    return found
