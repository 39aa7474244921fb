"""The whole chain on speech that is clipped, incomplete, or clipped and quantized."""

from __future__ import annotations

import json

import pytest

from conftest import refused, table

STAGES = ("evaluate", "theory", "quality", "figures", "verdicts", "report")


@pytest.mark.parametrize(
    ("degradation", "name"),
    [
        ("clipped", "clipped"),
        pytest.param("missing", "incomplete", marks=pytest.mark.slow),
        pytest.param("quantized_clipped", "quantized and clipped", marks=pytest.mark.slow),
    ],
)
def test_the_chain_runs_with_a_degradation(call, tmp_path, degradation, name):
    common = [
        "experiment=smoke", "name=other", f"degradation={degradation}", "tracking=off",
        "theory.runs=[full-active_set-spectral-L10-seed0]", "evaluation.iterations=300",
    ]  # fmt: skip

    def run(stage, *more):
        done = call(stage, *more, *common)
        assert done.status == 0, done.err
        return done.out

    assert f"{name} MSE" in run("prepare")
    run("train", "-m", "backprop=full,truncated", "network.iterations=10", "network.step_norm=spectral")
    printed = {stage: run(stage) for stage in STAGES}
    outputs = tmp_path / "outputs/other"
    assert f"test MSE   {name} " in printed["figures"]
    metrics = json.loads((outputs / "metrics.json").read_text())
    assert metrics["dct-spectral"] < metrics[name]  # the optimum is nearer to the truth
    assert all(float(row["certified"]) == 1 for row in table(outputs / "optima.csv"))
    gains = {row["restoration"]: float(row["gain"]) for row in table(outputs / "quality_summary.csv")[::2]}
    assert set(gains) == {name, "dct", "full", "truncated"}
    assert gains["dct"] > 0
    assert f">{name} MSE<" in (outputs / "report.html").read_text()
    verdicts = table(outputs / "verdicts.csv")
    assert any(row["verdict"] != "undecided" for row in verdicts)
    settings = json.loads((tmp_path / "multirun/other/full-active_set-spectral-L10-seed0/run.json").read_text())[
        "settings"
    ]
    assert set(settings["data"]) > {"name", "frame_length", "bits"}
    refused(call("train", "experiment=smoke", "name=other", "tracking=off"), "was prepared with data.")
