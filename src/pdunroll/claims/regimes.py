"""The claims of the paper's Figure 3: three regimes of L in training, and the borders between them."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from pdunroll.claims.registry import (
    ERROR,
    KINDS,
    MODES,
    Curves,
    Row,
    Thresholds,
    Values,
    evidence,
    intervals,
    listed,
    undecided,
    verdict,
)
from pdunroll.evaluation.statistics import Answer, Interval, equivalent, every, negation, superior


def figure3_claims(curves: Curves, thresholds: Thresholds) -> list[Row]:
    """Return the verdicts on all claims of Figure 3, after classical and after optimality inference."""
    return [
        row
        for kind in KINDS
        for row in (
            *regime_claims(curves, thresholds, kind),
            *border_claims(curves, thresholds, kind),
            overall_claim(curves, thresholds, kind),
        )
    ]


def by_truncated(curves: Curves, depths: list[int], kind: str) -> dict[int, Values]:
    """Truncated's gain over full at each L, % of full's error."""
    return {depth: 100 * (1 - curves.at("truncated", depth, kind) / curves.at("full", depth, kind)) for depth in depths}


def by_iterations(curves: Curves, pairs: list[tuple[int, int]], kind: str) -> dict[tuple[str, int, int], Values]:
    """The gain of the second L of each pair over the first, in each mode that has both, % of the error."""
    return {
        (mode, fewer, more): 100 * (1 - curves.at(mode, more, kind) / curves.at(mode, fewer, kind))
        for mode in MODES
        for fewer, more in pairs
        if {fewer, more} <= set(curves.depths(mode))
    }


def regime_claims(curves: Curves, thresholds: Thresholds, kind: str) -> list[Row]:
    """Regime 1: both modes equivalent. Regime 2: no gain from more iterations. Regime 3: truncated is better."""
    both = curves.depths(*MODES)
    inside = {number: [depth for depth in both if thresholds.regime(depth) == number] for number in (1, 2, 3)}
    low, high = thresholds.borders
    statements = {
        f"regime1-alike-{kind}": f"For L < {low:g}, full and truncated backpropagation give the same error within "
        f"{thresholds.margin:g} % after {kind} inference.",
        f"regime2-no-gain-{kind}": f"For {low:g} < L < {high:g}, more iterations in training bring no gain of "
        f"{thresholds.margin:g} % or more after {kind} inference, in either mode.",
        f"regime3-truncated-better-{kind}": f"For L > {high:g}, truncated backpropagation gives a smaller error than "
        f"full after {kind} inference, by {thresholds.margin:g} % or more.",
    }
    rows = []
    for number, (claim, statement) in enumerate(statements.items(), start=1):
        depths, needed = inside[number], 2 if number == 2 else 1
        if len(depths) < needed:
            which = f"only L = {depths[0]}" if depths else "no L"
            reason = f"{needed} L needed, {which} of this regime was trained in both modes."
            rows.append(undecided(claim, curves.setting, statement, ERROR, reason))
            continue
        keys = [(mode, depth) for mode in MODES for depth in depths]
        if number == 2:
            pairs = by_iterations(curves, [(depths[0], more) for more in depths[1:]], kind)
            found = intervals({f"{mode}, L = {a} to {b}": values for (mode, a, b), values in pairs.items()}, thresholds)
            answer = every(negation(superior(i, thresholds.margin)) for i in found.values())
            chosen = max(found.values(), key=lambda i: i.estimate)
        else:
            values = by_truncated(curves, depths, kind)
            found = intervals({f"L = {depth}": value for depth, value in values.items()}, thresholds)
            if number == 1:
                answer = every(equivalent(i, thresholds.margin) for i in found.values())
                chosen = max(found.values(), key=lambda i: abs(i.estimate))
            else:
                answer = every(superior(i, thresholds.margin) for i in found.values())
                chosen = min(found.values(), key=lambda i: i.estimate)
        subject = "Gain" if number == 2 else "Gain of truncated over full"
        rows.append(
            verdict(
                claim, curves.setting, statement, answer, chosen, ERROR, f"{subject}, {evidence(curves, found, keys)}"
            )
        )
    return rows


def border_claims(curves: Curves, thresholds: Thresholds, kind: str) -> list[Row]:
    """Where the data have the borders between the regimes, against where the paper has them."""
    both = curves.depths(*MODES)
    before = [depth for depth in both if thresholds.regime(depth) < 3]
    pairs = by_iterations(curves, list(combinations(before, 2)), kind)
    flat: dict[int, Answer] = {}
    if pairs:
        found = intervals(pairs, thresholds)
        flat = {
            depth: every(
                negation(superior(i, thresholds.margin)) for (_, fewer, _), i in found.items() if fewer == depth
            )
            for depth in before[:-1]
        }
    better: dict[int, Answer] = {}
    if both:
        better = {
            depth: superior(i, thresholds.margin)
            for depth, i in intervals(by_truncated(curves, both, kind), thresholds).items()
        }
    return [
        border_claim(
            curves, f"border-1-2-{kind}", thresholds.borders[0], flat, "more iterations bring no gain any more", kind
        ),
        border_claim(
            curves, f"border-2-3-{kind}", thresholds.borders[1], better, "truncated is better than full", kind
        ),
    ]


def border_claim(curves: Curves, claim: str, border: float, answers: dict[int, Answer], what: str, kind: str) -> Row:
    """Does what `answers` tell of each L begin between the two L that are next to the paper's border?"""
    statement = f"From the first L above {border:g} on, and from no smaller L on, {what} ({kind} inference)."
    refuted, shown = 0.0, np.inf  # it begins above the one and not above the other
    for depth in sorted(answers, reverse=True):
        if not answers[depth]:
            break
        shown = float(depth)
    refuted = float(max((depth for depth, answer in answers.items() if answer is False), default=0))
    depths = curves.depths(*MODES)
    below, above = [d for d in depths if d < border], [d for d in depths if d > border]
    if not (answers and below and above):
        reason = (
            f"Both modes were trained for L = {listed(depths) or 'none'} only, not enough on both sides of the border."
        )
        return undecided(claim, curves.setting, statement, "L", reason)
    answer: Answer = None
    if shown <= below[-1] or refuted >= above[0]:
        answer = False
    elif (refuted, shown) == (below[-1], above[0]):
        answer = True
    words = {True: "yes", False: "no", None: "open"}
    each = ", ".join(f"L = {depth}: {words[said]}" for depth, said in answers.items())
    after = f"above L = {refuted:g}" if refuted else "anywhere"
    place = f"it begins {after} and by L = {shown:g}" if shown < np.inf else f"if at all, it begins {after}"
    interval = Interval(float(np.sqrt(refuted * shown)), refuted, shown) if refuted and shown < np.inf else None
    return verdict(
        claim,
        curves.setting,
        statement,
        answer,
        interval,
        "L",
        f"From here on {what}? {each}; so {place}; {curves.basis}.",
    )


def overall_claim(curves: Curves, thresholds: Thresholds, kind: str) -> Row:
    """The slides' summary: truncated outperforms full, each at the L that was best in validation."""
    claim = f"truncated-outperforms-full-{kind}"
    statement = (
        f"Truncated backpropagation outperforms full after {kind} inference by {thresholds.margin:g} % of the error or "
        "more, each at the L of its best validation error after that inference."
    )
    if not all(curves.depths(mode) for mode in MODES):
        reason = "Not both modes were trained with this mask."
        return undecided(claim, curves.setting, statement, ERROR, reason)
    best = {mode: min(curves.depths(mode), key=lambda depth: curves.validation[kind][mode, depth]) for mode in MODES}
    full, truncated = (curves.at(mode, depth, kind) for mode, depth in best.items())
    name = f"truncated L = {best['truncated']} over full L = {best['full']}"
    found = intervals({name: 100 * (1 - truncated / full)}, thresholds)
    return verdict(
        claim, curves.setting, statement, superior(found[name], thresholds.margin), found[name], ERROR,
        f"Gain of {evidence(curves, found, best.items())}",
    )  # fmt: skip
