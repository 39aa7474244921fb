"""An experiment whose trainings learn their step sizes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import pdunroll
from pdunroll.files import read_table, write_json
from pdunroll.speech.frames import load

ARGUMENTS = ("experiment=smoke", "name=learned", "prepared=outputs/smoke/prepared", "tracking=off")
TRAIN = (*ARGUMENTS, "objective=learned_steps", "optimization.learning_rate=1e-2", "network.iterations=10")
RUN = "full+learned_steps-active_set-frobenius-L10-seed0"


def test_each_training_is_evaluated_with_its_own_steps(folder, call):
    done = call("train", *TRAIN, "hydra.run.dir=multirun/learned")
    assert done.status == 0, done.err
    run = folder / "multirun/learned" / RUN
    record = json.loads((run / "run.json").read_text())
    done = call("train", *TRAIN, "objective=plain", "hydra.run.dir=multirun/learned")  # beside it
    assert done.status == 0, done.err
    steps = {name: record["results"][name] for name in ("step_ratio", "step_scale")}
    assert record["settings"]["network"]["learned_steps"] is True
    assert steps["step_ratio"] != 10.0
    done = call("evaluate", *ARGUMENTS)
    assert done.status == 0, done.err
    plain, trained = read_table(folder / "outputs/learned/training.csv", "")
    assert (plain["backprop"], trained["backprop"]) == ("full", "full+learned_steps")
    assert {name: trained[name] for name in steps} == pytest.approx(steps)
    curve = {row["l_inference"]: row["mse"] for row in read_table(folder / "outputs/learned/evaluation.csv", "")
             if row["backprop"] == "full+learned_steps"}  # fmt: skip
    test = load(folder / "outputs/smoke/prepared", "test")
    chosen = np.random.default_rng(0).permutation(len(test.truth))[:64]
    y, x = (torch.from_numpy(array[chosen]).double() for array in (test.truth, test.observation))
    operator = torch.from_numpy(np.load(run / "operator.npy")).double()
    for count in (1, 10, 30):
        restored = pdunroll.unroll(operator, x, radius=1 / 16, iterations=count, **steps)
        assert curve[count] == pytest.approx(float((restored - y).square().mean()), rel=1e-4)
    assert call("theory", *ARGUMENTS, f"theory.runs=[{RUN}]").status == 0
    del record["results"]["step_scale"]
    write_json(run / "run.json", record)
    done = call("evaluate", *ARGUMENTS)
    assert done.status == 2
    assert "the learned step sizes are missing" in done.err


def test_modes_without_the_gradient_are_refused(folder, call):
    done = call("train", *TRAIN, "backprop=implicit")
    assert done.status == 2, done.out
    (line,) = [line for line in done.err.splitlines() if line.startswith("pdunroll: ")]
    assert "network.learned_steps needs a gradient with respect to the step sizes, which Implicit does not give" in line
