"""All readers on files that chance has damaged, and the commands' settings on values that hypothesis picks.

What comes out is a result or an `InputError` of one line (status 2 of a command), never another exception.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pdunroll
from pdunroll.errors import InputError
from pdunroll.evaluation.tables import read_provenance, read_results
from pdunroll.report.results import summary
from pdunroll.report.style import footnote
from pdunroll.restore import grid as levels
from pdunroll.restore import operator_file as operators
from pdunroll.restore import recordings
from pdunroll.speech import sources as speech
from pdunroll.speech.frames import load, read_manifest
from pdunroll.speech.sources import SPLITS
from pdunroll.training.run_folder import RunFolder, finished_runs, read_operator

pytestmark = pytest.mark.slow

SEED, EXAMPLES = 0, 400  # of each file
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    -0.0,
    10**30,
    math.nan,
    math.inf,
    "",
    "x",
    "a\nb",
    [],
    {},
    [[]],
)


class Target(NamedTuple):
    """A file and what the commands do with it."""

    path: str
    read: Callable[[Path], Any]  # of the folder
    kind: str = "bytes"  # or how it may be changed beyond that: "json", "csv"


# ---------------------------------------------------------------- damage


def flip(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def splice(content: bytes, chance: random.Random) -> bytes:
    """Another piece, of zeros, of noise or from elsewhere, in the place of a piece."""
    start, length = chance.randrange(len(content)), chance.choice((1, 4, 16, 200))
    source = chance.randrange(len(content))
    piece = chance.choice((b"", bytes(length), chance.randbytes(length), content[source : source + length]))
    return content[:start] + piece + content[start + length :]


def header(content: bytes, chance: random.Random) -> bytes:
    """A flip near the start, where formats keep what they claim."""
    return flip(content[:128], chance) + content[128:]


def retype(content: bytes, chance: random.Random) -> bytes:
    """Another value in the place of one of a JSON document, or one field less."""
    document = json.loads(content)
    node, key = {"": document}, ""
    while isinstance(node[key], dict | list) and node[key] and chance.random() < 0.85:
        node = node[key]
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
    if chance.random() < 0.2:
        del node[key]
    else:
        node[key] = chance.choice(VALUES)
    return json.dumps(document).encode()


def rewrite(content: bytes, chance: random.Random) -> bytes:
    """Another cell, or rows or columns that are missing, double or in another order."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    number, column = chance.randrange(len(rows)), chance.randrange(len(rows[0]))
    match chance.randrange(6):
        case 0:
            rows[number][column] = chance.choice(("", "nan", "inf", "-1", "0", "1e400", "x", "1.5", "9" * 30, "None"))
        case 1:
            del rows[number]
        case 2:
            rows.append(rows[number])
        case 3:
            rows = [row[:column] + row[column + 1 :] for row in rows]
        case 4:
            chance.shuffle(rows)
        case 5:
            rows[number] = rows[number][:column] if chance.random() < 0.5 else [*rows[number], "more"]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


DAMAGES = {
    "bytes": (flip, cut, splice, header),
    "json": (flip, cut, splice, retype, retype, retype, retype),
    "csv": (flip, cut, splice, rewrite, rewrite, rewrite, rewrite),
}


# ---------------------------------------------------------------- readers


def records(folder: Path) -> None:
    wanted = json.loads((folder / "wanted.json").read_text())
    for cell, record in finished_runs(folder / "runs", wanted["data"], "smoke"):
        assert math.isfinite(record["results"]["validation_mse"] + record["results"]["seconds"])
        assert RunFolder(cell, wanted).finished in (True, False)
        assert operators.load(cell / "operator.npy").matrix.size


def trained_operator(folder: Path) -> None:
    assert np.isfinite(read_operator(folder / "runs/cell", (64, 64))).all()


def operator_file(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        matrix, provenance = operators.load(folder / name)
        assert torch.from_numpy(matrix).isfinite().all()
        from pdunroll.restore.restore import origin

        assert origin(provenance, 16_000)

    return read


def tables(folder: Path) -> None:
    evaluation, optima, training = read_results(folder).values()
    assert "nan" not in summary(evaluation, optima, training)
    assert footnote(read_provenance(folder))


def checkpoint(folder: Path) -> None:
    from pdunroll.training.module import Checkpoints

    assert Checkpoints().load_checkpoint(folder / "last.ckpt")["state_dict"]


def prepared(folder: Path) -> None:
    read_manifest(folder / "prepared")
    for split in SPLITS:
        assert np.isfinite(load(folder / "prepared", split).truth).all()


def audio(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        try:
            assert np.isfinite(speech.read_audio(folder / name)).all()
        except InputError as error:
            one_line(error)
        found = recordings.scan(folder / name)
        assert all(isinstance(grid, levels.Grid) for grid in recordings.cells(found, None))

    return read


TARGETS = {
    "run.json": Target("runs/cell/run.json", records, "json"),
    "operator.npy": Target("runs/cell/operator.npy", trained_operator),
    "npy": Target("own.npy", operator_file("own.npy")),
    "npz": Target("own.npz", operator_file("own.npz")),
    "evaluation.csv": Target("evaluation.csv", tables, "csv"),
    "optima.csv": Target("optima.csv", tables, "csv"),
    "training.csv": Target("training.csv", tables, "csv"),
    "provenance.json": Target("provenance.json", tables, "json"),
    "last.ckpt": Target("last.ckpt", checkpoint),
    "manifest.json": Target("prepared/manifest.json", prepared, "json"),
    "test.npz": Target("prepared/test.npz", prepared),
    "wav": Target("x.wav", audio("x.wav")),
    "float wav": Target("f.wav", audio("f.wav")),
    "flac": Target("x.flac", audio("x.flac")),
    "aiff": Target("x.aiff", audio("x.aiff")),
    "au": Target("x.au", audio("x.au")),
}


@pytest.fixture(scope="module")
def whole(smoke, tmp_path_factory) -> Path:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    cell = next(smoke.glob("multirun/smoke/truncated*/operator.npy")).parent
    shutil.copytree(cell, folder / "runs/cell", ignore=shutil.ignore_patterns("wandb"))
    record = json.loads((cell / "run.json").read_text())
    (folder / "wanted.json").write_text(
        json.dumps({key: record[key] for key in ("settings", "data", "strategy", "code")})
    )
    shutil.copytree(smoke / "outputs/smoke/prepared", folder / "prepared")
    for name in ("evaluation.csv", "optima.csv", "training.csv", "provenance.json"):
        shutil.copy(smoke / "outputs/smoke" / name, folder)
    np.save(folder / "own.npy", pdunroll.dct_operator(8, 8).numpy())
    operators.save(folder / "own.npz", operators.from_run(cell, "the command"))
    from pdunroll.training.module import Checkpoints

    state = {"state_dict": {"operator": torch.ones(16, 16)}, "epoch": 3}
    Checkpoints().save_checkpoint(state, folder / "last.ckpt")
    wave = pdunroll.quantize(0.9 * np.sin(np.arange(600) / 9), 4)
    for name, subtype in (("x.wav", "PCM_16"), ("f.wav", "FLOAT"), ("x.flac", "PCM_16"), ("x.aiff", "PCM_16")):
        soundfile.write(folder / name, wave, 16_000, subtype=subtype)
    soundfile.write(folder / "x.au", np.stack([wave, wave], axis=1), 8000)
    return folder


def one_line(error: InputError) -> None:
    assert str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(whole, name):
    target, chance = TARGETS[name], random.Random(f"{SEED} {name}")
    path = whole / target.path
    content = path.read_bytes()
    target.read(whole)
    refused = 0
    try:
        for number in range(EXAMPLES):
            damage = chance.choice(DAMAGES[target.kind])
            path.write_bytes(damage(content, chance))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    target.read(whole)
            except InputError as error:
                refused += 1
                one_line(error)
            except Exception as error:
                error.add_note(f"example {number} of {name}: {damage.__name__}")
                raise
    finally:
        path.write_bytes(content)
    assert refused > EXAMPLES / 10


# ---------------------------------------------------------------- settings

KEYS = [
    "seed", "name", "run", "prepared", "data.frame_length", "data.bits", "data.root", "data.name",
    "network.iterations", "network.rows", "network.step_ratio", "network.extrapolation", "network.step_norm",
    "optimization.learning_rate", "optimization.final_learning_rate", "optimization.adam_epsilon",
    "optimization.decay_counts", "optimization.epochs", "optimization.batch_size", "optimization.shuffle_buffer",
    "optimization.train_frames", "optimization.validation_frames", "optimization.validations_per_epoch",
    "trainer.accelerator", "tracking.mode", "tracking.project", "tracking.entity", "backprop.name",
    "backprop.primal_mask", "evaluation.runs", "evaluation.iterations", "evaluation.points", "evaluation.frames",
    "evaluation.tolerance", "evaluation.max_iterations", "evaluation.batch_size", "evaluation.jobs",
    "theory.frames", "theory.iterations", "quality.sentences", "quality.tolerance", "figures.l_training",
    "figures.step_norms", "figures.regime_borders", "verdicts.margin", "verdicts.resamples",
    "data", "backprop", "algorithm", "tracking", "trainer", "sweep", "experiment", "nothing",
]  # fmt: skip
TEXTS = ["", "null", "true", "0", "-1", "1", "1.5", "nan", "inf", "1e400", "10**30", "9" * 30, "x", "[]", "[1]", "{}"]
TEXTS += ["{a: 1}", "''", "'a b'", "${seed}", "${nowhere}", "[[", "..", "/", "ü", "=", "full", "spectral"]
override = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(TEXTS) | st.text(max_size=8))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["train", "evaluate", "figures", "settings", "theory", "quality", "verdicts", "report"]),
    st.lists(override, min_size=1, max_size=3),
)
def test_settings_are_taken_or_refused(call, name, overrides):
    done = call(name, *overrides)
    assert done.status in (0, 2), (name, overrides, done.err)
    assert "Traceback" not in done.out + done.err, (name, overrides, done.err)
    if done.status == 2:
        lines = [line for line in done.err.splitlines() if line.startswith("pdunroll: ")]
        assert len(lines) == 1, (name, overrides, done.err)
