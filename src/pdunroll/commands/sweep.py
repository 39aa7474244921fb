"""What a sweep (`python -m pdunroll train -m`) says and checks beforehand, and the table that it leaves.

multirun/<name>/sweep.csv  one row a training: run, status, validation_mse, best_step, steps, seconds, reason
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pdunroll.commands.config import Config, one_line_errors, require_machine, settings
from pdunroll.errors import InputError
from pdunroll.files import machine, read_json, write_json, write_table
from pdunroll.training.run_folder import read_record

if TYPE_CHECKING:
    from pdunroll.training.run_folder import RunFolder

log = logging.getLogger(__name__)

RESULTS = ("validation_mse", "best_step", "steps", "seconds", "reason")


class Job(NamedTuple):
    """One training of a sweep."""

    config: Config
    folder: Path


class Sweep(Callback):
    """Hydra calls this around a multirun. The trainings may be in other processes, or on other machines, meanwhile."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the settings of a single run before anything is written."""
        with one_line_errors():
            task_settings(config)
            require_folder("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check all trainings of a sweep, and say what is to be done."""
        if config.hydra.job.name == "train":
            with one_line_errors():
                from pdunroll.training.run_folder import RunFolder, identify

                side_by_side = require_jobs(config.hydra.launcher.get("n_jobs", 1))
                self.jobs = jobs_of(config)
                if "submitit" not in config.hydra.launcher._target_:  # the trainings run on this machine
                    require_machine(self.jobs[0].config.trainer)
                require_folder("hydra.sweep.dir", config.hydra.sweep.dir)
                runs = [
                    RunFolder(job.folder, identify(job.config.scientific, job.config.prepared)) for job in self.jobs
                ]
                claim(Path(config.hydra.sweep.dir), runs)
                announce(self.jobs, runs, side_by_side)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write sweep.csv and say what has failed."""
        if self.jobs:
            with one_line_errors():
                note_of(Path(config.hydra.sweep.dir)).unlink(missing_ok=True)
                conclude(self.jobs)


def task_settings(config: DictConfig) -> Config:
    """The checked settings of a configuration that has Hydra's own in it, too."""
    task = config.copy()
    with read_write(task), open_dict(task):
        del task["hydra"]
    return settings(task)


def require_folder(setting: str, folder: str) -> None:
    """Make a folder if it is not there; raise `InputError` naming the setting if that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{setting}={folder} cannot be made ({error}); give another folder") from None


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
        own_settings = task_settings(composed)
        folder = Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir
        if folder in jobs:
            raise InputError(
                f"two trainings of the sweep would go to {folder} ({' '.join(own)}); put what tells them apart into "
                f"`name`, such as 'name=rate${{optimization.learning_rate}}' prepared={own_settings.prepared}"
            )
        jobs[folder] = Job(own_settings, folder)
    if not jobs:
        empty = next((part for part in swept if part.endswith("=")), " ".join(plain["overrides"]["task"]))
        raise InputError(f"the sweep has no training ({empty}); give each swept setting one value at least")
    return list(jobs.values())


def require_jobs(number: object) -> int:
    """Return the number of trainings side by side, negative to count from that of all cores."""
    if isinstance(number, bool) or not isinstance(number, int) or number == 0:
        raise InputError(f"hydra.launcher.n_jobs must be an integer other than 0 (-1 for one a core), got {number!r}")
    return number


def note_of(folder: Path) -> Path:
    """The file in which this process says what it trains in `folder`."""
    return folder / f".sweep.{machine()}.{os.getpid()}.json"


def claim(folder: Path, runs: list[RunFolder]) -> None:
    """Note what this sweep trains in `folder`, for others that begin before it ends.

    Raises `InputError` naming the difference where another sweep of this machine trains one of the runs otherwise.
    """
    from pdunroll.training.run_folder import difference

    own = note_of(folder)
    with FileLock(folder / ".lock"):
        for path in folder.glob(f".sweep.{machine()}.*.json"):
            note = read_json(path, ("process", "started", "runs"))
            if path == own or not running(note["process"], note["started"]):
                path.unlink(missing_ok=True)
                continue
            for run in runs:
                other = note["runs"].get(run.folder.name)
                if other is not None and (what := difference(other, run.identity)):
                    raise InputError(
                        f"another sweep (process {note['process']}) trains {run.folder} with {what}; wait for it, or "
                        "give this one another `name`"
                    )
        process = psutil.Process()
        content = {"process": process.pid, "started": process.create_time()}
        write_json(own, {**content, "runs": {run.folder.name: run.identity for run in runs}})


def running(process: int, started: float) -> bool:
    """Whether the process of this number is still the one that began then."""
    try:
        return abs(psutil.Process(process).create_time() - started) < 1.0
    except psutil.Error:
        return False


def announce(jobs: list[Job], runs: list[RunFolder], side_by_side: int) -> None:
    """Say how much is to be done and how much room it needs; raises `InputError` without room."""
    import joblib

    older = [run for run in runs if run.finished and not run.current]
    if older and not jobs[0].config.retrain:
        log.warning(
            "%d finished trainings were made by other code and are kept: %s; retrain=true trains them again",
            len(older), ", ".join(run.folder.name for run in older),
        )  # fmt: skip
    left = [job for job, run in zip(jobs, runs, strict=True) if not run.done(retrain=job.config.retrain)]
    if not left:
        log.info("all %d trainings are finished", len(jobs))
        return
    count = min(len(left), joblib.cpu_count() if side_by_side < 1 else side_by_side)
    size = sum(bytes_of(job.config) for job in left)
    root = jobs[0].folder.parent
    existing = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(existing).free) < size:
        raise InputError(
            f"{root} has {free / 1e6:.0f} MB left, the sweep may need {size / 1e6:.0f} MB; make room, or put "
            "multirun/ somewhere else by a symbolic link"
        )
    log.info(
        "%d trainings, %d of them finished, %d side by side; at most %.0f MB in %s",
        len(jobs), len(jobs) - len(left), count, size / 1e6, root,
    )  # fmt: skip


def bytes_of(config: Config) -> float:
    """The most that a training puts on disk: operator, checkpoint (twice while it is written), images, logs."""
    m, n = config.shape
    return 4 * m * n * (1 + 4 + 4 + 2) + 0.3e6


def conclude(jobs: list[Job]) -> None:
    """Write sweep.csv beside the trainings; where some have failed, say which and leave with status 1."""
    tables: dict[Path, list[dict[str, Any]]] = {}
    for job in jobs:
        path = job.folder / "run.json"
        record = read_record(path) if path.is_file() else {"status": "missing"}
        results = record.get("results") or {}
        row = {"run": job.folder.name, "status": record["status"], **{name: results.get(name) for name in RESULTS}}
        tables.setdefault(job.folder.parent, []).append(row)
    failed = []
    for parent, rows in tables.items():
        write_table(parent / "sweep.csv", rows)
        own = [row for row in rows if row["status"] != "finished"]
        failed += [f"{parent / row['run']} {row['status']}: {row['reason']}" for row in own]
        log.info("%d of %d trainings finished: %s", len(rows) - len(own), len(rows), parent / "sweep.csv")
    for line in failed:
        print(f"pdunroll: {line}", file=sys.stderr)
    if failed:
        raise SystemExit(1)
