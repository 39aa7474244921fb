"""The claims of the paper's theorems, judged from the tables of `pdunroll theory`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from pdunroll.claims.registry import Case, Finding, Judge, Row, claim
from pdunroll.evaluation.statistics import Interval, Verdict, every, proportion

TABLES = ("fits", "fidelity", "decay", "settling")
VANISHED = 1e-3  # relative to the first value, as in `pdunroll.evaluation.theory.fit_decay`
NEAR = 0.1  # relative error at which a gradient counts as near its limit
FRAMES = "share of frames"


def theorem(name: str, statement: str, *, unit: str) -> Callable[[Judge], Judge]:
    """Register a claim that is undecided where the theory was not measured; see `claim` for the arguments."""

    def register(judge: Judge) -> Judge:
        def measured(case: Case) -> Finding:
            if not all(case.theory.get(table) for table in TABLES):
                reason = "The theory was not measured with this mask and norm: `python -m pdunroll theory` does."
                return Finding(None, None, reason)
            return judge(case)

        claim(name, statement, unit=unit)(measured)
        return judge

    return register


@theorem(
    "limit-assumption",
    "delta_P and delta_D decay geometrically (the limit theorem's assumption) on most frames.",
    unit=FRAMES,
)
def assumption(case: Case) -> Finding:
    """Judge the share of frames on which the deltas decay.

    Slow decay leaves the claim undecided. Decay is impossible only on frames where the deltas stay in a kernel, so that
    the interval reaches up to the share of all other frames. With the active-set mask, frames whose masks still change
    in the second half of the iterations do not count as such, since their kernels may change, too.
    """
    settling = case.theory["settling"] if case.setting.primal_mask == "active_set" else []
    unsettled = {(row["operator"], row["frame"]) for row in settling if row["settled_after"] > row["of"] / 2}
    intervals, parts = [], []
    for operator, rows in rows_by_operator(case.theory["fits"]).items():
        decaying = sum(row["holds"] for row in rows)
        stuck = sum(
            not row["holds"]
            and row["kernel_primal"] + row["kernel_dual"] > 0
            and (operator, row["frame"]) not in unsettled
            for row in rows
        )
        low = proportion(decaying, len(rows), case.thresholds.confidence).low
        high = proportion(len(rows) - stuck, len(rows), case.thresholds.confidence).high
        intervals.append(Interval(decaying / len(rows), low, high))
        parts.append(
            f"{operator}: of {len(rows)} frames {decaying} decay, {stuck} stay in a kernel, "
            f"{len(rows) - decaying - stuck} fall too slowly to tell"
        )
    lowest = min(intervals, key=lambda i: (i.estimate, i.low))
    return Finding(every(map(majority, intervals)), lowest, "; ".join(parts) + ".")


@theorem(
    "limit-reached",
    f"With the most iterations measured, full's gradient is within {NEAR:.0%} of its limit.",
    unit="relative error",
)
def limit_reached(case: Case) -> Finding:
    """Judge whether full is near the limit at the largest L, or no nearer than a gradient of zero."""
    last, parts = [], []
    for operator, rows in rows_by_operator(of_mode(case, "full")).items():
        first, end = (pick(rows, key=lambda row: row["l"]) for pick in (min, max))
        last.append(end["limit_error"])
        parts.append(
            f"{operator}: error {first['limit_error']:.3g} at L = {first['l']}, {end['limit_error']:.3g} at "
            f"L = {end['l']} (cosine {end['limit_cosine']:.2f})"
        )
    verdict = every(True if error <= NEAR else False if error >= 1 else None for error in last)
    evidence = "; ".join(parts) + "; a gradient of zero has error 1; the interval is the range over operators."
    return Finding(verdict, spread(last), evidence)


@theorem(
    "truncated-nearer-limit",
    "Truncated's gradient points nearer to the limit than full's at the same L does.",
    unit="difference of cosines",
)
def nearer(case: Case) -> Finding:
    """Compare the cosines to the limit of truncated (with the b of the trainings) and full, at each operator and L."""
    b = case.b
    full = {(row["operator"], row["l"]): row["limit_cosine"] for row in of_mode(case, "full")}
    truncated = {
        (row["operator"], row["l"]): row["limit_cosine"] for row in of_mode(case, "truncated") if row["b"] == b
    }
    if not truncated:
        return Finding(None, None, f"The theory tables have no truncated gradient with b = {b}.")
    gain = [cosine - full[key] for key, cosine in truncated.items()]
    evidence = "; ".join(
        f"{key[0]}, L = {key[1]}: {cosine:.3f} (truncated), {full[key]:.3f} (full)" for key, cosine in truncated.items()
    )
    verdict = True if min(gain) > 0 else False if max(gain) < 0 else None
    return Finding(verdict, spread(gain), f"b = {b}; {evidence}; the interval is the range over operators and L.")


@theorem(
    "masks-settle",
    "On most frames the masks settle (no change in the second half of the iterations measured).",
    unit=FRAMES,
)
def masks_settle(case: Case) -> Finding:
    """Judge the share of frames whose masks do not change in the second half of the iterations.

    The others may settle later, so that the claim is never refuted.
    """
    if case.setting.primal_mask != "active_set":
        return Finding(None, None, "Settling is measured for the active_set mask only.")
    intervals, parts = [], []
    for operator, rows in rows_by_operator(case.theory["settling"]).items():
        count = sum(row["settled_after"] <= row["of"] / 2 for row in rows)
        intervals.append(proportion(count, len(rows), case.thresholds.confidence))
        middle = median(row["settled_after"] for row in rows)
        parts.append(f"{operator}: {count} of {len(rows)}, last change after {middle:.0f} of {rows[0]['of']} (median)")
    verdict = every(True if majority(i) else None for i in intervals)
    return Finding(verdict, min(intervals), "; ".join(parts) + ".")


@theorem(
    "kernel-limit",
    "delta_P and delta_D tend to the kernels of Ktilde and Ktilde^T (the kernel theorem): their distance falls below "
    f"{VANISHED:g} of its first value.",
    unit="of the first distance",
)
def kernels(case: Case) -> Finding:
    """Judge whether the distance of (delta_P, delta_D) to the kernels has vanished, or not even halved.

    The distances after the last count are divided by the median after the first one. The interval is from the 10th to
    the 90th percentile of the frames.
    """
    left, parts = [], []
    distances = [row for row in case.theory["decay"] if row["quantity"] == "kernel_distance"]
    for operator, rows in rows_by_operator(distances).items():
        first, last = (pick(rows, key=lambda row: row["count"]) for pick in (min, max))
        # the median is 0 if most frames are at the limit from the first iteration on
        scale = first["median"] or first["p90"] or 1.0
        left.append(Interval(*(last[name] / scale for name in ("median", "p10", "p90"))))
        parts.append(f"{operator}: {left[-1].estimate:.2g} after {last['count']} backward iterations")
    verdict = every(True if i.high <= VANISHED else False if i.low >= 0.5 else None for i in left)
    evidence = "; ".join(parts) + " (medians); the interval is the 10th to 90th percentile of the frames."
    return Finding(verdict, max(left), evidence)


def of_mode(case: Case, mode: str) -> list[Row]:
    """Return the rows of fidelity.csv for one mode of backpropagation."""
    return [row for row in case.theory["fidelity"] if row["backprop"] == mode]


def rows_by_operator(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each operator."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["operator"], []).append(row)
    return found


def majority(interval: Interval) -> Verdict:
    """Return whether a share is above one half, None if its interval contains one half."""
    return True if interval.low > 0.5 else False if interval.high < 0.5 else None


def spread(values: list[float]) -> Interval:
    """Return the median of some values and their range."""
    return Interval(median(values), min(values), max(values))
