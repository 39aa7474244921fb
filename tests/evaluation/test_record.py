"""The committed record of the paper's scale agrees with itself, and with what the code makes of it today."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from conftest import ROOT, command
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.evaluation.curves import error_curve
from pdunroll.evaluation.evaluate import drawn
from pdunroll.evaluation.tables import read_results
from pdunroll.speech.frames import prepare
from pdunroll.speech.sources import IEEE
from pdunroll.training.run_key import RunKey, by_operator

RECORD, RUNS = ROOT / "outputs/paper", ROOT / "multirun/paper"
ONE = "truncated30-released-frobenius-L80-seed0"


@pytest.fixture(scope="module")
def results():
    return read_results(RECORD)


def test_each_training_is_evaluated(results):
    evaluated = {RunKey.from_row(row).name for row in results["optima"]}
    trained = {folder.name for folder in RUNS.iterdir() if folder.is_dir()}
    assert evaluated - {"dct-frobenius"} == trained
    assert {path.stem for path in (RECORD / "errors").glob("*.npz")} == evaluated


def test_tables_are_the_means_of_the_errors_of_single_frames(results):
    optima = by_operator(results["optima"], "optimum_mse")
    for key, optimum in optima.items():
        with np.load(RECORD / f"errors/{key.name}.npz") as stored:
            grid, errors = stored["grid"].tolist(), stored["errors"].mean(axis=1, dtype=np.float64)
            assert optimum == pytest.approx(stored["optimum_errors"].mean(), rel=1e-9)
        found = {row["l_inference"]: row["mse"] for row in results["evaluation"] if RunKey.from_row(row) == key}
        assert [*found] == grid
        np.testing.assert_allclose([*found.values()], errors, rtol=1e-9)


@pytest.mark.parametrize("threads", ["1", "2"])  # with which numpy sums in another order
def test_figures_and_verdicts_come_out_the_same(threads, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copytree(RECORD, tmp_path / "outputs/paper")
    for name, written in {"figures": "results.txt", "verdicts": "verdicts.csv"}.items():
        (tmp_path / "outputs/paper" / written).unlink()
        done = command(name, "experiment=paper", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "outputs/paper" / written).read_text() == (RECORD / written).read_text()


@pytest.mark.slow
def test_an_operator_of_the_record_has_its_errors_again(results, tmp_path):
    """Those after up to 1,000 iterations, within 1e-5: another product of matrices rounds otherwise."""
    if not (corpus := os.environ.get("PDUNROLL_CORPUS")):
        pytest.skip("PDUNROLL_CORPUS names no folder of the IEEE corpus")
    prepare(IEEE(corpus, "").recordings(), tmp_path / "prepared", frame_length=320, bits=4)
    _, truth, box = drawn(tmp_path / "prepared", "test", 1024, 0)
    operator = torch.from_numpy(np.load(RUNS / ONE / "operator.npy"))
    wanted = {
        row["l_inference"]: row["mse"]
        for row in results["evaluation"]
        if RunKey.from_row(row).name == ONE and row["l_inference"] <= 1000
    }
    errors, _ = error_curve(
        chambolle_pock(operator, radius=1 / 16), operator, torch.from_numpy(truth), box, [*wanted], 256
    )
    np.testing.assert_allclose(errors.mean(axis=1, dtype=np.float64), [*wanted.values()], rtol=1e-5)
