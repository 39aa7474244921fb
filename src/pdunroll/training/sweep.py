"""Sweeps: conflicts with other sweeps, the disk space that is needed, and the table of the trainings.

multirun/<name>/sweep.csv  one row per training: run, status, validation_mse, best_step, steps, seconds, reason
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import psutil
from filelock import FileLock

from pdunroll.errors import InputError
from pdunroll.files import machine, read_json, write_json, write_table
from pdunroll.training.run_folder import RECORD, RunFolder, difference, read_record

log = logging.getLogger(__name__)

RESULTS = ("validation_mse", "best_step", "steps", "seconds", "reason")


def note_path(folder: Path) -> Path:
    """Return the file in which this process lists its trainings in `folder`."""
    return folder / f".sweep.{machine()}.{os.getpid()}.json"


def claim(folder: Path, runs: Sequence[RunFolder]) -> None:
    """List the trainings of this sweep in a file, by which other sweeps detect conflicts.

    Raises:
        InputError: if another sweep of this machine trains one of the runs with other settings.
    """
    own = note_path(folder)
    with FileLock(folder / ".lock"):
        for path in folder.glob(f".sweep.{machine()}.*.json"):
            note = read_json(path, ("process", "started", "runs"))
            if path == own or not is_running(note["process"], note["started"]):
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


def is_running(process: int, started: float) -> bool:
    """Return whether the process of this number is still the one that started then, in seconds since 1970."""
    try:
        return abs(psutil.Process(process).create_time() - started) < 1.0
    except psutil.Error:
        return False


def announce(folder: Path, runs: Sequence[RunFolder], *, side_by_side: int, retrain: bool) -> None:
    """Log how many trainings are left, and the disk space that they need.

    Args:
        folder: multirun/<name>/.
        runs: the trainings.
        side_by_side: the number of parallel trainings, negative for one per core.
        retrain: whether trainings by another version of the package are run again.

    Raises:
        InputError: if there is too little disk space.
    """
    older = [run.folder.name for run in runs if run.finished and not run.current]
    if older and not retrain:
        log.warning(
            "%d finished trainings by another version of pdunroll are kept: %s; retrain=true trains them again",
            len(older), ", ".join(older),
        )  # fmt: skip
    left = [run for run in runs if not run.done(retrain=retrain)]
    if not left:
        log.info("all %d trainings are finished", len(runs))
        return
    count = min(len(left), joblib.cpu_count() if side_by_side < 1 else side_by_side)
    size = sum(needed_bytes(run.identity["settings"]) for run in left)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(existing).free) < size:
        raise InputError(
            f"{folder} has {free / 1e6:.0f} MB left, the sweep may need {size / 1e6:.0f} MB; make room, or put "
            "multirun/ somewhere else by a symbolic link"
        )
    log.info(
        "%d trainings, %d of them finished, %d in parallel; at most %.0f MB in %s",
        len(runs), len(runs) - len(left), count, size / 1e6, folder,
    )  # fmt: skip


def needed_bytes(settings: dict[str, Any]) -> float:
    """Return an upper bound of a training's files: operator, checkpoint (twice while written), images and logs."""
    n = settings["data"]["frame_length"]
    return 4 * (settings["network"]["rows"] or n) * n * (1 + 4 + 4 + 2) + 0.3e6


def conclude(runs: Sequence[Path]) -> None:
    """Write sweep.csv beside the folders of the trainings; if some have failed, print which and exit with status 1."""
    tables: dict[Path, list[dict[str, Any]]] = {}
    for folder in runs:
        record: dict[str, Any] = read_record(folder / RECORD) if (folder / RECORD).is_file() else {"status": "missing"}
        results = record.get("results") or {}
        row = {"run": folder.name, "status": record["status"], **{name: results.get(name) for name in RESULTS}}
        tables.setdefault(folder.parent, []).append(row)
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
