"""The claims of the paper's Figure 4: the error when inference continues after L_training iterations."""

from __future__ import annotations

import numpy as np

from pdunroll.claims.registry import ERROR, Case, Finding, Key, Values, claim, evidence, intervals
from pdunroll.evaluation.convergence import first_close
from pdunroll.evaluation.statistics import Interval, equivalent, every, negation, percentile, some, superior

BUMP_REACH = 10  # a bump is searched for up to this multiple of L_training


@claim(
    "gap-in-regime1",
    "For L < {low:g}, the errors after classical and optimality inference differ by {margin:g} % or more.",
    unit=ERROR,
)
def gap_in_regime1(case: Case) -> Finding:
    """Judge whether both kinds of inference differ at every training of regime 1."""
    if not (keys := trained(case, regime1=True)):
        return Finding(None, None, "No such L was trained.")
    found, seen = gaps(case, keys)
    verdict = every(negation(equivalent(i, case.thresholds.margin)) for i in found.values())
    return Finding(verdict, min(found.values(), key=lambda i: abs(i.estimate)), seen)


@claim(
    "gap-closed-later",
    "For L > {low:g}, the errors after classical and optimality inference agree within {margin:g} %.",
    unit=ERROR,
)
def gap_closed_later(case: Case) -> Finding:
    """Judge whether both kinds of inference agree at every training of the regimes 2 and 3."""
    if not (keys := trained(case, regime1=False)):
        return Finding(None, None, "No such L was trained.")
    found, seen = gaps(case, keys)
    verdict = every(equivalent(i, case.thresholds.margin) for i in found.values())
    return Finding(verdict, max(found.values(), key=lambda i: abs(i.estimate)), seen)


@claim(
    "overfits-l-training",
    "For L < {low:g}, training overfits the number of iterations: its gain over the untrained DCT is larger after "
    "L_training iterations than at the optimum, by {margin:g} % of the error or more.",
    unit=ERROR,
)
def overfits(case: Case) -> Finding:
    """Judge whether every training of regime 1 gains more over the DCT after L iterations than at the optimum."""
    curves = case.curves
    if not (keys := trained(case, regime1=True)):
        return Finding(None, None, "No such L was trained.")
    final = {key: excess(curves.at(*key, "optimality"), curves.dct_optimum) for key in keys}
    early = {key: excess(curves.at(*key, "classical"), curves.dct[curves.grid.index(key[1])]) for key in keys}
    found = intervals({name(key): final[key] - early[key] for key in keys}, case.thresholds)
    gained = ", ".join(f"{name(key)} {0 - early[key][0]:.3g} % and {0 - final[key][0]:.3g} %" for key in keys)
    return Finding(
        every(superior(i, case.thresholds.margin) for i in found.values()),
        min(found.values(), key=lambda i: i.estimate),
        f"Difference of gains, {evidence(curves, found, keys)} Gains after L_training and at the optimum: {gained}.",
    )


@claim(
    "bump-at-l-training",
    "For the largest L < {low:g}, the error curve has a bump at L_training in both modes: "
    f"within {BUMP_REACH} L_training "
    "it rises above its value there, by {margin:g} % or more.",
    unit=ERROR,
)
def bump(case: Case) -> Finding:
    """Judge whether the error rises after L_training iterations, for the largest L of regime 1 as in the slides."""
    curves, keys = case.curves, trained(case, regime1=True)
    depth = max((depth for _, depth in keys), default=None)
    keys = [key for key in keys if key[1] == depth]
    rises = {
        (key, count): excess(curves.mse[key][row], curves.at(*key, "classical"))
        for key in keys
        for row, count in enumerate(curves.grid)
        if key[1] < count <= BUMP_REACH * key[1]
    }
    if not rises:
        return Finding(None, None, "No L of regime 1 was trained and run for longer.")
    found = intervals(rises, case.thresholds)
    highest, answers = {}, []
    for key in dict.fromkeys(key for key, _ in found):
        own = {count: i for (other, count), i in found.items() if other == key}
        answers.append(some(superior(i, case.thresholds.margin) for i in own.values()))
        top = max(own, key=lambda count: own[count].estimate)
        highest[f"{name(key)} to {top} iterations"] = own[top]
    farthest = min(highest.values(), key=lambda i: i.estimate)
    return Finding(every(answers), farthest, f"Largest rise, {evidence(curves, highest, keys)}")


@claim(
    "best-is-slowest",
    "The model with the smallest error at the optimum converges slowest: it takes the most iterations to stay within "
    "{margin:g} % of that error.",
    unit="iterations / the slowest other's",
)
def best_is_slowest(case: Case) -> Finding:
    """Judge whether the best model takes the most iterations; both are computed again in each resample."""
    curves, keys = case.curves, sorted(case.curves.mse)
    if len(keys) < 2:
        return Finding(None, None, "There is only one model.")
    final = np.stack([curves.optimum[key] for key in keys])
    share, last = case.thresholds.margin / 100, curves.grid[-1]
    needed = np.stack([first_close(curves.grid, curves.mse[key], curves.optimum[key], share) for key in keys])
    needed = np.where(np.isnan(needed), last, needed)  # a lower bound
    best = final.argmin(axis=0)
    columns = np.arange(final.shape[1])
    others = needed.copy()
    others[best, columns] = 0
    interval = percentile(needed[best, columns] / others.max(axis=0), case.thresholds.confidence)
    verdict = True if interval.low > 1 else False if interval.high < 1 else None
    share = float((best[1:] == best[0]).mean())
    each = ", ".join(
        f"{name(key)} {f'{count:.0f}' if count < last else f'more than {last:,}'}"
        for key, count in zip(keys, needed[:, 0], strict=True)
    )
    return Finding(
        verdict, interval,
        f"Best is {name(keys[best[0]])} (in {share:.0%} of the resamples); iterations: {each}; {curves.basis}.",
    )  # fmt: skip


@claim(
    "iterations-reach-optimum",
    "After {iterations:,} iterations the error is that of the certified optimum within {margin:g} %.",
    unit=ERROR,
)
def reaches_optimum(case: Case) -> Finding:
    """Judge whether many iterations reach the certified optimum, as at the right end of Figure 4."""
    curves, keys = case.curves, sorted(case.curves.mse)
    excesses = {name(key): excess(curves.mse[key][-1], curves.optimum[key]) for key in keys}
    found = intervals(excesses, case.thresholds)
    return Finding(
        every(equivalent(i, case.thresholds.margin) for i in found.values()),
        max(found.values(), key=lambda i: abs(i.estimate)),
        f"{curves.certified:.1%} of the frames or more are certified; excess, {evidence(curves, found, keys)}",
    )


def trained(case: Case, *, regime1: bool) -> list[Key]:
    """Return the trainings of regime 1, or those of regimes 2 and 3."""
    return [key for key in sorted(case.curves.mse) if (case.thresholds.regime(key[1]) == 1) == regime1]


def gaps(case: Case, keys: list[Key]) -> tuple[dict[str, Interval], str]:
    """Return the excess of classical over optimality inference for each training, with the evidence in words."""
    curves = case.curves
    values = {name(key): excess(curves.at(*key, "classical"), curves.at(*key, "optimality")) for key in keys}
    found = intervals(values, case.thresholds)
    depths = sorted({depth for _, depth in keys})
    dct = ", ".join(
        f"L = {l}: {excess(curves.dct[curves.grid.index(l)], curves.dct_optimum)[0]:+.3g} %" for l in depths
    )
    return found, f"Excess of classical, {evidence(curves, found, keys)} The untrained DCT has {dct}."


def excess(mse: Values, reference: Values) -> Values:
    """Return by how much an error exceeds a reference, in % of the reference."""
    return 100 * (mse / reference - 1)


def name(key: Key) -> str:
    """Return a training's mode and L in words."""
    return f"{key[0]} L = {key[1]}"
