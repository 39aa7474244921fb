"""The benchmark measures what it says; its timings are nobody's to assert."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, table
from oracles import ETA, problem
from pdunroll import dct_operator

sys.path.append(str(ROOT / "benchmarks"))
import training


def test_it_writes_its_tables(smoke, tmp_path):
    shutil.copytree(smoke / "outputs/smoke/prepared", tmp_path / "prepared")
    small = ["--depths", "2", "9", "--rounds", "1", "--jobs", "1"]
    subprocess.run([sys.executable, training.__file__, str(tmp_path), *small], check=True, capture_output=True)
    rows = table(tmp_path / "benchmark/memory.csv")
    assert {(row["mode"], row["l"]) for row in rows} == {(mode, depth) for mode in training.MODES for depth in "29"}
    assert len(table(tmp_path / "benchmark/other.csv")) == 3


def test_a_gpu_is_measured_by_graphs_and_without(captures):
    _, truth, x = problem(18, 18)
    given = training.Problem(dct_operator(18, 18, torch.float64).requires_grad_(), truth, x, ETA)
    rows = {row["what"]: row["value"] for row in training.on_gpu(given, 8, 1, device="cpu")}
    assert set(captures) == {"_record", "_backward", "_iterate", "_backward_sums"}
    assert [*rows] == [
        f"cpu, {mode}, L=8, batch 4, {how}"
        for mode in ("full", "truncated") for how in ("by graphs", "kernel by kernel")
    ]  # fmt: skip
    assert min(rows.values()) > 0


@pytest.mark.slow
def test_peak_memory_is_that_of_the_step():
    kept = 500 * 2 * 32 * 320 * (4 + 1) / 1e6  # psi, y and their masks of each iteration, MB
    assert kept <= training.peak("full", 32, 500) <= 1.3 * kept + 10
