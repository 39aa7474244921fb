"""The cost of truncated backpropagation relative to full: time from the trainings, memory from the benchmark."""

from __future__ import annotations

from statistics import median

from pdunroll.claims.registry import Case, Finding, claim
from pdunroll.evaluation.statistics import Interval, every


@claim(
    "truncated-costs-less-time",
    "For L > b, training with truncated backpropagation takes about (L + b)/(2L) of full's time.",
    unit="measured / (L + b)/(2L)", compares=True,
)  # fmt: skip
def time(case: Case) -> Finding:
    """Compare the ratio of truncated's to full's time with (L + b)/(2L), for each L and seed that both have."""
    b, margin = case.b, case.thresholds.time_margin
    if margin is None:
        return Finding(None, None, "The times are no measurement: the trainings shared their machine with other work.")
    seconds = {
        (row["backprop"], row["l_training"], row["seed"]): row["seconds"]
        for row in case.training
        if row["backprop"] == "full" or (row["backprop"], row["b"]) == ("truncated", b)
    }
    ratios: dict[int, list[float]] = {}
    for mode, depth, seed in sorted(seconds):
        if mode == "truncated" and ("full", depth, seed) in seconds:
            ratios.setdefault(depth, []).append(seconds[mode, depth, seed] / seconds["full", depth, seed])
    deep = {depth: own for depth, own in ratios.items() if b is not None and depth > b}
    if b is None or not deep:
        return Finding(None, None, "No L > b was trained with both full and truncated backpropagation.")
    values = [ratio * 2 * depth / (depth + b) for depth, own in deep.items() for ratio in own]
    off = [max(value, 1 / value) - 1 for value in values]
    # other load on the machine affects single times: a deviation of up to twice the margin leaves the claim undecided
    verdict = every(True if by <= margin else False if by > 2 * margin else None for by in off)
    evidence = "; ".join(
        f"L = {depth}: {median(found):.2f} of full's time, (L + b)/(2L) = {(depth + b) / (2 * depth):.2f}"
        for depth, found in ratios.items()
    )
    return Finding(
        verdict, Interval(median(values), min(values), max(values)),
        f"{evidence}; b = {b}; a deviation of {margin:.0%} is allowed; the interval is the range over L > b and seeds.",
    )  # fmt: skip


@claim(
    "truncated-keeps-memory-constant",
    "The memory of truncated backpropagation does not grow with L (by less than {memory_margin:.0%} of full's growth).",
    unit="growth / full's growth",
)
def memory(case: Case) -> Finding:
    """Judge how truncated's peak memory grows with L, as a share of full's growth."""
    peaks: dict[str, dict[int, float]] = {}
    for row in case.memory:
        peaks.setdefault(row["mode"], {})[row["l"]] = row["peak_mb"]
    full, truncated = peaks.get("full", {}), peaks.get("truncated", {})
    common = sorted(set(full) & set(truncated))
    if len(common) < 2:
        return Finding(None, None, "No memory was measured: `python benchmarks/training.py OUTPUTS` does.")
    first, last = common[0], common[-1]
    growth, reference = truncated[last] - truncated[first], full[last] - full[first]
    seen = (
        f"from L = {first} to {last} the peak of a training step went from {truncated[first]:.1f} to "
        f"{truncated[last]:.1f} MB (truncated) and from {full[first]:.1f} to {full[last]:.1f} MB (full)"
    )
    if reference <= 0:
        return Finding(None, None, f"Full's memory did not grow: {seen}.")
    share = growth / reference
    return Finding(
        share < case.thresholds.memory_margin, Interval(share, share, share),
        f"One measurement, with the active_set mask: {seen}.",
    )  # fmt: skip
