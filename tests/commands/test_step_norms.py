"""One experiment with trainings of both norms; trainings and files that know nothing of norms yet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pdunroll
from conftest import SMOKE_RUNS, called, copy_results
from pdunroll.errors import InputError
from pdunroll.files import read_table, write_json
from pdunroll.restore import operator_file as operators
from pdunroll.speech.frames import load

SPECTRAL = "full-active_set-spectral-L10-seed0"
FROBENIUS = SMOKE_RUNS[1]
SMOKE = "experiment=smoke"
CHANGES = ("network.step_norm=spectral", "backprop=full", "network.iterations=10")


@pytest.fixture(scope="module")
def mixed(smoke, tmp_path_factory) -> Path:
    """The smoke chain with one more training, of the spectral norm, evaluated and judged again."""
    folder = tmp_path_factory.mktemp("mixed")
    copy_results(smoke, folder)
    for name, *arguments in (("train", "-m", *CHANGES), ("evaluate",), ("verdicts",), ("figures",), ("report",)):
        assert called(name, *arguments, SMOKE, "tracking=off", cwd=folder) == 0
    return folder


def own(rows: list[dict], *key: object) -> list[dict]:
    return [row for row in rows if (row["backprop"], row["step_norm"], row["l_training"]) == key]


def test_the_other_norm_trains_a_folder_of_its_own(mixed):
    record = json.loads((mixed / "multirun/smoke" / SPECTRAL / "run.json").read_text())
    assert record["settings"]["network"]["step_norm"] == "spectral"
    ours, theirs = (np.load(mixed / "multirun/smoke" / cell / "operator.npy") for cell in (SPECTRAL, FROBENIUS))
    assert np.abs(ours - theirs).max() > 1e-4


def test_each_training_is_evaluated_with_its_own_norm(mixed):
    rows = read_table(mixed / "outputs/smoke/evaluation.csv", "")
    test = load(mixed / "outputs/smoke/prepared", "test")
    chosen = np.random.default_rng(0).permutation(len(test.truth))[:64]
    y, x = (torch.from_numpy(array[chosen]).double() for array in (test.truth, test.observation))
    dct = pdunroll.dct_operator(64, 64).double()
    trained = {
        cell: torch.from_numpy(np.load(mixed / "multirun/smoke" / cell / "operator.npy"))
        for cell in (SPECTRAL, FROBENIUS)
    }
    wanted = {
        ("dct", "frobenius", None): dct,
        ("dct", "spectral", None): dct,
        ("full", "frobenius", 10): trained[FROBENIUS].double(),
        ("full", "spectral", 10): trained[SPECTRAL].double(),
    }
    for key, operator in wanted.items():
        curve = {row["l_inference"]: row["mse"] for row in own(rows, *key)}
        assert sorted(curve) == list(range(1, 31))
        for count in (1, 10, 30):
            restored = pdunroll.unroll(operator, x, radius=1 / 16, iterations=count, step_norm=key[1])
            assert curve[count] == pytest.approx(float((restored - y).square().mean()), rel=1e-4)


def test_tables_have_a_row_for_each_norm(mixed):
    outputs = mixed / "outputs/smoke"
    optima = read_table(outputs / "optima.csv", "")
    names = [(row["backprop"], row["step_norm"], row["l_training"]) for row in optima]
    frobenius = [(mode, "frobenius", depth) for mode in ("full", "truncated") for depth in (3, 10)]
    assert names == [("dct", "frobenius", None), ("dct", "spectral", None), *frobenius, ("full", "spectral", 10)]
    first, second = optima[:2]  # the optimum does not depend on the steps
    assert first["optimum_mse"] == second["optimum_mse"]
    assert first["median_gap"] != second["median_gap"]
    training = read_table(outputs / "training.csv", "")
    assert [row["step_norm"] for row in training] == 4 * ["frobenius"] + ["spectral"]
    metrics = json.loads((outputs / "metrics.json").read_text())
    assert set(metrics) == {"quantized", "dct-frobenius", "dct-spectral", *SMOKE_RUNS, SPECTRAL}
    assert metrics["dct-frobenius"] == metrics["dct-spectral"]
    assert {path.stem for path in (outputs / "errors").iterdir()} == set(metrics) - {"quantized"}


def test_verdicts_have_a_column_for_each_norm(mixed):
    rows = read_table(mixed / "outputs/smoke/verdicts.csv", "")
    claims = {norm: [row["claim"] for row in rows if row["step_norm"] == norm] for norm in ("frobenius", "spectral")}
    assert claims["frobenius"] == claims["spectral"]
    assert len(rows) == 2 * len(set(claims["spectral"]))
    lines = (mixed / "outputs/smoke/verdicts.txt").read_text().splitlines()
    assert "claim frobenius spectral".split() in [line.split() for line in lines]


def test_figures_and_report_name_both_norms(mixed):
    table = (mixed / "outputs/smoke/results.txt").read_text().splitlines()
    assert [line.split()[1] for line in table if line.startswith("active_set")] == 4 * ["frobenius"] + ["spectral"]
    report = (mixed / "outputs/smoke/report.html").read_text()
    for title in ("Frobenius step sizes (as published)", "spectral step sizes (largest allowed)", SPECTRAL):
        assert title in report


def test_other_training_code_is_said_and_evaluated_all_the_same(folder, call):
    path = folder / "multirun/smoke" / FROBENIUS / "run.json"
    record = json.loads(path.read_text())
    del record["results"]["product"]  # an earlier version had fewer results
    write_json(path, {**record, "code": 64 * "0"})
    done = call("evaluate", SMOKE)
    assert done.status == 0, done.err
    assert [row["product"] for row in read_table(folder / "outputs/smoke/training.csv", "")].count(None) == 1
    said = done.out + done.err
    assert f"1 of 4 trainings in multirun/smoke were made by another version of pdunroll, {FROBENIUS} the first" in said
    assert "python -m pdunroll train -m experiment=smoke retrain=true` trains them again" in said
    names = json.loads((folder / "outputs/smoke/metrics.json").read_text())
    assert set(SMOKE_RUNS) < set(names)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.step_ratio=4", "network.step_ratio=10.0, not 4.0"),
        ("network.extrapolation=0.5", "network.extrapolation=1.0, not 0.5"),
        ("optimization.adam_epsilon=1e-7", "optimization.adam_epsilon=1e-08, not 1e-07"),
        ("optimization.shuffle_buffer=1000", "optimization.shuffle_buffer=None, not 1000"),
        ("optimization.decay_counts=frames", "optimization.decay_counts=steps, not frames"),
    ],
)
def test_a_changed_setting_is_named_with_both_values(folder, call, override, said):
    refused(call("evaluate", SMOKE, override), "full-active_set-frobenius-L", said, "pdunroll train")


@pytest.mark.parametrize("override", ["network.step_norm=spectral", "network.iterations=3", "seed=4"])
def test_what_trainings_may_differ_in_is_no_changed_setting(folder, call, override):
    assert call("evaluate", SMOKE, override).status == 0


def without(path: Path, group: str, name: str) -> None:
    """Take a setting out of a training's record, as if it was made before the setting existed."""
    record = json.loads(path.read_text())
    del record["settings"][group][name]
    write_json(path, record)


@pytest.mark.parametrize("name", ["adam_epsilon", "shuffle_buffer"])
def test_a_setting_that_a_training_does_not_know_is_named(folder, call, name):
    without(folder / "multirun/smoke" / FROBENIUS / "run.json", "optimization", name)
    refused(call("evaluate", SMOKE), f"optimization.{name}=", f", not unset as {FROBENIUS};")


@pytest.mark.parametrize("stage", ["evaluate", "quality", "theory", "report"])
def test_a_training_from_before_the_norm_is_to_be_trained_again(folder, call, stage):
    without(folder / "multirun/smoke" / FROBENIUS / "run.json", "network", "step_norm")
    done = call(stage, SMOKE)
    refused(done, f"multirun/smoke/{FROBENIUS}", "before the setting network.step_norm existed", "train it again")


def test_training_itself_takes_the_place_of_a_training_from_before_the_norm(folder, call):
    path = folder / "multirun/smoke" / FROBENIUS / "run.json"
    without(path, "network", "step_norm")
    done = call("train", SMOKE, "tracking=off", "network.iterations=10", "hydra.run.dir=multirun/smoke")
    assert done.status == 0, done.err
    assert json.loads(path.read_text())["settings"]["network"]["step_norm"] == "frobenius"
    assert call("evaluate", SMOKE).status == 0


@pytest.mark.parametrize("stage", ["verdicts", "quality_summary"])
@pytest.mark.parametrize("reader", ["report", "dashboard"])
def test_tables_from_before_the_norm_are_to_be_made_again(folder, call, reader, stage):
    path = folder / f"outputs/smoke/{stage}.csv"
    header, rest = path.read_text().split("\n", 1)
    path.write_text(header.replace("step_norm", "other") + "\n" + rest)
    command = f"python -m pdunroll {stage.split('_')[0]} experiment=smoke"
    refused(call(reader, SMOKE, "tracking=off"), f"{stage}.csv", "step_norm", command)


def test_audio_from_before_the_norm_is_to_be_made_again(folder, call):
    path = folder / "outputs/smoke/audio/index.json"
    entries = json.loads(path.read_text())
    write_json(path, [{key: entry[key] for key in entry if key != "step_norm"} for entry in entries])
    refused(call("report", SMOKE), "audio/index.json", "step_norm", "pdunroll quality")


def test_operators_from_before_the_norm_restore_as_ever(folder):
    """An optimum does not depend on step sizes."""
    cell = folder / "multirun/smoke" / FROBENIUS
    without(cell / "run.json", "network", "step_norm")
    made = operators.from_run(cell, "the command")
    operators.save(folder / "own.npz", made)
    for path in (folder / "own.npz", cell / "operator.npy"):
        found = operators.load(path)
        np.testing.assert_array_equal(found.matrix, np.load(cell / "operator.npy"))
        assert found.provenance["settings"]["network"] == {
            "iterations": 10, "rows": None, "step_ratio": 10.0, "extrapolation": 1.0,
        }  # fmt: skip


@pytest.mark.parametrize("provenance", [{}, {"data": 5, "bits": 4, "sample_rate": 16000}, {"settings": None}])
def test_an_operator_file_may_say_anything_of_its_origin(folder, call, provenance):
    operators.save(folder / "own.npz", operators.Operator(pdunroll.dct_operator(64, 64).numpy(), provenance))
    wave = pdunroll.quantize(np.random.default_rng(0).uniform(-1, 1, 200), 4)
    import soundfile

    soundfile.write(folder / "in.wav", wave, 16000)
    done = call("restore", "in.wav", "out.wav", "--operator", "own.npz")
    assert done.status == 0, done.err
    assert "operator: own.npz, 64 x 64, " in done.out


@pytest.mark.parametrize("key", ["settings", "results"])
def test_a_damaged_record_beside_an_operator_is_named(folder, key):
    path = folder / "multirun/smoke" / FROBENIUS / "run.json"
    write_json(path, {**json.loads(path.read_text()), key: {}})
    with pytest.raises(InputError, match=r"run\.json cannot be read") as caught:
        operators.load(path.with_name("operator.npy"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "evaluate", "theory", "figures"])
def test_other_norms_are_refused_by_the_commands(call, tmp_path, name):
    refused(
        call(name, SMOKE, "network.step_norm=foo"), "network.step_norm must be one of frobenius, spectral, got 'foo'"
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"]


def refused(outcome, *named: str) -> None:
    """Status 2 and one line that says what it is about."""
    assert outcome.status == 2, outcome.out + outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("pdunroll: ")]
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    for text in named:
        assert text in lines[0], lines[0]
