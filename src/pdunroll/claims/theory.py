"""The paper's theorems, from the tables of `pdunroll theory`: do their assumptions hold, are their limits reached?"""

from __future__ import annotations

from statistics import median

from pdunroll.claims.registry import Row, undecided, verdict
from pdunroll.evaluation.statistics import Answer, Interval, every, proportion
from pdunroll.training.run_key import Setting

TABLES = ("fits", "fidelity", "decay", "settling")
VANISHED = 1e-3  # of its first value: as `pdunroll.evaluation.theory.decay` has it
NEAR = 0.1  # relative error of a gradient that has come near its limit
FRAMES = "share of frames"


def theory_claims(setting: Setting, tables: dict[str, list[Row]], b: int | None, confidence: float) -> list[Row]:
    """All of them for one setting; `tables` is empty where the theory was not measured."""
    statements = {
        "limit-assumption": "delta_P and delta_D decay geometrically (the limit theorem's assumption) on most frames.",
        "limit-reached": f"With the most iterations measured, full's gradient is within {NEAR:.0%} of its limit.",
        "truncated-nearer-limit": "Truncated's gradient points nearer to the limit than full's at the same L does.",
        "masks-settle": "On most frames the masks settle (no change in the second half of the iterations measured).",
        "kernel-limit": "delta_P and delta_D tend to the kernels of Ktilde and Ktilde^T (the kernel theorem): their "
        f"distance falls below {VANISHED:g} of its first value.",
    }
    units = (FRAMES, "relative error", "difference of cosines", FRAMES, "of the first distance")
    own = {
        name: [row for row in rows if (row.get("primal_mask", setting.primal_mask), row["step_norm"]) == setting]
        for name, rows in tables.items()
    }
    if not all(own.get(name) for name in TABLES):
        reason = "The theory was not measured with this mask and norm: `python -m pdunroll theory` does."
        return [undecided(c, setting, s, unit, reason) for (c, s), unit in zip(statements.items(), units, strict=True)]
    found = (
        assumption(own["fits"], own["settling"] if setting.primal_mask == "active_set" else [], confidence),
        gradient(own["fidelity"]),
        nearer(own["fidelity"], b),
        settled(own["settling"], confidence)
        if setting.primal_mask == "active_set"
        else (None, None, "Settling is measured for the active_set mask only."),
        kernels(own["decay"]),
    )
    return [
        verdict(claim, setting, statement, answer, interval, unit, evidence)
        for (claim, statement), unit, (answer, interval, evidence) in zip(statements.items(), units, found, strict=True)
    ]


Found = tuple[Answer, Interval | None, str]


def by_operator(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each operator."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["operator"], []).append(row)
    return found


def majority(interval: Interval) -> Answer:
    """Tell whether a share is above one half, if its interval says."""
    return True if interval.low > 0.5 else False if interval.high < 0.5 else None


def assumption(fits: list[Row], settling: list[Row], confidence: float) -> Found:
    """Judge the share of frames that decay.

    Slow decay leaves the answer open: only a frame with a kernel that delta stays in is one that cannot decay, so that
    the interval reaches up to the share of all others. Frames of `settling` whose masks still changed in the second
    half of the iterations do not count as such: their kernels may not last.
    """
    unsettled = {(row["operator"], row["frame"]) for row in settling if row["settled_after"] > row["of"] / 2}
    intervals, parts = [], []
    for operator, rows in by_operator(fits).items():
        decaying = sum(row["holds"] for row in rows)
        stuck = sum(
            not row["holds"]
            and row["kernel_primal"] + row["kernel_dual"] > 0
            and (operator, row["frame"]) not in unsettled
            for row in rows
        )
        low = proportion(decaying, len(rows), confidence).low
        high = proportion(len(rows) - stuck, len(rows), confidence).high
        intervals.append(Interval(decaying / len(rows), low, high))
        parts.append(
            f"{operator}: of {len(rows)} frames {decaying} decay, {stuck} stay in a kernel, "
            f"{len(rows) - decaying - stuck} fall too slowly to tell"
        )
    lowest = min(intervals, key=lambda i: (i.estimate, i.low))
    return every(map(majority, intervals)), lowest, "; ".join(parts) + "."


def gradient(fidelity: list[Row]) -> Found:
    """Full's error to the limit at the largest L: near it, or no nearer than a gradient of zero."""
    last, parts = [], []
    for operator, rows in by_operator([row for row in fidelity if row["backprop"] == "full"]).items():
        first, end = (pick(rows, key=lambda row: row["l"]) for pick in (min, max))
        last.append(end["limit_error"])
        parts.append(
            f"{operator}: error {first['limit_error']:.3g} at L = {first['l']}, {end['limit_error']:.3g} at "
            f"L = {end['l']} (cosine {end['limit_cosine']:.2f})"
        )
    answer = every(True if error <= NEAR else False if error >= 1 else None for error in last)
    return (
        answer,
        spread(last),
        "; ".join(parts) + "; a gradient of zero has error 1; the interval is the range over operators.",
    )


def nearer(fidelity: list[Row], b: int | None) -> Found:
    """Cosines to the limit of Truncated, with the b of the trainings, and of Full, for each operator and L."""
    full = {(row["operator"], row["l"]): row["limit_cosine"] for row in fidelity if row["backprop"] == "full"}
    truncated = {
        (row["operator"], row["l"]): row["limit_cosine"]
        for row in fidelity
        if row["backprop"] == "truncated" and row["b"] == b
    }
    if not truncated:
        return None, None, f"The theory tables have no truncated gradient with b = {b}."
    gain = [cosine - full[key] for key, cosine in truncated.items()]
    evidence = "; ".join(
        f"{key[0]}, L = {key[1]}: {cosine:.3f} (truncated), {full[key]:.3f} (full)" for key, cosine in truncated.items()
    )
    answer = True if min(gain) > 0 else False if max(gain) < 0 else None
    return answer, spread(gain), f"b = {b}; {evidence}; the interval is the range over operators and L."


def settled(settling: list[Row], confidence: float) -> Found:
    """Judge the share of frames whose masks stay as they are for the second half of the iterations.

    The others may still settle later, so that this is never refuted.
    """
    intervals, parts = [], []
    for operator, rows in by_operator(settling).items():
        count = sum(row["settled_after"] <= row["of"] / 2 for row in rows)
        intervals.append(proportion(count, len(rows), confidence))
        middle = median(row["settled_after"] for row in rows)
        parts.append(f"{operator}: {count} of {len(rows)}, last change after {middle:.0f} of {rows[0]['of']} (median)")
    answer = every(True if majority(i) else None for i in intervals)
    return answer, min(intervals), "; ".join(parts) + "."


def kernels(decay: list[Row]) -> Found:
    """Judge whether the distance of (delta_P, delta_D) to the kernels has vanished, or not even halved.

    It is taken after the last count, relative to the median after the first, over 10 to 90 % of the frames.
    """
    left, parts = [], []
    for operator, rows in by_operator([row for row in decay if row["quantity"] == "kernel_distance"]).items():
        first, last = (pick(rows, key=lambda row: row["count"]) for pick in (min, max))
        left.append(Interval(*(last[name] / first["median"] for name in ("median", "p10", "p90"))))
        parts.append(f"{operator}: {left[-1].estimate:.2g} after {last['count']} backward iterations")
    answer = every(True if i.high <= VANISHED else False if i.low >= 0.5 else None for i in left)
    farthest = max(left)
    return answer, farthest, "; ".join(parts) + " (medians); the interval is the 10th to 90th percentile of the frames."


def spread(values: list[float]) -> Interval:
    """Return the median of some values and their range."""
    return Interval(median(values), min(values), max(values))
