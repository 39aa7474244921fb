"""The folder of one training, and whether what is in it still holds.

run.json       what made it: status (training, finished or failed), digest, settings, data, code, results; written last
operator.npy   the K with the best validation error, (m, n) float32
training.csv   one row a validation
last.ckpt      where to go on; gone when finished
"""

from __future__ import annotations

import io
import logging
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pdunroll.config import Config
from pdunroll.errors import InputError
from pdunroll.frames import read_manifest
from pdunroll.processes import command
from pdunroll.runs import atomic, digest, read_array, read_json, read_record, source_digest, write_json
from pdunroll.schema import Record

log = logging.getLogger(__name__)

RECORD, OPERATOR = "run.json", "operator.npy"

# What these modules do shows in the settings and in the data, which are part of the identity themselves.
STORAGE = ("errors", "runs", "config", "speech", "espeak")


def identify(config: Config) -> dict[str, Any]:
    """What a training depends on: its scientific settings, its data and its code."""
    manifest = read_manifest(config.prepared)
    wanted = {"frame_length": config.data.frame_length, "bits": config.data.bits}
    for key, value in wanted.items():
        if manifest["settings"][key] != value:
            raise InputError(
                f"{config.prepared} was prepared with data.{key}={manifest['settings'][key]}, not {value}; "
                f"run `{command('prepare')}` first"
            )
    return {
        "settings": {
            "seed": config.seed,
            "data": {"name": config.data.name, **wanted},
            "backprop": config.backprop,
            "network": asdict(config.network),
            "optimization": asdict(config.optimization),
        },
        "data": manifest["digest"],
        "code": training_code(config.backprop),
    }


def training_code(backprop: dict[str, Any]) -> str:
    """A digest of the code that decides what a training gives, its strategy's module included, wherever that is."""
    return source_digest("training", str(backprop["strategy"]["_target_"]).rpartition(".")[0], without=STORAGE)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from training in `folder`; waits, and says so, while another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("another process trains in %s: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Cell:
    """One training's folder; `identity` is what `identify` gave for the training that is wanted."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity, self.digest = folder, identity, digest(identity)
        path = folder / RECORD
        self.record = read_json(path, kind=Record) if path.is_file() else {}

    @property
    def finished(self) -> bool:
        """Whether just this training has been done here."""
        return self._same and self.record["status"] == "finished" and (self.folder / OPERATOR).is_file()

    @property
    def _same(self) -> bool:
        return self.record.get("digest") == self.digest

    def begin(self) -> None:
        """Keep what an interrupted training of just this kind has left; clear what any other has."""
        results = [self.folder / name for name in (OPERATOR, "training.csv", "last.ckpt")]
        if not self.record and (found := next((path for path in results if path.exists()), None)):
            raise InputError(
                f"{found} is there, but no {RECORD} beside it: this command did not write it; move it away"
            )
        if not self._same:
            for path in (*results, self.folder / RECORD):  # the record last: what is left of a kill is known as ours
                path.unlink(missing_ok=True)
        if not self._same or self.record["status"] != "training":
            self._write("training", None)

    def finish(self, operator: NDArray, results: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # np.save to a file hides why it failed
        np.save(buffer, operator)
        with atomic(self.folder / OPERATOR) as temporary:
            temporary.write_bytes(buffer.getvalue())
        self._write("finished", results)
        (self.folder / "last.ckpt").unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        self._write("failed", {"reason": reason})

    def _write(self, status: str, results: dict[str, Any] | None) -> None:
        self.record = {
            "status": status,
            "digest": self.digest,
            **self.identity,
            "results": results,
            "environment": environment(),
        }
        write_json(self.folder / RECORD, self.record)


def environment() -> dict[str, str]:
    """Where and by what a result was made: recorded, but no part of its identity."""
    describe = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # there is no git here
        commit = ""
    return {
        "commit": commit or "unknown",
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def finished_cells(runs: Path, wanted: dict[str, Any], name: str) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and record of each finished training in `runs`, in the order of the tables.

    `wanted` is the identity of a training with the present settings; the cells may differ in backprop, step_norm, L and
    seed only, so that one table never mixes protocols. Raises `InputError` naming the cell and the setting that does.
    Trainings by other code are taken, with a warning: their records say by which commit.
    """
    again = command("train", name, "-m")
    cells, older = [], []
    for path in sorted(runs.glob(f"*/{RECORD}")):
        record = read_record(path)
        if record["status"] != "finished":
            what = "is not finished" if record["status"] == "training" else "has failed"
            log.warning("%s %s and is left out; `%s` goes on with it", path.parent, what, again)
            continue
        if other := _differing(record, wanted):
            raise InputError(f"{path.parent} was trained with {other}; run `{again}` again, or remove it")
        if record["code"] != training_code(record["settings"]["backprop"]):
            older.append(path.parent.name)
        cells.append((path.parent, record))
    if not cells:
        raise InputError(f"{runs} holds no finished training; run `{again}` first")
    if older:
        log.warning(
            "%d of %d trainings in %s were made by other training code, %s the first; `%s` trains them again",
            len(older), len(cells), runs, older[0], again,
        )  # fmt: skip
    return sorted(cells, key=lambda cell: table_order(cell_key(cell[1])))


def _differing(record: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Name the first difference of a finished training to `wanted` beyond backprop, step_norm, L and seed."""
    own, common = record["settings"], wanted["settings"]
    free = {key: own["network"][key] for key in ("iterations", "step_norm")}
    expected = {
        **common,
        "seed": own["seed"],
        "backprop": own["backprop"],
        "network": {**common["network"], **free},
    }
    return difference({**record, "code": None}, {**wanted, "settings": expected, "code": None})


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Name the first difference of two identities, such as "network.rows=3, not 4"; None if there is none."""
    if then["settings"] != now["settings"]:
        one, other = (
            defaultdict(lambda: "unset", flat(then["settings"])),
            defaultdict(lambda: "unset", flat(now["settings"])),
        )
        name = next(name for name in [*other, *one] if one[name] != other[name])
        return " ".join(f"{name}={one[name]}, not {other[name]}".split())
    return next((f"other {part}" for part in ("data", "code") if then[part] != now[part]), None)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return found


def cell_key(record: dict[str, Any]) -> dict[str, Any]:
    """The columns that name a training in the tables."""
    own = record["settings"]
    return {
        "backprop": own["backprop"]["name"],
        "primal_mask": own["backprop"]["primal_mask"],
        "step_norm": own["network"]["step_norm"],
        "l_training": own["network"]["iterations"],
        "seed": own["seed"],
        "b": own["backprop"].get("iterations"),
    }


def table_order(key: dict[str, Any]) -> tuple:
    """Rows by norm, mask, mode, b, L and seed."""
    return key["step_norm"], key["primal_mask"], key["backprop"], key["b"] or 0, key["l_training"], key["seed"]


def origin(config: Config, stage: str) -> str:
    """The footnote of a figure that a stage makes: with what, from what."""
    manifest = read_manifest(config.prepared)
    return (
        f"{command(stage, config.name)}   commit {environment()['commit'][:12]}   "
        f"data: {config.data.name}, sha256 {manifest['digest'][:16]}"
    )


def read_operator(folder: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The trained operator of a cell; raises `InputError` naming the file if it is damaged or of another shape."""
    path = folder / OPERATOR
    operator = read_array(path)
    if not isinstance(operator, np.ndarray):
        raise InputError(f"{path} is no single array; remove {folder} and train again")
    if operator.shape == shape and not (np.isfinite(operator).all() and operator.any()):
        raise InputError(f"{path} holds zeros alone, or NaN or infinite entries; remove {folder} and train again")
    if operator.shape != shape or operator.dtype != np.float32:
        raise InputError(
            f"{path} holds a {operator.dtype} array of shape {operator.shape}, not float32 {shape}; "
            "evaluate with the settings it was trained with"
        )
    return operator
