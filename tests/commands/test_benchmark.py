"""The benchmark measures what it says; its timings are nobody's to assert."""

from __future__ import annotations

import shutil

import pytest
import torch

from conftest import table
from oracles import ETA, problem
from pdunroll import Full, dct_operator
from pdunroll.commands import benchmark
from pdunroll.commands.benchmark import Problem

SMALL = (
    "benchmark.depths=[2,3]", "benchmark.batches=[4]", "benchmark.threads=[1]", "benchmark.rounds=1",
    "benchmark.frames=8", "benchmark.jobs=1",
)  # fmt: skip


def test_what_is_compared_is_the_same_gradient():
    _, truth, x = problem(18, 18)
    given = Problem(dct_operator(18, 18, torch.float64).requires_grad_(), truth, x, ETA)
    ours, theirs = benchmark.training_step(given, 9, Full())(), benchmark.autograd_step(given, 9)()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_it_writes_its_tables(smoke, call, tmp_path, monkeypatch):
    shutil.copytree(smoke / "outputs/smoke/prepared", tmp_path / "outputs/smoke/prepared")
    monkeypatch.setattr(shutil, "which", lambda name: None)  # compiling takes longer than all the rest
    monkeypatch.setattr(benchmark, "peaks", lambda *_: [{"mode": "full", "batch": 4, "l": 2, "peak_mb": 1.0}])
    done = call("benchmark", "experiment=smoke", *SMALL)
    assert done.status == 0, done.err
    rows = table(tmp_path / "outputs/smoke/benchmark/steps.csv")
    assert {(row["mode"], row["l"]) for row in rows} == {
        (mode, depth) for mode in ("full", "truncated", "implicit", "autograd") for depth in "23"
    }
    for row in rows:
        products = {"full": 6 * int(row["l"]), "truncated": 2 * int(row["l"]) + 60, "implicit": 2 * int(row["l"])}
        limit = products.get(row["mode"], 6 * int(row["l"])) * 2 * 4 * 64 * 64 / float(row["gflops"]) / 1e6
        assert float(row["limit_ms"]) == pytest.approx(limit)
        assert float(row["ratio"]) == pytest.approx(float(row["ms"]) / float(row["limit_ms"]))
    assert len(table(tmp_path / "outputs/smoke/benchmark/other.csv")) == 6
    assert (tmp_path / "outputs/smoke/benchmark/steps.png").is_file()


def test_a_gpu_is_measured_by_graphs_and_without(captures, monkeypatch):
    class Settings:
        class benchmark:  # noqa: N801
            depths, batches, rounds = [2, 8], [4], 1

    _, truth, x = problem(18, 18)
    given = Problem(dct_operator(18, 18, torch.float64).requires_grad_(), truth, x, ETA)
    monkeypatch.setattr(benchmark, "problem", lambda *_: given)
    rows = {row["what"]: row["value"] for row in benchmark.on_gpu(Settings, device="cpu")}
    assert set(captures) == {"_record", "_backward", "_iterate", "_backward_sums"}
    assert [*rows] == [
        f"cpu, {mode}, L=8, batch 4{what}"
        for mode in ("full", "truncated") for what in (": limit", ", by graphs", ", kernel by kernel")
    ]  # fmt: skip
    assert min(rows.values()) > 0


@pytest.mark.slow
def test_peak_memory_is_that_of_the_step():
    class Settings:
        class data:  # noqa: N801
            bits, frame_length = 4, 320

        class network:  # noqa: N801
            rows = None

    kept = 500 * 2 * 32 * 320 * (4 + 1) / 1e6  # psi, y and their masks of each iteration, MB
    assert kept <= benchmark.peak(Settings, "full", 32, 500) <= 1.3 * kept + 10


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("benchmark.depths=[]", "benchmark.depths"),
        ("benchmark.batches=[0]", "benchmark.batches"),
        ("benchmark.rounds=0", "benchmark.rounds"),
        ("benchmark.jobs=2", "prepare"),
    ],
)
def test_bad_settings_are_named(call, override, named):
    done = call("benchmark", "experiment=smoke", override)
    assert done.status == 2
    assert named in done.err
    assert len(done.err.strip().splitlines()) == 1
