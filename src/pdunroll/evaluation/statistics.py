"""Intervals by a paired bootstrap, equivalence within a margin, and verdicts that may be undecided.

All quantities are arrays whose last axis is (1 + resamples): first the value for the sample, then one value for each
resample. Since all quantities are computed from the same resamples, comparisons are paired.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Verdict = bool | None  # yes, no, undecided


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def weights(count: int, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the weights (1 + resamples, count) of `count` units; each row has sum 1, the first is the sample.

    Each resample draws count - 1 units with replacement (Rao and Wu 1988), so that the variance is unbiased even for
    two or three units. A single unit always has weight 1.
    """
    draws = max(count - 1, 1)
    drawn = rng.multinomial(draws, np.full(count, 1 / count), size=resamples) / draws
    return np.concatenate([np.full((1, count), 1 / count), drawn])


def means(errors: NDArray, seeds: NDArray[np.float64], frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means over seeds and frames, in the sample and in each resample.

    `errors` is (seeds, points, frames), and the result (points, 1 + resamples). `seeds` and `frames` are independent
    `weights` (the pigeonhole bootstrap, Owen 2007, as all seeds have the same frames).
    """
    total = np.zeros((errors.shape[1], len(frames)))
    for own, share in zip(errors, seeds.T, strict=True):  # one seed at a time: its intermediate arrays are the largest
        total += (own.astype(np.float64) @ frames.T) * share
    return total


def percentile(values: NDArray[np.float64], confidence: float) -> Interval:
    """Return the percentile interval of values (1 + resamples,)."""
    low, high = np.quantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values[0]), float(low), float(high))


def simultaneous(values: NDArray[np.float64], confidence: float) -> list[Interval]:
    """Return intervals of several quantities (k, 1 + resamples) that cover all k at once with this confidence.

    They come from the bootstrap distribution of the largest of the k deviations, each in units of its standard error.
    Therefore an interval that is selected afterwards, such as the one farthest from zero, is still valid.
    """
    estimate, drawn = values[:, :1], values[:, 1:]
    error = drawn.std(axis=1, ddof=1, keepdims=True)
    deviation = np.abs(drawn - estimate) / np.where(error > 0, error, 1)
    reach = np.quantile(deviation.max(axis=0), confidence) * error
    return [Interval(float(e), float(e - r), float(e + r)) for e, r in zip(estimate[:, 0], reach[:, 0], strict=True)]


def proportion(count: int, of: int, confidence: float) -> Interval:
    """Return the Wilson interval of a share, which unlike that of a bootstrap is not empty at 0 or 1."""
    found = binomtest(count, of).proportion_ci(confidence, method="wilson")
    return Interval(count / of, float(found.low), float(found.high))


def equivalent(interval: Interval, margin: float) -> Verdict:
    """Return whether a quantity is equivalent to zero.

    Yes if the interval lies within the margin (two one-sided tests), no if it excludes zero and the estimate is not
    within the margin.
    """
    if -margin < interval.low and interval.high < margin:
        return True
    excluded = interval.low > 0 or interval.high < 0
    return False if excluded and abs(interval.estimate) >= margin else None


def superior(interval: Interval, margin: float) -> Verdict:
    """Return whether a quantity is a gain.

    Yes if it is significantly above zero and the estimate is not below the margin, no if a gain of the margin is ruled
    out. A quantity is never both superior and equivalent.
    """
    if interval.high < margin:
        return False
    return True if interval.low > 0 and interval.estimate >= margin else None


def negation(answer: Verdict) -> Verdict:
    """Return the opposite verdict; undecided stays undecided."""
    return None if answer is None else not answer


def every(answers: Iterable[Verdict]) -> Verdict:
    """Return Kleene's conjunction: no if one is no, yes if all are yes.

    >>> every([True, None]), every([False, None]), every([True, True])
    (None, False, True)
    """
    found = list(answers)
    return False if False in found else None if None in found else True


def some(answers: Iterable[Verdict]) -> Verdict:
    """Return Kleene's disjunction: yes if one is yes, no if all are no."""
    return negation(every(map(negation, answers)))
