"""A variant of the loss is named in folders, tables and figures, and stands beside the plain trainings."""

from __future__ import annotations

import json

from conftest import refused, table

SMOKE = ("experiment=smoke", "tracking=off")
VARIANT = "full+random_depth-active_set-frobenius-L10-seed0"
PLAIN = "full-active_set-frobenius-L10-seed0"


def test_variants_go_through_the_chain(call, tmp_path):
    assert call("prepare", *SMOKE).status == 0
    refused(call("train", *SMOKE, "objective=mine"), "objective/mine", "random_depth")
    refused(call("train", *SMOKE, "objective.loss._target_=null"), "objective.loss")
    done = call("train", *SMOKE, "objective=random_depth", "hydra.run.dir=multirun/smoke", "objective.loss.lowest=20")
    refused(done, "network.iterations", "20")
    done = call("train", *SMOKE, "objective=random_depth", "hydra.run.dir=multirun/smoke", "objective.loss.lowest=3")
    assert done.status == 0, done.err
    done = call("train", *SMOKE, "hydra.run.dir=multirun/smoke")
    assert done.status == 0, done.err
    assert "objective" not in json.loads((tmp_path / f"multirun/smoke/{PLAIN}/run.json").read_text())["settings"]
    record = json.loads((tmp_path / f"multirun/smoke/{VARIANT}/run.json").read_text())
    assert record["settings"]["objective"]["loss"]["lowest"] == 3
    for command in ("evaluate", "figures"):
        done = call(command, *SMOKE)
        assert done.status == 0, done.err
    outputs = tmp_path / "outputs/smoke"
    assert [row["backprop"] for row in table(outputs / "training.csv")] == ["full", "full+random_depth"]
    assert {PLAIN, VARIANT} < set(json.loads((outputs / "metrics.json").read_text()))
    assert (outputs / f"errors/{VARIANT}.npz").is_file()
    assert "full + random depth" in (outputs / "results.txt").read_text()
    assert "goal" in (outputs / "results.txt").read_text()
    assert "full + random depth" in (outputs / "figures/speed.svg").read_text()
    done = call("verdicts", *SMOKE)  # the claims are about the plain modes
    assert done.status == 0, done.err
    assert "random" not in (outputs / "verdicts.txt").read_text()
