"""What names a training or another operator in tables, folders and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The columns of a table that name an operator, and the values of two of them in words.
KEY = ("backprop", "primal_mask", "step_norm", "l_training", "seed", "b")
MASK_TITLES = {"active_set": "active-set mask (the paper's formula)", "released": "released mask (the authors' code)"}
NORM_TITLES = {"frobenius": "Frobenius step sizes (as published)", "spectral": "spectral step sizes (largest allowed)"}


def run_name(row: Mapping[str, Any]) -> str:
    """Return the name of an operator's files: a training's folder, "dct-" and the norm of the step sizes, or "none"."""
    if row["l_training"] is None:
        return "-".join(filter(None, (row["backprop"], row["step_norm"])))
    return (
        f"{row['backprop']}{row['b'] or ''}-{row['primal_mask']}-{row['step_norm']}"
        f"-L{row['l_training']}-seed{row['seed']}"
    )


def run_key(record: dict[str, Any]) -> dict[str, Any]:
    """The columns that name a training in the tables."""
    own = record["settings"]
    return {
        "backprop": own["backprop"]["name"],
        "primal_mask": own["backprop"]["primal_mask"],
        "step_norm": own["network"]["step_norm"],
        "l_training": own["network"]["iterations"],
        "seed": own["seed"],
        "b": own["backprop"].get("iterations"),
    }


def table_order(key: dict[str, Any]) -> tuple:
    """Rows by norm, mask, mode, b, L and seed."""
    return key["step_norm"], key["primal_mask"], key["backprop"], key["b"] or 0, key["l_training"], key["seed"]
