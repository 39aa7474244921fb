"""The claims of the paper's Figure 3: three regimes of L in training, and the borders between them."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from pdunroll.claims.registry import (
    ERROR,
    MODES,
    Case,
    Curves,
    Finding,
    Values,
    claim,
    evidence,
    intervals,
    listed,
)
from pdunroll.evaluation.statistics import Interval, Verdict, equivalent, every, negation, superior


@claim(
    "regime1-alike",
    "For L < {low:g}, full and truncated backpropagation give the same error within {margin:g} % after {kind} "
    "inference.",
    unit=ERROR, compares=True, each_kind=True,
)  # fmt: skip
def regime1_equivalent(case: Case, kind: str) -> Finding:
    """Judge whether both modes are equivalent at each L of regime 1."""
    if not (depths := in_regime(case, 1)):
        return too_few(1, depths)
    found = by_truncated(case, depths, kind)
    verdict = every(equivalent(i, case.thresholds.margin) for i in found.values())
    return Finding(verdict, max(found.values(), key=lambda i: abs(i.estimate)), of_truncated(case, found))


@claim(
    "regime2-no-gain",
    "For {low:g} < L < {high:g}, more iterations in training bring no gain of {margin:g} % or more after {kind} "
    "inference, in either mode.",
    unit=ERROR, compares=True, each_kind=True,
)  # fmt: skip
def regime2_without_gain(case: Case, kind: str) -> Finding:
    """Judge whether no L of regime 2 is better than the first one, in either mode."""
    if len(depths := in_regime(case, 2)) < 2:
        return too_few(2, depths)
    pairs = by_iterations(case.curves, [(depths[0], more) for more in depths[1:]], kind)
    named = {f"{mode}, L = {fewer} to {more}": values for (mode, fewer, more), values in pairs.items()}
    found = intervals(named, case.thresholds)
    verdict = every(negation(superior(i, case.thresholds.margin)) for i in found.values())
    keys = [(mode, depth) for mode in MODES for depth in depths]
    return Finding(
        verdict, max(found.values(), key=lambda i: i.estimate), f"Gain, {evidence(case.curves, found, keys)}"
    )


@claim(
    "regime3-truncated-better",
    "For L > {high:g}, truncated backpropagation gives a smaller error than full after {kind} inference, by "
    "{margin:g} % or more.",
    unit=ERROR, compares=True, each_kind=True,
)  # fmt: skip
def regime3_truncated_better(case: Case, kind: str) -> Finding:
    """Judge whether truncated is superior at each L of regime 3."""
    if not (depths := in_regime(case, 3)):
        return too_few(1, depths)
    found = by_truncated(case, depths, kind)
    verdict = every(superior(i, case.thresholds.margin) for i in found.values())
    return Finding(verdict, min(found.values(), key=lambda i: i.estimate), of_truncated(case, found))


@claim(
    "border-1-2",
    "From the first L above {low:g} on, and from no smaller L on, more iterations bring no gain any more ({kind} "
    "inference).",
    unit="L", compares=True, each_kind=True,
)  # fmt: skip
def border12(case: Case, kind: str) -> Finding:
    """Judge whether gains from more iterations end at the paper's border of regimes 1 and 2."""
    before = [depth for depth in case.curves.depths(*MODES) if case.thresholds.regime(depth) < 3]
    pairs = by_iterations(case.curves, list(combinations(before, 2)), kind)
    flat: dict[int, Verdict] = {}
    if pairs:
        found = intervals(pairs, case.thresholds)
        for depth in before[:-1]:
            own = [i for (_, fewer, _), i in found.items() if fewer == depth]
            flat[depth] = every(negation(superior(i, case.thresholds.margin)) for i in own)
    return border(case, case.thresholds.low, flat, "more iterations bring no gain any more")


@claim(
    "border-2-3",
    "From the first L above {high:g} on, and from no smaller L on, truncated is better than full ({kind} inference).",
    unit="L", compares=True, each_kind=True,
)  # fmt: skip
def border23(case: Case, kind: str) -> Finding:
    """Judge whether truncated becomes superior at the paper's border of regimes 2 and 3."""
    better: dict[int, Verdict] = {}
    if both := case.curves.depths(*MODES):
        found = by_truncated(case, both, kind).values()
        better = {depth: superior(i, case.thresholds.margin) for depth, i in zip(both, found, strict=True)}
    return border(case, case.thresholds.high, better, "truncated is better than full")


@claim(
    "truncated-outperforms-full",
    "Truncated backpropagation outperforms full after {kind} inference by {margin:g} % of the error or more, each at "
    "the L of its best validation error after that inference.",
    unit=ERROR, compares=True, each_kind=True,
)  # fmt: skip
def truncated_outperforms(case: Case, kind: str) -> Finding:
    """Judge the slides' summary, with L chosen by the validation error."""
    curves = case.curves
    best = {mode: min(curves.depths(mode), key=lambda depth: curves.validation[kind][mode, depth]) for mode in MODES}
    full, truncated = (curves.at(mode, depth, kind) for mode, depth in best.items())
    name = f"truncated L = {best['truncated']} over full L = {best['full']}"
    found = intervals({name: 100 * (1 - truncated / full)}, case.thresholds)
    verdict = superior(found[name], case.thresholds.margin)
    return Finding(verdict, found[name], f"Gain of {evidence(curves, found, best.items())}")


def in_regime(case: Case, number: int) -> list[int]:
    """Return the L of a regime that both modes have."""
    return [depth for depth in case.curves.depths(*MODES) if case.thresholds.regime(depth) == number]


def too_few(needed: int, depths: list[int]) -> Finding:
    """Return an undecided finding, because the regime has fewer L than the claim needs."""
    which = f"only L = {depths[0]}" if depths else "no L"
    return Finding(None, None, f"{needed} L needed, {which} of this regime was trained in both modes.")


def by_truncated(case: Case, depths: list[int], kind: str) -> dict[str, Interval]:
    """Return the intervals of truncated's gain over full at each L, in % of full's error."""
    at = case.curves.at
    gain = {f"L = {d}": 100 * (1 - at("truncated", d, kind) / at("full", d, kind)) for d in depths}
    return intervals(gain, case.thresholds)


def of_truncated(case: Case, found: dict[str, Interval]) -> str:
    """Return the evidence for the intervals of `by_truncated`."""
    keys = [(mode, depth) for mode in MODES for depth in case.curves.depths(*MODES) if f"L = {depth}" in found]
    return f"Gain of truncated over full, {evidence(case.curves, found, keys)}"


def by_iterations(curves: Curves, pairs: list[tuple[int, int]], kind: str) -> dict[tuple[str, int, int], Values]:
    """Return the gain of the second L of each pair over the first, in each mode that has both, in % of the error."""
    return {
        (mode, fewer, more): 100 * (1 - curves.at(mode, more, kind) / curves.at(mode, fewer, kind))
        for mode in MODES
        for fewer, more in pairs
        if {fewer, more} <= set(curves.depths(mode))
    }


def border(case: Case, paper: float, answers: dict[int, Verdict], what: str) -> Finding:
    """Judge whether a property begins to hold between the two L next to the paper's border.

    Args:
        case: the case.
        paper: the paper's border, in L.
        answers: the verdict on the property at each L.
        what: the property in words.
    """
    depths = case.curves.depths(*MODES)
    below, above = [d for d in depths if d < paper], [d for d in depths if d > paper]
    if not (answers and below and above):
        return Finding(
            None, None,
            f"Both modes were trained for L = {listed(depths) or 'none'} only, not enough on both sides of the border.",
        )  # fmt: skip
    shown = np.inf  # the property holds from at most this L on, and not at `refuted`
    for depth in sorted(answers, reverse=True):
        if not answers[depth]:
            break
        shown = float(depth)
    refuted = float(max((depth for depth, answer in answers.items() if answer is False), default=0))
    verdict: Verdict = None
    if shown <= below[-1] or refuted >= above[0]:
        verdict = False
    elif (refuted, shown) == (below[-1], above[0]):
        verdict = True
    words = {True: "yes", False: "no", None: "open"}
    each = ", ".join(f"L = {depth}: {words[said]}" for depth, said in answers.items())
    after = f"above L = {refuted:g}" if refuted else "anywhere"
    place = f"it begins {after} and by L = {shown:g}" if shown < np.inf else f"if at all, it begins {after}"
    interval = Interval(float(np.sqrt(refuted * shown)), refuted, shown) if refuted and shown < np.inf else None
    return Finding(verdict, interval, f"From here on {what}? {each}; so {place}; {case.curves.basis}.")
