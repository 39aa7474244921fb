"""The text of results.txt: a table of all trainings, and the goal of the slides' future work."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pdunroll.evaluation.convergence import convergence_iterations
from pdunroll.training.run_key import RunKey, after_training_iterations, by_operator

Row = dict[str, Any]
FASTER = 10  # times


def summary(evaluation: list[Row], optima: list[Row], training: list[Row], observed: str = "quantized") -> str:
    """Return the results as a short table for the terminal."""
    unrestored = next(row["mse"] for row in evaluation if row["backprop"] == "none")
    dct = [row["optimum_mse"] for row in optima if row["backprop"] == "dct"][-1]
    classical, seconds = after_training_iterations(evaluation), by_operator(training, "seconds")
    optimum = by_operator(optima, "optimum_mse")
    labels = {key: key.mode.label + (f", seed {key.seed}" if key.seed else "") for key in optimum if key.trained}
    width = max(20, *map(len, labels.values())) + 2
    lines = [
        f"test MSE   {observed} {unrestored:.3e}   DCT at the optimum {dct:.3e}",
        f"{'mask':<12}{'step norm':<12}{'backprop':<{width}}{'L':>5}{'after L':>12}{'at the optimum':>16}"
        f"{'training':>11}",
    ]
    for key, label in labels.items():
        lines.append(
            f"{key.primal_mask:<12}{key.step_norm:<12}{label:<{width}}{key.l_training:>5}"
            f"{classical[key]:>12.3e}{optimum[key]:>16.3e}{seconds[key]:>9.1f} s"
        )
    return "\n".join(lines)


def goal(evaluation: list[Row], optima: list[Row]) -> list[str]:
    """Return a line for each kind of training that says whether it reaches the goal; none without variants of the loss.

    The goal is an optimum as good as that of the best plain training, reached ten times faster. A kind is a mode with
    its loss, mask, norm and L; its numbers are means over seeds. It reaches the goal if its error at the optimum is at
    most that of the best plain kind, and its N1 (see `pdunroll.evaluation.convergence`) at most a tenth of that kind's.

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
