"""The claims of the paper's Figure 4: what the error does when inference goes on after L_training iterations."""

from __future__ import annotations

import numpy as np

from pdunroll.claims.registry import (
    ERROR,
    Curves,
    Key,
    Row,
    Thresholds,
    Values,
    evidence,
    intervals,
    undecided,
    verdict,
)
from pdunroll.evaluation.statistics import equivalent, every, negation, percentile, some, superior

BUMP_REACH = 10  # how many times L_training a bump is looked for


def figure4_claims(curves: Curves, thresholds: Thresholds) -> list[Row]:
    """Return the verdicts on all claims of Figure 4."""
    early = [key for key in sorted(curves.mse) if thresholds.regime(key[1]) == 1]
    later = [key for key in sorted(curves.mse) if thresholds.regime(key[1]) > 1]
    return [
        gap_claim(curves, thresholds, early, differ=True),
        gap_claim(curves, thresholds, later, differ=False),
        overfit_claim(curves, thresholds, early),
        bump_claim(curves, thresholds, early),
        slowest_claim(curves, thresholds),
        optimum_claim(curves, thresholds),
    ]


def gap_claim(curves: Curves, thresholds: Thresholds, keys: list[Key], *, differ: bool) -> Row:
    """Classical and optimality inference differ in regime 1, at every one of `keys`, or agree in the others."""
    low, margin = thresholds.borders[0], f"{thresholds.margin:g} %"
    claim, statement = (
        (
            "gap-in-regime1",
            f"For L < {low:g}, the errors after classical and optimality inference differ by {margin} or more.",
        )
        if differ
        else (
            "gap-closed-later",
            f"For L > {low:g}, the errors after classical and optimality inference agree within {margin}.",
        )
    )
    if not keys:
        return undecided(claim, curves.setting, statement, ERROR, "No such L was trained.")
    values = {key: excess(curves.at(*key, "classical"), curves.at(*key, "optimality")) for key in keys}
    found = intervals({name(key): value for key, value in values.items()}, thresholds)
    answers = [equivalent(i, thresholds.margin) for i in found.values()]
    answer = every(map(negation, answers)) if differ else every(answers)
    chosen = (min if differ else max)(found.values(), key=lambda i: abs(i.estimate))
    depths = sorted({depth for _, depth in keys})
    dct = ", ".join(
        f"L = {l}: {excess(curves.dct[curves.grid.index(l)], curves.dct_optimum)[0]:+.3g} %" for l in depths
    )
    return verdict(
        claim, curves.setting, statement, answer, chosen, ERROR,
        f"Excess of classical, {evidence(curves, found, keys)} The untrained DCT has {dct}.",
    )  # fmt: skip


def overfit_claim(curves: Curves, thresholds: Thresholds, keys: list[Key]) -> Row:
    """Regime 1: what training gains over the DCT, it gains at L_training iterations rather than at the end."""
    claim = "overfits-l-training"
    statement = (
        f"For L < {thresholds.borders[0]:g}, training overfits the number of iterations: its gain over the "
        f"untrained DCT is larger after L_training iterations than at the optimum, by "
        f"{thresholds.margin:g} % of the error or more."
    )
    if not keys:
        return undecided(claim, curves.setting, statement, ERROR, "No such L was trained.")
    final = {key: excess(curves.at(*key, "optimality"), curves.dct_optimum) for key in keys}
    early = {key: excess(curves.at(*key, "classical"), curves.dct[curves.grid.index(key[1])]) for key in keys}
    found = intervals({name(key): final[key] - early[key] for key in keys}, thresholds)
    gained = ", ".join(f"{name(key)} {0 - early[key][0]:.3g} % and {0 - final[key][0]:.3g} %" for key in keys)
    return verdict(
        claim, curves.setting, statement, every(superior(i, thresholds.margin) for i in found.values()),
        min(found.values(), key=lambda i: i.estimate), ERROR,
        f"Difference of gains, {evidence(curves, found, keys)} Gains after L_training and at the optimum: {gained}.",
    )  # fmt: skip


def optimum_claim(curves: Curves, thresholds: Thresholds) -> Row:
    """What Figure 4 shows at its right end: many iterations come to the certified optimum."""
    statement = (
        f"After {curves.grid[-1]:,} iterations the error is that of the certified optimum within "
        f"{thresholds.margin:g} %."
    )
    keys = sorted(curves.mse)
    found = intervals({name(key): excess(curves.mse[key][-1], curves.optimum[key]) for key in keys}, thresholds)
    farthest = max(found.values(), key=lambda i: abs(i.estimate))
    return verdict(
        "iterations-reach-optimum", curves.setting, statement,
        every(equivalent(i, thresholds.margin) for i in found.values()),
        farthest, ERROR,
        f"{curves.certified:.1%} of the frames or more are certified; excess, {evidence(curves, found, keys)}",
    )  # fmt: skip


def excess(mse: Values, reference: Values) -> Values:
    """In % of the reference."""
    return 100 * (mse / reference - 1)


def name(key: Key) -> str:
    """Return a training's mode and L in words."""
    return f"{key[0]} L = {key[1]}"


def bump_claim(curves: Curves, thresholds: Thresholds, keys: list[Key]) -> Row:
    """Regime 1: the error rises again after L_training iterations. The slides show it for the largest L there."""
    claim = "bump-at-l-training"
    depth = max((depth for _, depth in keys), default=None)
    keys = [key for key in keys if key[1] == depth]
    statement = (
        f"For the largest L < {thresholds.borders[0]:g}, the error curve has a bump at L_training in both modes: "
        f"within {BUMP_REACH} L_training it rises above its value there, by {thresholds.margin:g} % or more."
    )
    rises = {
        (key, count): excess(curves.mse[key][row], curves.at(*key, "classical"))
        for key in keys
        for row, count in enumerate(curves.grid)
        if key[1] < count <= BUMP_REACH * key[1]
    }
    if not rises:
        return undecided(claim, curves.setting, statement, ERROR, "No L of regime 1 was trained and run for longer.")
    found = intervals(rises, thresholds)
    highest, answers = {}, []
    for key in dict.fromkeys(key for key, _ in found):
        own = {count: i for (other, count), i in found.items() if other == key}
        answers.append(some(superior(i, thresholds.margin) for i in own.values()))
        top = max(own, key=lambda count: own[count].estimate)
        highest[f"{name(key)} to {top} iterations"] = own[top]
    return verdict(
        claim, curves.setting, statement, every(answers), min(highest.values(), key=lambda i: i.estimate), ERROR,
        f"Largest rise, {evidence(curves, highest, keys)}",
    )  # fmt: skip


def slowest_claim(curves: Curves, thresholds: Thresholds) -> Row:
    """The best model in final error takes the most iterations to come near it; both recomputed in each resample."""
    claim, unit = "best-is-slowest", "iterations / the slowest other's"
    statement = (
        f"The model with the smallest error at the optimum converges slowest: it takes the most iterations to stay "
        f"within {thresholds.margin:g} % of that error."
    )
    keys = sorted(curves.mse)
    if len(keys) < 2:
        return undecided(claim, curves.setting, statement, unit, "There is one model only.")
    final = np.stack([curves.optimum[key] for key in keys])
    needed = np.stack(
        [arrival(curves.grid, curves.mse[key], curves.optimum[key], thresholds.margin / 100) for key in keys]
    )
    best = final.argmin(axis=0)
    columns = np.arange(final.shape[1])
    others = needed.copy()
    others[best, columns] = 0
    interval = percentile(needed[best, columns] / others.max(axis=0), thresholds.confidence)
    answer = True if interval.low > 1 else False if interval.high < 1 else None
    share = float((best[1:] == best[0]).mean())
    each = ", ".join(
        f"{name(key)} {f'{count:.0f}' if count < curves.grid[-1] else f'more than {curves.grid[-1]:,}'}"
        for key, count in zip(keys, needed[:, 0], strict=True)
    )
    return verdict(
        claim, curves.setting, statement, answer, interval, unit,
        f"Best is {name(keys[best[0]])} (in {share:.0%} of the resamples); iterations: {each}; {curves.basis}.",
    )  # fmt: skip


def arrival(grid: list[int], mse: Values, optimum: Values, share: float) -> Values:
    """The number of iterations from which the error stays within a share of the optimum's, (1 + resamples,).

    mse (len(grid), 1 + resamples), optimum (1 + resamples,); interpolated in log iterations between the points of the
    grid. A curve that has not arrived at the grid's end counts as arriving there, which is a lower bound.
    """
    distance = np.abs(mse / optimum - 1)
    last_out = len(grid) - 1 - (distance[::-1] > share).argmax(axis=0)
    never = ~(distance > share).any(axis=0)
    columns = np.arange(mse.shape[1])
    inside = np.minimum(last_out + 1, len(grid) - 1)
    outer, inner = distance[last_out, columns], distance[inside, columns]
    part = (outer - share) / np.where(outer > inner, outer - inner, 1)
    log = np.log(grid)
    return np.where(never, grid[0], np.exp(log[last_out] + part.clip(0, 1) * (log[inside] - log[last_out])))
