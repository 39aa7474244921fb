"""What a sweep (`python -m pdunroll.train -m`) says and checks beforehand, and the table that it leaves.

multirun/<name>/sweep.csv  one row a training: cell, status, validation_mse, best_step, steps, seconds, reason
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pdunroll.config import Config, build, one_line_errors, settings
from pdunroll.errors import InputError
from pdunroll.runs import read_record, read_table, write_table

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

RESULTS = ("validation_mse", "best_step", "steps", "seconds", "reason")
DEPTHS, VALIDATED = (10, 50), 1024  # L and the numbers of frames at which times are measured beforehand


class Job(NamedTuple):
    """One training of a sweep."""

    config: Config
    folder: Path


class Sweep(Callback):
    """Hydra calls this around a multirun. The trainings may be in other processes, or on other machines, meanwhile."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.job.name == "train":
            with one_line_errors():
                self.jobs = jobs_of(config)
                announce(self.jobs, config.hydra.launcher.get("n_jobs", 1))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.jobs:
            with one_line_errors():
                conclude(self.jobs)


def jobs_of(config: DictConfig) -> list[Job]:
    """All trainings of the sweep, their settings checked; raises `InputError` where two of them share a folder."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = GlobalHydra.instance().config_loader()
    plain = OmegaConf.to_container(config.hydra, resolve=False)  # interpolations are for each training to resolve
    swept = [f"{key}={value}" for key, value in (plain["sweeper"].get("params") or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*swept, *plain["overrides"]["task"]])
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    jobs: dict[Path, Job] = {}
    for own in batch:
        composed = loader.load_sweep_config(config, list(own))
        folder = Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        if folder in jobs:
            raise InputError(
                f"two trainings of the sweep would go to {folder} ({' '.join(own)}); put what tells them apart into "
                f"`name`, such as 'name=rate${{optimization.learning_rate}}' prepared={settings(composed).prepared}"
            )
        jobs[folder] = Job(settings(composed), folder)
    return list(jobs.values())


def announce(jobs: list[Job], side_by_side: int) -> None:
    """Say how much is to be done, how long that takes and how much room it needs; raises `InputError` without room."""
    import joblib

    from pdunroll.cell import Cell, identify

    cells = [Cell(job.folder, identify(job.config)) for job in jobs]
    left = [(job, cell) for job, cell in zip(jobs, cells, strict=True) if not cell.finished]
    if not left:
        log.info("all %d trainings are finished", len(jobs))
        return
    count = min(len(left), joblib.cpu_count() if side_by_side < 1 else side_by_side)
    seconds, models = 0.0, {}
    for job, cell in left:
        kind = str((job.config.backprop, job.config.network.rows, job.config.network.step_norm, job.config.data))
        if kind not in models:
            models[kind] = time_model(job.config)
        seconds += models[kind](job.config) * (1 - progress(cell.folder, job.config))
    size = sum(bytes_of(job.config) for job, _ in left)
    root = jobs[0].folder.parent
    existing = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(existing).free) < size:
        raise InputError(
            f"{root} has {free / 1e6:.0f} MB left, the sweep may need {size / 1e6:.0f} MB; make room, or put "
            "multirun/ somewhere else by a symbolic link"
        )
    log.info(
        "%d trainings, %d of them finished: about %s for the rest, %d side by side; at most %.0f MB in %s",
        len(jobs), len(jobs) - len(left), duration(seconds / count), count, size / 1e6, root,
    )  # fmt: skip


@cache
def end_with_parent() -> None:
    """End this worker of a sweep within a second when the process that started it is gone, however it was ended."""
    if multiprocessing.parent_process() is None:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def steps_of(config: Config) -> int:
    """The number of steps of a training."""
    from pdunroll.frames import read_manifest

    frames = read_manifest(config.prepared)["splits"]["train"]["frames"]
    options = config.optimization
    return options.epochs * math.ceil(min(frames, options.train_frames or frames) / options.batch_size)


def progress(folder: Path, config: Config) -> float:
    """Which share of a training that goes on is done."""
    if not (folder / "last.ckpt").is_file() or not (folder / "training.csv").is_file():
        return 0.0
    rows = read_table(folder / "training.csv", "python -m pdunroll.train", numbers=("step",))
    return rows[-1]["step"] / steps_of(config)


def time_model(config: Config) -> Callable[[Config], float]:
    """The seconds of trainings that differ from this one in L and in what does not count: a line through two L that
    are measured here and now, and the cost of validations."""
    import torch

    from pdunroll.backprop import unroll
    from pdunroll.problem import dct_operator
    from pdunroll.quantizer import quantize, radius

    torch.set_num_threads(config.trainer.threads)
    n = config.data.frame_length
    K = torch.nn.Parameter(dct_operator(config.network.rows or n, n))
    x = quantize(0.3 * torch.randn(VALIDATED, n).clamp(-3, 3), config.data.bits)
    strategy = build(config.backprop["strategy"])

    def measured(frames: int, iterations: int) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            y = unroll(
                K, x[:frames], radius=radius(config.data.bits), iterations=iterations, backprop=strategy,
                step_norm=config.network.step_norm,
            )  # fmt: skip
            if frames != VALIDATED:
                y.sum().backward()
            times.append(time.perf_counter() - start)
        return min(times)

    batch = config.optimization.batch_size
    with torch.random.fork_rng():
        low, high = measured(batch, DEPTHS[0]), measured(batch, DEPTHS[1])
        with torch.no_grad():
            validation = measured(VALIDATED, DEPTHS[0]) / VALIDATED / DEPTHS[0]
    slope = max(high - low, 0.0) / (DEPTHS[1] - DEPTHS[0])

    def seconds(other: Config) -> float:
        L, options = other.network.iterations, other.optimization
        validated = (options.validation_frames or 10 * VALIDATED) * (1 + options.epochs * options.validations_per_epoch)
        return steps_of(other) * (low + slope * (L - DEPTHS[0])) + validated * validation * L

    return seconds


def bytes_of(config: Config) -> float:
    """The most that a training puts on disk: operator, checkpoint (twice while it is written), images, logs."""
    n = config.data.frame_length
    return 4 * (config.network.rows or n) * n * (1 + 4 + 4 + 2) + 0.3e6


def duration(seconds: float) -> str:
    """Such as "40 s", "7 min" or "3.2 h"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds:.0f} s"


def conclude(jobs: list[Job]) -> None:
    """Write sweep.csv beside the trainings; where some have failed, say which and leave with status 1."""
    tables: dict[Path, list[dict[str, Any]]] = {}
    for job in jobs:
        path = job.folder / "run.json"
        record = read_record(path) if path.is_file() else {"status": "missing"}
        results = record.get("results") or {}
        row = {"cell": job.folder.name, "status": record["status"], **{name: results.get(name) for name in RESULTS}}
        tables.setdefault(job.folder.parent, []).append(row)
    failed = []
    for parent, rows in tables.items():
        write_table(parent / "sweep.csv", rows)
        own = [row for row in rows if row["status"] != "finished"]
        failed += [f"{parent / row['cell']} {row['status']}: {row['reason']}" for row in own]
        log.info("%d of %d trainings finished: %s", len(rows) - len(own), len(rows), parent / "sweep.csv")
    for line in failed:
        print(f"pdunroll: {line}", file=sys.stderr)
    if failed:
        raise SystemExit(1)
