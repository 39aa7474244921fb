"""The folder of one training, and whether its results are up to date.

run.json       status (training, finished or failed), what made it (settings, data, strategy, code), results
operator.npy   the K with the best validation error, (m, n) float32
training.csv   one row per validation
last.ckpt      the checkpoint from which training continues; removed at the end
"""

from __future__ import annotations

import io
import logging
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pdunroll.errors import InputError
from pdunroll.files import atomic, read_array, read_json, write_json
from pdunroll.processes import command
from pdunroll.speech.frames import read_manifest
from pdunroll.training.code_digest import PACKAGE, WITHOUT, source_digest
from pdunroll.training.run_key import RunKey
from pdunroll.training.schema import Record

log = logging.getLogger(__name__)

RECORD, OPERATOR = "run.json", "operator.npy"
STRATEGIES = (
    "core.gradients",
    "core.implicit",
    "core.last_iterations",
    "core.piggyback",
    "core.truncated",
    "training.perceptual",
)
STEPS = "step_ratio", "step_scale"  # results of a training that learned its step sizes


def identify(settings: dict[str, Any], prepared: Path) -> dict[str, Any]:
    """Return what identifies a training: its scientific settings, and digests of the data and the code.

    Raises `InputError` if the frames in `prepared` were made with other settings.
    """
    manifest = read_manifest(prepared)
    for key in ("frame_length", "bits", "level", "missing"):
        if (found := manifest["settings"].get(key)) != (value := settings["data"].get(key)):
            raise InputError(
                f"{prepared} was prepared with data.{key}={found}, not {value}; run `{command('prepare')}` first"
            )
    classes = [settings["backprop"]["strategy"], settings.get("objective", {}).get("loss")]
    strategy = foreign_code([node["_target_"] for node in classes if node])
    return {"settings": settings, "data": manifest["digest"], "strategy": strategy, "code": training_code()}


def training_code() -> str:
    """Return a digest of the code of the package on which the result of a training depends."""
    return source_digest("training.fit", *STRATEGIES, without=WITHOUT)


def foreign_code(targets: Sequence[str]) -> str | None:
    """Return a digest of the modules of those classes that are not part of the package; None if there are none."""
    modules = [target.rpartition(".")[0] for target in targets]
    foreign = [module for module in modules if module.partition(".")[0] != PACKAGE]
    return source_digest(*foreign, without=(*WITHOUT, "core")) if foreign else None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock the folder of a training; if another process has the lock, log that and wait."""
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


def read_record(path: Path) -> dict[str, Any]:
    """Return a training's run.json; raise `InputError` if it is damaged or has no norm of the step sizes."""
    record = read_json(path, kind=Record)
    if "step_norm" not in record["settings"]["network"]:
        raise InputError(
            f"{path.parent} was trained before the setting network.step_norm existed; "
            "train it again by the command of its experiment, and remove this folder"
        )
    return record


class RunFolder:
    """The folder of a training whose identity (see `identify`) is to be `identity`."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        path = folder / RECORD
        self.record = read_json(path, kind=Record) if path.is_file() else {}

    @property
    def finished(self) -> bool:
        """Whether this training is finished, with this or another version of the package."""
        done = self.record.get("status") == "finished" and (self.folder / OPERATOR).is_file()
        return done and self._same("settings", "data", "strategy")

    @property
    def current(self) -> bool:
        """Whether this training is finished with this version of the package."""
        return self.finished and self._same("code")

    def done(self, *, retrain: bool) -> bool:
        """Return whether there is nothing to train; with `retrain` only results of this version count."""
        return self.current if retrain else self.finished

    def _same(self, *parts: str) -> bool:
        return all(self.record.get(part) == self.identity[part] for part in parts)

    def begin(self) -> None:
        """Keep the files of an interrupted training with the same identity; remove those of any other."""
        results = [self.folder / name for name in (OPERATOR, "training.csv", "last.ckpt")]
        if not self.record and (found := next((path for path in results if path.exists()), None)):
            raise InputError(
                f"{found} is there, but no {RECORD} beside it: this command did not write it; move it away"
            )
        same = self._same(*self.identity)
        if not same:
            # the record last, so that after a kill the rest is recognized
            for path in (*results, self.folder / RECORD):
                path.unlink(missing_ok=True)
        if not same or self.record["status"] != "training":
            self._write("training", None)

    def finish(self, operator: NDArray, results: dict[str, Any]) -> None:
        """Write the trained operator, then run.json; remove the checkpoint."""
        buffer = io.BytesIO()  # np.save to a file hides the cause of a failure
        np.save(buffer, operator)
        with atomic(self.folder / OPERATOR) as temporary:
            temporary.write_bytes(buffer.getvalue())
        self._write("finished", results)
        (self.folder / "last.ckpt").unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        """Write why the training failed."""
        self._write("failed", {"reason": reason})

    def _write(self, status: str, results: dict[str, Any] | None) -> None:
        self.record = {
            "status": status,
            **self.identity,
            "results": results,
            "environment": environment(),
        }
        write_json(self.folder / RECORD, self.record)


def environment() -> dict[str, str]:
    """Return commit, versions and machine of a result, which are recorded but not part of its identity."""
    describe = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    return {
        "commit": commit or "unknown",
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


class Run(NamedTuple):
    """A finished training, with the settings that later stages need."""

    folder: Path
    record: dict[str, Any]  # run.json

    @property
    def settings(self) -> dict[str, Any]:
        """The scientific settings that it was trained with."""
        return self.record["settings"]

    @property
    def results(self) -> dict[str, Any]:
        """The results of the training, such as its best validation error."""
        return self.record["results"]

    @property
    def key(self) -> RunKey:
        """The key of the training in tables."""
        return RunKey.from_record(self.record)

    @property
    def iterations(self) -> int:
        """The number L of iterations that it was trained with."""
        return self.settings["network"]["iterations"]

    @property
    def initial_steps(self) -> dict[str, Any]:
        """The step sizes and the extrapolation as `pdunroll.unroll` takes them, before training."""
        return {name: self.settings["network"][name] for name in ("step_ratio", "extrapolation", "step_norm")}

    @property
    def steps(self) -> dict[str, Any]:
        """The same after training; they differ from `initial_steps` if the step sizes were learned."""
        learned = self.settings["network"].get("learned_steps", False)
        return {**self.initial_steps, **({name: self.results[name] for name in STEPS} if learned else {})}

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), the shape of K."""
        n = self.settings["data"]["frame_length"]
        return self.settings["network"]["rows"] or n, n

    def operator(self) -> NDArray[np.float32]:
        """Return the trained K, (m, n)."""
        return read_operator(self.folder, self.shape)


def finished_runs(folder: Path, data: str, name: str, given: Mapping[str, Any] | None = None) -> list[Run]:
    """Return the finished trainings in `folder`, multirun/<name>/, in the order of the tables.

    They may differ only in backprop, objective (and learned_steps with it), step_norm, L and seed, so that no table
    mixes protocols. Trainings by another version of the package are included with a warning; their records name the
    commit.

    Args:
        folder: the folder of the trainings.
        data: the digest of the frames on which they must have been trained.
        name: the experiment.
        given: settings by their dotted names with which they must have been trained.

    Raises:
        InputError: naming the training and the setting that differs, or the command that trains if there is none.
    """
    again = command("train", name, "-m")
    found, older = [], []
    for path in sorted(folder.glob(f"*/{RECORD}")):
        run = Run(path.parent, read_record(path))
        if run.record["status"] != "finished":
            what = "is not finished" if run.record["status"] == "training" else "has failed"
            log.warning("%s %s and is left out; `%s` continues it", run.folder, what, again)
            continue
        if other := _contradiction(run.settings, given or {}) or _differing(run, (found or [run])[0], data):
            raise InputError(f"{run.folder} was trained with {other}; run `{again}` again, or remove it")
        if run.record["code"] != training_code():
            older.append(run.folder.name)
        found.append(run)
    if not found:
        raise InputError(f"{folder} holds no finished training; run `{again}` first")
    if older:
        log.warning(
            "%d of %d trainings in %s were made by another version of pdunroll, %s the first; "
            "`%s retrain=true` trains them again", len(older), len(found), folder, older[0], again,
        )  # fmt: skip
    return sorted(found, key=lambda run: run.key.order)


def _contradiction(settings: dict[str, Any], given: Mapping[str, Any]) -> str | None:
    """Name the first of the given settings that differs from that of the training."""
    own = defaultdict(lambda: "unset", flat(settings))
    return next((f"{name}={own[name]}, not {value}" for name, value in given.items() if own[name] != value), None)


def _differing(run: Run, first: Run, data: str) -> str | None:
    """Name the first difference of two trainings apart from backprop, objective, step_norm, L and seed.

    Whether step sizes are learned may differ, too, if the objective does, which is in the names of the trainings.
    """
    same_loss = run.settings.get("objective") == first.settings.get("objective")
    free = {"iterations", "step_norm", *(() if same_loss else ("learned_steps", "steps_rate"))}
    expected = {
        **first.settings,
        "seed": run.settings["seed"],
        "backprop": run.settings["backprop"],
        "objective": run.settings.get("objective"),
        "network": {
            **{name: value for name, value in first.settings["network"].items() if name not in free},
            **{name: value for name, value in run.settings["network"].items() if name in free},
        },
    }
    own = {"objective": None, **run.settings}
    other = difference({**run.record, "settings": own}, {"settings": expected, "data": data}, ("data",))
    return other if other is None or other == "other data" else f"{other} as {first.folder.name}"


def difference(
    then: Mapping[str, Any], now: Mapping[str, Any], parts: Sequence[str] = ("data", "strategy", "code")
) -> str | None:
    """Name the first difference of two identities, such as "network.rows=3, not 4"; None if there is none."""
    if then["settings"] != now["settings"]:
        one, other = (
            defaultdict(lambda: "unset", flat(then["settings"])),
            defaultdict(lambda: "unset", flat(now["settings"])),
        )
        name = next(name for name in [*other, *one] if one[name] != other[name])
        return " ".join(f"{name}={one[name]}, not {other[name]}".split())
    return next((f"other {part}" for part in parts if then.get(part) != now.get(part)), None)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return found


def origin(stage: str, name: str, data: str, prepared: Path) -> str:
    """Return the footnote of a figure: the command, commit and data that made it."""
    return (
        f"{command(stage, name)}   commit {environment()['commit'][:12]}   "
        f"data: {data}, sha256 {read_manifest(prepared)['digest'][:16]}"
    )


def read_operator(folder: Path, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Return the operator of a training; raise `InputError` naming the file if it is damaged or of another shape."""
    path = folder / OPERATOR
    operator = read_array(path)
    if not isinstance(operator, np.ndarray):
        raise InputError(f"{path} is not a single array; remove {folder} and train again")
    shape = shape or operator.shape
    if operator.shape == shape and not (np.isfinite(operator).all() and operator.any()):
        raise InputError(f"{path} holds only zeros, or NaN or infinite entries; remove {folder} and train again")
    if operator.shape != shape or operator.dtype != np.float32:
        raise InputError(
            f"{path} holds a {operator.dtype} array of shape {operator.shape}, not float32 {shape}; "
            "evaluate with the settings it was trained with"
        )
    return operator
