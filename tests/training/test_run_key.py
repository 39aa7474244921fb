"""One class names an operator: in a table's row, in a training's record, in its folder."""

from __future__ import annotations

from pdunroll.evaluation.tables import Operator
from pdunroll.training.run_key import Mode, RunKey, Setting, settings_in

RECORD = {
    "settings": {
        "seed": 3,
        "backprop": {"name": "truncated", "primal_mask": "released", "iterations": 30},
        "network": {"step_norm": "spectral", "iterations": 100},
    }
}


def test_a_record_and_a_row_give_the_same_key():
    key = RunKey.from_record(RECORD)
    assert key == RunKey.from_row({"mse": 1.0, **key.columns})
    assert key.name == "truncated30-released-spectral-L100-seed3"
    assert (key.setting, key.mode) == (Setting("released", "spectral"), Mode("truncated", 30))
    assert key.mode.label == "truncated (b = 30)"


def test_a_mode_without_b_has_none():
    record = {"settings": {**RECORD["settings"], "backprop": {"name": "mine", "primal_mask": "active_set"}}}
    assert RunKey.from_record(record).name == "mine-active_set-spectral-L100-seed3"
    assert RunKey.from_record(record).mode.label == "mine"


def test_a_variant_of_the_loss_is_part_of_the_mode():
    record = {"settings": {**RECORD["settings"], "objective": {"label": "+random_depth"}}}
    key = RunKey.from_record(record)
    assert key == RunKey.from_row(key.columns) != RunKey.from_record(RECORD)
    assert key.backprop == "truncated+random_depth"
    assert key.name == "truncated30+random_depth-released-spectral-L100-seed3"
    assert key.label == "truncated30+random_depth released spectral L=100 seed 3"
    assert key.mode.label == "truncated (b = 30) + random depth"


def test_what_was_not_trained_has_short_names():
    assert [RunKey("none").name, RunKey("dct", step_norm="frobenius").label] == ["none", "dct frobenius"]
    assert not RunKey("dct", step_norm="frobenius").trained


def test_the_published_setting_comes_first():
    pairs = [
        ("released", "spectral"),
        ("active_set", "spectral"),
        ("released", "frobenius"),
        ("active_set", "frobenius"),
    ]
    rows = [RunKey("full", *pair, 10, 0).columns for pair in pairs] + [RunKey("none").columns]
    assert settings_in(rows) == [Setting(*pair) for pair in reversed(pairs)]


def test_the_schema_of_the_tables_has_its_columns():
    assert tuple(Operator.model_fields) == RunKey._fields
