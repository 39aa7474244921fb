"""The benchmark of convergence on frames of the smoke chain."""

from __future__ import annotations

import sys

import pytest

from conftest import ROOT, SMOKE_RUNS, table

sys.path.append(str(ROOT / "benchmarks"))
import convergence


def test_ways_to_iterate_lead_to_one_optimum_at_their_own_speed(smoke, tmp_path, monkeypatch):
    run, path = smoke / "multirun/smoke" / SMOKE_RUNS[0], tmp_path / "convergence.csv"
    arguments = [str(smoke / "outputs/smoke/prepared"), str(path), str(run), "--frames=32", "--iterations=3000"]
    monkeypatch.setattr(sys, "argv", ["convergence.py", *arguments])
    convergence.main()
    rows = table(path)
    assert [row["operator"] for row in rows] == ["dct", run.as_posix()]
    assert float(rows[0]["optimum_mse"]) == pytest.approx(float(rows[1]["optimum_mse"]), rel=0.1)
    for row in rows:
        assert int(row["spectral"]) < int(row["frobenius"])
        assert int(row["halpern"]) > 0
