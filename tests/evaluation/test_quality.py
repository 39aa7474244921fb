"""Speech quality: the metrics against their formulas, the sentences put together, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import settings_of, table
from pdunroll.evaluation import quality
from pdunroll.files import read_table, write_table
from pdunroll.speech.frames import load, read_manifest
from pdunroll.training.run_folder import finished_runs

RATE = 16000


def sdr(original, signal):
    return 10 * np.log10((original**2).sum() / ((original - signal) ** 2).sum())


def test_sdr_and_si_sdr_are_their_formulas():
    rng = np.random.default_rng(0)
    original = rng.normal(size=4000)
    signal = 0.5 * original + 0.1 * rng.normal(size=4000)
    found = quality.measures(original.astype(np.float32), signal.astype(np.float32), RATE)
    assert found["sdr_db"] == pytest.approx(sdr(original, signal), abs=1e-3)
    scaled = original * (signal @ original) / (original @ original)
    assert found["si_sdr_db"] == pytest.approx(
        10 * np.log10((scaled**2).sum() / ((scaled - signal) ** 2).sum()), abs=1e-3
    )


def voiced(seconds: float = 2.0) -> np.ndarray:
    """Something speech-like: harmonics under a syllable's envelope."""
    t = np.arange(int(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 20))
    return (0.3 * tone * (0.2 + np.sin(2 * np.pi * 2 * t) ** 2)).astype(np.float32)


def test_less_noise_is_better_by_every_metric():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    noise = np.random.default_rng(1).normal(size=2 * RATE).astype(np.float32)
    some, more = (quality.measures(voiced(), voiced() + level * noise, RATE) for level in (0.01, 0.2))
    assert set(some) == set(quality.METRICS)
    for metric in quality.METRICS:
        assert some[metric] > more[metric], metric


def test_without_the_packages_two_metrics_are_left_out(monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    quality.packages_are_there.cache_clear()
    found = quality.measures(voiced(), 0.9 * voiced(), RATE)
    quality.packages_are_there.cache_clear()
    assert (found["pesq_wb"], found["stoi"]) == (None, None)
    assert found["sdr_db"] == pytest.approx(20)
    assert "pip install -e '.[speech]'" in caplog.text


def test_summary_is_the_mean_and_the_paired_gain():
    rows = [
        {**dict.fromkeys(quality.KEY), "restoration": name, "file": file, "metric": "sdr_db", "value": value}
        for name, values in (("quantized", (1.0, 5.0, 3.0)), ("dct", (3.0, 6.0, None)))
        for file, value in zip("abc", values, strict=True)
    ]
    base, dct = quality.summary(rows, seed=0)
    assert (base["mean"], base["gain"], base["low"], base["sentences"]) == (3.0, 0.0, None, 3)
    assert (dct["mean"], dct["gain"], dct["sentences"]) == (4.5, 1.5, 2)
    assert 1.0 <= dct["low"] <= dct["gain"] <= dct["high"] <= 2.0


def test_the_command_writes_tables_and_audio(folder, call):
    done = call("quality", "experiment=smoke", "quality.listen=1")
    assert done.status == 0, done.err
    outputs = folder / "outputs/smoke"
    rows = table(outputs / "quality.csv")
    names = {row["file"] for row in rows}
    assert len(names) == 2
    assert {row["restoration"] for row in rows} == {"quantized", "dct", "full", "truncated"}
    best = {
        mode: min(
            (row for row in table(outputs / "optima.csv") if row["backprop"] == mode),
            key=lambda row: float(row["validation_optimum_mse"]),
        )["l_training"]
        for mode in ("full", "truncated")
    }
    for row in rows:
        if row["restoration"] in best:
            assert f"L{best[row['restoration']]}-" in row["run"]
            assert row["step_norm"] == "frobenius"

    # the frames of one file, in order, and nothing else
    test, files = load(outputs / "prepared", "test"), read_manifest(outputs / "prepared")["splits"]["test"]["files"]
    for number, file in enumerate(files):
        if file["name"] in names:
            original, quantized = (part[test.file == number].ravel() for part in (test.truth, test.observation))
            assert len(original) == file["frames"] * 64
            (row,) = [
                row for row in rows
                if (row["file"], row["restoration"], row["metric"]) == (file["name"], "quantized", "sdr_db")
            ]  # fmt: skip
            assert float(row["value"]) == pytest.approx(sdr(original.astype(float), quantized.astype(float)), abs=1e-3)

    index = json.loads((outputs / "audio/index.json").read_text())
    assert [entry["restoration"] for entry in index] == ["original", "quantized", "dct", "full", "truncated"]
    for entry in index:
        samples, rate = soundfile.read(outputs / "audio" / entry["file"])
        assert (rate, len(samples) / rate) == (RATE, entry["seconds"])
    (number,) = [number for number, file in enumerate(files) if file["name"] == index[0]["name"]]
    samples = soundfile.read(outputs / "audio" / index[0]["file"])[0]
    np.testing.assert_allclose(samples, test.truth[test.file == number].ravel(), atol=2 / 2**15)


@pytest.mark.parametrize("best", [3, 10])
def test_the_operator_is_the_one_that_validates_best_at_the_optimum(folder, monkeypatch, best):
    """Not after L iterations, and not on the test frames: L = 10 is the better one there."""
    monkeypatch.chdir(folder)
    path = folder / "outputs/smoke/optima.csv"
    rows = read_table(path, "")
    for row in rows:
        row["validation_optimum_mse"] = 1e-4 if row["l_training"] == best else 2e-4
        row["optimum_mse"] = 2e-4 if row["l_training"] == best else 1e-4
    write_table(path, rows)
    config = settings_of("experiment=smoke")
    runs = finished_runs(Path(config.evaluation.runs), read_manifest(config.prepared)["digest"], config.name)
    chosen = [key for key, _ in quality.candidates(config.outputs, runs)]
    assert chosen == [
        {"restoration": "dct", "primal_mask": None, "step_norm": None, "run": None},
        *(
            {
                "restoration": mode, "primal_mask": "active_set", "step_norm": "frobenius",
                "run": f"{label}-active_set-frobenius-L{best}-seed0",
            }
            for mode, label in (("full", "full"), ("truncated", "truncated30"))
        ),
    ]  # fmt: skip


def test_a_training_that_was_not_evaluated_names_the_command(folder, call):
    for name in ("evaluation", "optima", "training"):
        path = folder / f"outputs/smoke/{name}.csv"
        write_table(path, [row for row in read_table(path, "") if row["backprop"] != "truncated"])
    done = call("quality", "experiment=smoke")
    assert done.status == 2
    (line,) = done.err.strip().splitlines()
    assert "truncated30-active_set-frobenius-L" in line
    assert "python -m pdunroll evaluate experiment=smoke" in line


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("quality.sentences=0", "quality.sentences"),
        ("quality.listen=-1", "quality.listen"),
        ("quality.tolerance=0", "quality.tolerance"),
        ("quality.jobs=1", "prepare"),
    ],
)
def test_bad_settings_are_named(call, override, named):
    done = call("quality", "experiment=smoke", override)
    assert done.status == 2
    assert named in done.err
    assert len(done.err.strip().splitlines()) == 1
