"""The goal of the slides' future work: an optimum as good as the best plain one, reached ten times faster."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pdunroll.evaluation.convergence import convergence_iterations
from pdunroll.training.run_key import RunKey, by_operator

Row = dict[str, Any]
FASTER = 10  # times


def goal(evaluation: list[Row], optima: list[Row]) -> list[str]:
    """Return a line for each kind of training that says whether it reaches the goal; none without variants of the loss.

    A kind is a mode with its loss, mask, norm and L; its numbers are means over seeds. It reaches the goal if its error
    at the optimum is at most that of the best plain kind, and its N1 (see `pdunroll.evaluation.convergence`) is at most
    a tenth of the N1 of that kind.

    Args:
        evaluation: rows of evaluation.csv.
        optima: rows of optima.csv.
    """
    speed, errors = convergence_iterations(evaluation, optima), by_operator(optima, "optimum_mse")
    rows = [{"kind": key._replace(seed=None), "mse": errors[key], "n1": speed[key]} for key in errors if key.trained]
    if not any("+" in row["kind"].backprop for row in rows):
        return []
    kinds = pd.DataFrame(rows).groupby("kind", sort=False)
    table = kinds.agg(mse=("mse", "mean"), n1=("n1", lambda own: own.mean(skipna=False)), seeds=("mse", "size"))
    table = table.sort_values("mse")
    best = table[["+" not in RunKey(*kind).backprop for kind in table.index]].iloc[0]
    lines = [f"{'at the optimum, against the best plain kind':<58}{'seeds':>6}{'error':>10}{'N1':>7}  goal"]
    for kind, own in table.iterrows():
        key = RunKey(*kind)  # pyright: ignore[reportGeneralTypeIssues]
        name = f"{key.mode.label}, {key.primal_mask}, {key.step_norm}, L = {key.l_training}"
        reached = own["mse"] <= best["mse"] and FASTER * own["n1"] <= best["n1"]
        n1 = "-" if pd.isna(own["n1"]) else f"{own['n1']:.0f}"
        share = 100 * (own["mse"] / best["mse"] - 1)
        lines.append(f"{name:<58}{own['seeds']:>6.0f}{share:>+8.2f} %{n1:>7}  {'yes' if reached else 'no'}")
    return lines
