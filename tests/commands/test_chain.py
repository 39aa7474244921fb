"""The chain by the command line: what it writes, what it skips, what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ruamel.yaml import YAML

import pdunroll
from conftest import ROOT, SMOKE_RUNS, command, environment, replace, repro, table
from pdunroll.speech.frames import load


@pytest.fixture
def finished(smoke, tmp_path) -> Path:
    """A copy of the repository and its finished smoke chain, to be changed."""
    shutil.copytree(smoke, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


# ---------------------------------------------------------------- what comes out


def test_prepare_prints_what_it_made(smoke):
    manifest = json.loads((smoke / "outputs/smoke/prepared/manifest.json").read_text())
    printed = (smoke / "prepare.out").read_text()
    for split, content in manifest["splits"].items():
        (line,) = [line for line in printed.splitlines() if line.startswith(split)]
        for value in (content["frames"], f"{content['quantized_mse']:.3e}", f"{content['quantized_snr_db']:.2f} dB"):
            assert str(value) in line


def test_cells(smoke):
    assert sorted(path.name for path in (smoke / "multirun/smoke").iterdir() if path.is_dir()) == sorted(SMOKE_RUNS)
    for cell in SMOKE_RUNS:
        folder = smoke / "multirun/smoke" / cell
        record = json.loads((folder / "run.json").read_text())
        history = table(folder / "training.csv")
        assert record["status"] == "finished"
        assert [row["step"] for row in history] == ["0", "8", "16"]
        assert record["results"]["validation_mse"] == min(float(row["validation_mse"]) for row in history)
        assert np.load(folder / "operator.npy").shape == (64, 64)
        assert len(list((folder / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_evaluation_table_against_a_direct_computation(smoke):
    rows = table(smoke / "outputs/smoke/evaluation.csv")
    assert list(rows[0])[:4] == ["backprop", "primal_mask", "step_norm", "l_training"]
    assert {"l_inference", "mse"} <= set(rows[0])
    curves, validation_curves = defaultdict(dict), defaultdict(dict)
    for row in rows:
        curves[row["backprop"], row["l_training"]][int(row["l_inference"])] = float(row["mse"])
        validation_curves[row["backprop"], row["l_training"]][int(row["l_inference"])] = float(row["validation_mse"])
    assert set(curves) == {(m, l) for m in ("full", "truncated") for l in ("3", "10")} | {("dct", ""), ("none", "")}
    assert all(sorted(curve) == list(range(1, 31)) for curve in curves.values())
    assert {(row["backprop"], row["step_norm"]) for row in rows} == {
        ("none", ""), ("dct", "frobenius"), ("full", "frobenius"), ("truncated", "frobenius"),
    }  # fmt: skip

    operators = {("dct", ""): pdunroll.dct_operator(64, 64)}
    for mode, label in (("full", "full"), ("truncated", "truncated30")):
        path = smoke / f"multirun/smoke/{label}-active_set-frobenius-L10-seed0/operator.npy"
        operators[mode, "10"] = torch.from_numpy(np.load(path))
    for split, measured in (("test", curves), ("validation", validation_curves)):
        frames = load(smoke / "outputs/smoke/prepared", split)
        chosen = np.random.default_rng(0).permutation(len(frames.truth))[:64]
        y, x = (torch.from_numpy(array[chosen]).double() for array in (frames.truth, frames.observation))
        for key, operator in operators.items():
            for count in (1, 10, 30):
                restored = pdunroll.unroll(operator.double(), x, radius=1 / 16, iterations=count)
                assert measured[key][count] == pytest.approx(float((restored - y).square().mean()), rel=1e-4)
        for count in (1, 30):
            assert measured["none", ""][count] == pytest.approx(float((x - y).square().mean()), rel=1e-6)


def test_metrics_and_training_tables_agree_with_their_sources(smoke):
    metrics = json.loads((smoke / "outputs/smoke/metrics.json").read_text())
    assert set(metrics) == {"quantized", "dct-frobenius", *SMOKE_RUNS}
    rows = table(smoke / "outputs/smoke/evaluation.csv")
    (row,) = [
        row for row in rows if (row["backprop"], row["l_training"], row["l_inference"]) == ("truncated", "3", "3")
    ]
    assert metrics["truncated30-active_set-frobenius-L3-seed0"]["classical"] == float(row["mse"])
    for row in table(smoke / "outputs/smoke/optima.csv"):
        if row["backprop"] == "dct":
            assert metrics["dct-frobenius"] == float(row["optimum_mse"])
        else:
            label = {"full": "full", "truncated": "truncated30"}[row["backprop"]]
            name = f"{label}-active_set-frobenius-L{row['l_training']}-seed0"
            assert metrics[name]["optimality"] == float(row["optimum_mse"])
            assert metrics[name].get("n1") == (int(row["n1"]) if row["n1"] else None)
    times = table(smoke / "outputs/smoke/training.csv")
    assert [(row["backprop"], row["l_training"]) for row in times] == [
        ("full", "3"), ("full", "10"), ("truncated", "3"), ("truncated", "10"),
    ]  # fmt: skip
    for row in times:
        assert 0 < float(row["seconds_per_epoch"]) == pytest.approx(float(row["seconds"]) / 2)
        assert row["steps"] == "16"


def test_optima_are_certified(smoke):
    rows = table(smoke / "outputs/smoke/optima.csv")
    assert [(row["backprop"], row["l_training"]) for row in rows] == [
        ("dct", ""), ("full", "3"), ("full", "10"), ("truncated", "3"), ("truncated", "10"),
    ]  # fmt: skip
    test = load(smoke / "outputs/smoke/prepared", "test")
    chosen = np.random.default_rng(0).permutation(len(test.truth))[:64]
    y, x = (torch.from_numpy(array[chosen]).double() for array in (test.truth, test.observation))
    for row, cell in zip(rows, [None, *SMOKE_RUNS], strict=True):
        assert row["step_norm"] == "frobenius"
        assert float(row["certified"]) == 1.0
        assert float(row["largest_optimum_gap"]) <= 1e-6 < float(row["largest_gap"])
        assert 0 <= float(row["median_gap"]) <= float(row["largest_gap"])
        path = smoke / f"multirun/smoke/{cell}/operator.npy"
        operator = pdunroll.dct_operator(64, 64) if cell is None else torch.from_numpy(np.load(path))
        restored = pdunroll.unroll(operator.double(), x, radius=1 / 16, iterations=10_000, step_norm="spectral")
        reached = float((restored - y).square().mean())
        assert float(row["optimum_mse"]) == pytest.approx(reached, rel=1e-3)


def test_theory_tables(smoke):
    folder = smoke / "outputs/smoke/theory"
    counts = {(row["operator"], row["step_norm"]): row for row in table(folder / "counts.csv")}
    cell = "full-active_set-frobenius-L10-seed0"
    assert [*counts] == [("dct", "frobenius"), ("dct", "spectral"), (cell, "frobenius")]
    for row in counts.values():
        assert sum(int(row[kind]) for kind in ("trivial", "vertex", "degenerate")) == 16
    fidelity = table(folder / "fidelity.csv")
    for norm in ("frobenius", "spectral"):
        dct = [row for row in fidelity if (row["operator"], row["step_norm"]) == ("dct", norm)]
        full = [row for row in dct if row["backprop"] == "full"]
        assert [int(row["l"]) for row in full if row["primal_mask"] == "released"] == [10, 30, 100]
    assert all(-1 <= float(row["limit_cosine"]) <= 1 for row in fidelity)
    assert len(table(folder / "settling.csv")) == 3 * 4
    assert len(table(folder / "fits.csv")) == 3 * 4 * 2
    quantities = {row["quantity"] for row in table(folder / "decay.csv")}
    assert {"delta_primal", "delta_dual", "k_delta_primal", "kt_delta_dual", "kernel_distance"} < quantities
    modes = table(folder / "modes.csv")
    presets = {path.stem for path in (smoke / "conf/backprop").iterdir()}
    assert {re.match("[a-z]+", row["mode"])[0] for row in modes} == presets
    assert len(modes) == 3 * (2 * len(presets) - 2)  # both masks, but for implicit and piggyback
    assert all(float(row["full_error"]) == 0 for row in modes if row["mode"].startswith("full-"))
    for name in ("fidelity", "modes", "decay", "settling"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_figures_and_summary(smoke):
    for name in ("regimes", "interpretability", "bump", "speed"):
        assert (smoke / f"outputs/smoke/figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (smoke / f"outputs/smoke/figures/{name}.svg").read_text()
    printed = (smoke / "figures.out").read_text()
    assert printed.count("active_set") == 4
    assert "outputs/smoke/figures/regimes.png" in printed
    assert (smoke / "outputs/smoke/results.txt").read_text() in printed


def test_grid_is_log_spaced_and_contains_the_depths():
    from pdunroll.evaluation.curves import log_grid

    for iterations, points in ((100_000, 100), (3000, 100), (3000, 250)):
        grid = log_grid(iterations, points, [37, 700])
        assert len(grid) >= points
        assert grid[0] == 1
        assert grid[-1] == iterations
        assert {37, 700} <= set(grid.tolist())
        assert (np.diff(grid) > 0).all()
    assert log_grid(5, 100).tolist() == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------- again, after changes

ONE = ("backprop=full", "network.iterations=3")  # of the cells, the first


def sweep(call, *arguments: str) -> tuple[set[str], set[str]]:
    """Run the smoke sweep once more; the names of the cells that were trained and of those that were skipped."""
    done = call("train", "-m", "experiment=smoke", "tracking=off", *arguments)
    assert done.status == 0, done.err
    output = done.out + done.err
    trained = {cell for cell in SMOKE_RUNS if f"{cell}  step 16" in output}
    skipped = {cell for cell in SMOKE_RUNS if f"{cell} is finished" in output}
    return trained, skipped


def test_finished_cells_are_skipped_and_changed_ones_trained(folder, call):
    before = {cell: (folder / "multirun/smoke" / cell / "operator.npy").read_bytes() for cell in SMOKE_RUNS}
    shutil.rmtree(folder / "multirun/smoke" / SMOKE_RUNS[0])
    (folder / "multirun/smoke" / SMOKE_RUNS[1] / "operator.npy").unlink()
    assert sweep(call) == (set(SMOKE_RUNS[:2]), set(SMOKE_RUNS[2:]))
    after = {cell: (folder / "multirun/smoke" / cell / "operator.npy").read_bytes() for cell in SMOKE_RUNS}
    assert before == after
    assert sweep(call, "optimization.learning_rate=2e-4", *ONE) == ({SMOKE_RUNS[0]}, set())
    assert before[SMOKE_RUNS[0]] != (folder / "multirun/smoke" / SMOKE_RUNS[0] / "operator.npy").read_bytes()


def test_changed_data_trains_again(folder, call):
    assert call("prepare", "experiment=smoke", "data.bits=3").status == 0
    assert sweep(call, "data.bits=3", *ONE) == ({SMOKE_RUNS[0]}, set())


def test_evaluation_reuses_what_it_has(folder, call):
    first = (folder / "outputs/smoke/evaluation.csv").read_bytes()
    path = folder / "outputs/smoke/errors" / f"{SMOKE_RUNS[0]}.npz"
    written, damaged = path.stat().st_mtime_ns, folder / "outputs/smoke/errors" / f"{SMOKE_RUNS[1]}.npz"
    damaged.write_bytes(b"damaged")
    assert call("evaluate", "experiment=smoke").status == 0
    assert (folder / "outputs/smoke/evaluation.csv").read_bytes() == first
    assert path.stat().st_mtime_ns == written
    assert np.load(damaged)["errors"].shape == (30, 64)
    assert call("evaluate", "experiment=smoke", "evaluation.frames=null").status == 0
    assert len(np.load(path)["frames"]) == len(load(folder / "outputs/smoke/prepared", "test").truth)


def ran(printed: str) -> set[str]:
    """The stages that ran, by what `dvc repro` printed."""
    return set(re.findall(r"^Running stage '(\w+)", printed, re.MULTILINE))


STAGES = {"settings", "prepare", "sweep", "operators", "theory", "evaluate", "figures", "verdicts", "quality", "report"}


def test_dvc_runs_the_chain_once_and_then_what_changed(finished):
    assert {path.stem for path in finished.glob("*.out")} == STAGES
    assert "truncated (b = 30)" in (finished / "figures.out").read_text()
    preset = finished / "conf/experiment/smoke.yaml"
    comment(finished, preset)
    assert ran(repro(finished)) == {"settings"}
    replace(preset, "\n  frames: 64", "\n  frames: 63")
    assert ran(repro(finished)) == {"settings", "evaluate", "quality", "figures", "verdicts", "report"}
    settings = yaml.safe_load((finished / "outputs/smoke/settings.yaml").read_text())
    assert settings["evaluation"]["frames"] == 63


@pytest.mark.parametrize("experiment", ["demo", "paper"])
def test_the_committed_lock_has_the_stages_and_settings_of_today(call, tmp_path, experiment):
    assert call("settings", f"experiment={experiment}").status == 0
    settings = yaml.safe_load((tmp_path / f"outputs/{experiment}/settings.yaml").read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    lock = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]  # in YAML 1.2, where 1e-08 is a number
    names = [name for name in lock if name.endswith(f"@{experiment}")]
    assert {"settings", "prepare", "sweep", "operators", "evaluate", "figures"} <= {n.split("@")[0] for n in names}
    for name in names:
        stage, recorded = name.split("@")[0], lock[name]
        assert recorded["cmd"] == stages[stage]["do"]["cmd"].replace("${item}", experiment)
        for section, given in recorded.get("params", {}).get(f"outputs/{experiment}/settings.yaml", {}).items():
            assert given == settings[section], f"dvc.lock is old: {name} {section}"


def test_operators_can_be_pushed_and_pulled(finished):
    def dvc(*arguments: str) -> str:
        program = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(
            program, cwd=finished, env=environment(finished), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    operators = finished / "outputs/smoke/operators"
    before = {path.name: path.read_bytes() for path in operators.iterdir()}
    assert set(before) == {f"{name}.npz" for name in SMOKE_RUNS}
    dvc("remote", "add", "--default", "mine", str(finished / "remote"))
    dvc("push", "operators")
    shutil.rmtree(operators)
    shutil.rmtree(finished / ".dvc/cache")
    dvc("pull", "operators")
    assert {path.name: path.read_bytes() for path in operators.iterdir()} == before
    dvc("plots", "show", "inference")
    assert "Test error against the number of iterations" in (finished / "dvc_plots/index.html").read_text()


def comment(project: Path, preset: Path) -> None:
    """Change what changes nothing."""
    preset.write_text(preset.read_text() + "# a comment\n")
    (project / "README.md").write_text("Other words.\n")
    replace(project / "src/pdunroll/training/module.py", "class Unrolled", "# a comment\n\n\nclass Unrolled")


@pytest.mark.slow
def test_dvc_runs_what_changed_code_decides(finished):
    replace(finished / "src/pdunroll/report/figures.py", "markersize=7", "markersize=8")
    assert ran(repro(finished)) == {"settings", "figures", "report"}
    before = (finished / "outputs/smoke/evaluation.csv").read_bytes()
    replace(finished / "src/pdunroll/training/module.py", "0.5 * (self._restored", "0.6 * (self._restored")
    printed = repro(finished)
    assert {"sweep", "evaluate"} <= ran(printed)
    assert "prepare" not in ran(printed)
    assert all(f"{cell}  step 16" in printed for cell in SMOKE_RUNS)
    assert (finished / "outputs/smoke/evaluation.csv").read_bytes() != before


def test_only_a_changed_strategy_of_ones_own_trains_again_by_itself(project, call, monkeypatch):
    (project / "src/mine.py").write_text("import pdunroll\n\n\nclass Mine(pdunroll.Full):\n    pass\n")
    preset = (project / "conf/backprop/full.yaml").read_text()
    (project / "conf/backprop/mine.yaml").write_text(
        preset.replace("pdunroll.Full", "mine.Mine").replace("full", "mine")
    )

    def trained(*overrides: str) -> tuple[set[str], str]:
        done = subprocess.run(
            [sys.executable, "-m", "pdunroll", "train", "-m", "experiment=smoke", "tracking=off",
             "backprop=full,mine", "network.iterations=3", *overrides],
            cwd=project, env=environment(project), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        names = {name for name in ("full", "mine") if f"{name}-active_set-frobenius-L3-seed0  step 16" in done.stdout}
        return names, done.stdout

    assert call("prepare", "experiment=smoke").status == 0
    assert trained()[0] == {"full", "mine"}
    replace(project / "src/mine.py", "    pass", "    number = 1")
    replace(project / "src/pdunroll/errors.py", "import math\n", "import cmath\nimport math\n")  # decides no number
    assert trained()[0] == {"mine"}
    replace(project / "src/pdunroll/core/unroll.py", "import torch\n", "import cmath\nimport torch\n")
    names, printed = trained()
    assert names == set()
    assert "2 finished trainings by another version of pdunroll are kept: " in printed
    assert trained("retrain=true")[0] == {"full", "mine"}
    names, printed = trained("retrain=true")
    assert names == set()
    assert "all 2 trainings are finished" in printed

    monkeypatch.syspath_prepend(project / "src")  # where the next stages find mine
    common = (
        "experiment=smoke", "tracking=off", "quality.sentences=1", "theory.runs=[mine-active_set-frobenius-L3-seed0]",
    )  # fmt: skip
    assert call("train", "-m", "backprop=implicit", "network.iterations=3", *common).status == 0
    for stage in ("evaluate", "theory", "quality", "figures", "verdicts", "report"):  # both are everywhere
        done = call(stage, *common)
        assert done.status == 0, done.err
    for name in ("evaluation.csv", "results.txt", "figures/regimes.svg", "quality_summary.csv", "report.html"):
        assert {"mine", "implicit"} <= set(re.findall("[a-z]+", (project / "outputs/smoke" / name).read_text())), name


def test_a_changed_audio_file_is_noticed(project):
    import soundfile

    audio = project / "audio"
    audio.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        soundfile.write(audio / f"{number}.wav", 0.5 * rng.uniform(-1, 1, 4000), 16000)
    preset = project / "conf/experiment/smoke.yaml"
    replace(preset, "data:\n", "defaults:\n  - override /data: folder\ndata:\n  root: audio\n")
    replace(preset, "  source:\n    minutes: 0.5\n", "")

    def prepared() -> tuple[bool, str]:
        printed = repro(project, "prepare")
        manifest = json.loads((project / "outputs/smoke/prepared/manifest.json").read_text())
        return "prepare" in ran(printed), manifest["digest"]

    again, first = prepared()
    assert again
    assert prepared() == (False, first)
    soundfile.write(audio / "2.wav", 0.5 * rng.uniform(-1, 1, 4000), 16000)
    again, second = prepared()
    assert again
    assert second != first


# ---------------------------------------------------------------- bad input


def refused(outcome, *named: str) -> None:
    """Status 2 and one line that says what it is about."""
    assert outcome.status == 2
    lines = [line for line in outcome.err.splitlines() if line.startswith("pdunroll: ")]
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    for text in named:
        assert text in lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["backprop=fast"], ["backprop/fast", "full", "truncated"]),
        (["experiment=large"], ["experiment/large", "demo"]),
        (["sweep=regime9"], ["sweep/regime9"]),
        (["data=radio"], ["data/radio"]),
        (["network.iterations=0"], ["network.iterations"]),
        (["network.iterations=ten"], ["network.iterations"]),
        (["backprop=truncated", "backprop.iterations=0"], ["backprop.iterations"]),
        (["backprop.primal_mask=mine"], ["primal_mask", "active_set", "released"]),
        (["data.bits=0"], ["data.bits"]),
        (["data.bits=33"], ["data.bits"]),
        (["optimization.learning_rate=-1e-4"], ["optimization.learning_rate"]),
        (["optimization.learning_rates=1"], ["learning_rates"]),
    ],
)
def test_bad_settings_are_refused(call, tmp_path, arguments, named):
    refused(call("train", *arguments), *named)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"]


def test_bad_settings_in_a_sweep_are_refused(tmp_path):
    done = command("train", "-m", "experiment=smoke", "network.iterations=0,3", cwd=tmp_path)
    assert done.returncode == 2
    assert "pdunroll: network.iterations (L) must be an integer in 1..1000000, got 0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "makes"),
    [
        ("train", "pdunroll prepare"),
        ("evaluate", "pdunroll prepare"),
        ("figures", "pdunroll evaluate"),
    ],
)
def test_stages_out_of_order_say_what_to_run(call, name, makes):
    refused(call(name, "experiment=smoke"), makes)


def test_evaluation_before_training(folder, call):
    shutil.rmtree(folder / "multirun")
    refused(call("evaluate", "experiment=smoke"), "multirun/smoke", "pdunroll train -m experiment=smoke")


def test_data_that_is_not_there(call, tmp_path):
    refused(call("prepare", "data=folder"), "data.root")
    refused(call("prepare", "data=folder", "data.root=nowhere"), "data.root", "nowhere")
    (tmp_path / "empty").mkdir()
    refused(call("prepare", "data=folder", "data.root=empty"), "empty")
    refused(call("prepare", "data=ieee", "data.root=empty"), "dev_data/S_01_09_16k.wav")
    assert not (tmp_path / "outputs/demo/prepared").exists()


def test_data_of_other_settings(folder, call):
    refused(call("train", "experiment=smoke", "data.bits=5"), "data.bits=4", "not 5")


def test_theory_of_what_is_not_there(folder, call):
    refused(call("theory", "experiment=smoke", "theory.runs=[nothing]"), "theory.runs", "nothing")
    refused(call("theory", "experiment=smoke", "theory.frames=16"), "theory.frames", "theory.count_frames")


def test_operator_of_another_shape_or_damaged(folder, call):
    path = folder / "multirun/smoke" / SMOKE_RUNS[0] / "operator.npy"
    np.save(path, np.eye(5, dtype=np.float32))
    refused(call("evaluate", "experiment=smoke"), f"{SMOKE_RUNS[0]}/operator.npy", "(5, 5)", "(64, 64)")
    path.write_bytes(b"")
    refused(call("evaluate", "experiment=smoke"), f"{SMOKE_RUNS[0]}/operator.npy")
    np.save(path, np.array([{}]), allow_pickle=True)
    refused(call("evaluate", "experiment=smoke"), f"{SMOKE_RUNS[0]}/operator.npy")
    (path.parent / "run.json").write_text("{")
    refused(call("evaluate", "experiment=smoke"), f"{SMOKE_RUNS[0]}/run.json")


def test_evaluation_refuses_to_mix_protocols(folder, call):
    changed = call("evaluate", "experiment=smoke", "optimization.learning_rate=1")
    refused(changed, SMOKE_RUNS[0].split("-")[0], "optimization.learning_rate=0.0001, not 1.0")
    refused(call("evaluate", "experiment=smoke", "evaluation.iterations=9"), "evaluation.iterations", "10")


def test_online_tracking_needs_a_login(folder, call, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    refused(call("train", "experiment=smoke", "tracking=online", "seed=9"), "wandb login")


def test_unfinished_cells_are_left_out_with_a_warning(folder, call):
    path = folder / "multirun/smoke" / SMOKE_RUNS[0] / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "training", "results": None}))
    outcome = call("evaluate", "experiment=smoke")
    assert outcome.status == 0
    assert f"{SMOKE_RUNS[0]} is not finished" in outcome.out + outcome.err
    assert SMOKE_RUNS[0] not in json.loads((folder / "outputs/smoke/metrics.json").read_text())
    assert math.isfinite(float(table(folder / "outputs/smoke/evaluation.csv")[0]["mse"]))
