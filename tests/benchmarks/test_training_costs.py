"""The benchmark measures what it says; its timings are nobody's to assert."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, table

sys.path.append(str(ROOT / "benchmarks"))
import training


@pytest.mark.slow
def test_it_writes_its_tables(smoke, tmp_path):
    shutil.copytree(smoke / "outputs/smoke/prepared", tmp_path / "prepared")
    small = ["--depths", "2", "9", "--rounds", "1", "--jobs", "1"]
    subprocess.run([sys.executable, training.__file__, str(tmp_path), *small], check=True, capture_output=True)
    rows = table(tmp_path / "benchmark/memory.csv")
    assert {(row["mode"], row["l"]) for row in rows} == {(mode, depth) for mode in training.MODES for depth in "29"}
    assert len(table(tmp_path / "benchmark/other.csv")) == 3


@pytest.mark.slow
def test_peak_memory_is_that_of_the_step():
    kept = 500 * 2 * 32 * 320 * (4 + 1) / 1e6  # psi, y and their masks of each iteration, MB
    assert kept <= training.peak("full", 32, 500) <= 1.3 * kept + 10
