"""What truncated backpropagation costs beside full: time from the trainings, memory from the benchmark."""

from __future__ import annotations

from statistics import median

from pdunroll.claims.registry import Row, undecided, verdict
from pdunroll.evaluation.statistics import Interval, every
from pdunroll.training.run_key import Setting


def cost_claims(
    setting: Setting, training: list[Row], b: int | None, memory: list[Row], margins: tuple[float, float]
) -> list[Row]:
    """Time and memory of truncated backpropagation; `training` and `memory` are tables, `margins` those of both."""
    return [time_claim(setting, training, b, margins[0]), memory_claim(setting, memory, margins[1])]


def time_claim(setting: Setting, training: list[Row], b: int | None, margin: float) -> Row:
    """The time ratio of truncated to full against (L + b)/(2L), for each L and seed that both have."""
    name, unit = "truncated-costs-less-time", "measured / (L + b)/(2L)"
    statement = (
        f"For L > b, training with truncated backpropagation takes (L + b)/(2L) of full's time, within {margin:.0%}."
    )
    seconds = {
        (row["backprop"], row["l_training"], row["seed"]): row["seconds"]
        for row in training
        if (row["primal_mask"], row["step_norm"]) == setting
        and (row["backprop"] == "full" or (row["backprop"], row["b"]) == ("truncated", b))
    }
    ratios: dict[int, list[float]] = {}
    for mode, depth, seed in sorted(seconds):
        if mode == "truncated" and ("full", depth, seed) in seconds:
            ratios.setdefault(depth, []).append(seconds[mode, depth, seed] / seconds["full", depth, seed])
    if b is None or not (deep := [depth for depth in ratios if depth > b]):
        return undecided(
            name, setting, statement, unit, "No L > b was trained with both full and truncated backpropagation."
        )
    relative = {depth: [ratio * 2 * depth / (depth + b) for ratio in ratios[depth]] for depth in deep}
    values = [value for depth in deep for value in relative[depth]]
    off = [max(value, 1 / value) - 1 for value in values]
    # a single time also has in it what else the machine did: one off by up to twice the margin leaves it open
    answer = every(True if by <= margin else False if by > 2 * margin else None for by in off)
    evidence = "; ".join(
        f"L = {depth}: {median(found):.2f} of full's time, (L + b)/(2L) = {(depth + b) / (2 * depth):.2f}"
        for depth, found in ratios.items()
    )
    return verdict(
        name, setting, statement, answer, Interval(median(values), min(values), max(values)), unit,
        f"{evidence}; b = {b}; the interval is the range over L > b and seeds.",
    )  # fmt: skip


def memory_claim(setting: Setting, memory: list[Row], margin: float) -> Row:
    """How truncated's peak memory grows with L, as a share of full's growth."""
    name, unit = "truncated-keeps-memory-constant", "growth / full's growth"
    statement = (
        f"The memory of truncated backpropagation does not grow with L (by less than {margin:.0%} of full's growth)."
    )
    peaks: dict[str, dict[int, float]] = {}
    for row in memory:
        peaks.setdefault(row["mode"], {})[row["l"]] = row["peak_mb"]
    full, truncated = peaks.get("full", {}), peaks.get("truncated", {})
    common = sorted(set(full) & set(truncated))
    if len(common) < 2:
        reason = "No memory was measured: `python benchmarks/training.py OUTPUTS` does."
        return undecided(name, setting, statement, unit, reason)
    first, last = common[0], common[-1]
    growth, reference = truncated[last] - truncated[first], full[last] - full[first]
    seen = (
        f"from L = {first} to {last} the peak of a training step went from {truncated[first]:.1f} to "
        f"{truncated[last]:.1f} MB (truncated) and from {full[first]:.1f} to {full[last]:.1f} MB (full)"
    )
    if reference <= 0:
        return undecided(name, setting, statement, unit, f"Full's memory did not grow: {seen}.")
    share = growth / reference
    return verdict(
        name, setting, statement, share < margin, Interval(share, share, share), unit,
        f"One measurement, with the active_set mask: {seen}.",
    )  # fmt: skip
