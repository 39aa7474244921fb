"""Intervals against scipy's bootstrap, simulations and closed forms; answers that may stay open."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from pdunroll.evaluation.statistics import (
    Interval,
    equivalent,
    every,
    means,
    negation,
    percentile,
    proportion,
    simultaneous,
    some,
    superior,
    weights,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_first_weights_are_the_sample_and_all_sum_to_one():
    drawn = weights(7, 50, rng())
    assert drawn.shape == (51, 7)
    assert drawn[0] == pytest.approx(1 / 7)
    assert drawn.sum(axis=1) == pytest.approx(1)
    assert (weights(1, 5, rng()) == 1).all()
    assert (weights(7, 50, rng()) == drawn).all()
    assert (weights(7, 50, rng(1)) != drawn).any()


@pytest.mark.parametrize("count", [2, 3, 50])
def test_weights_give_the_unbiased_variance_of_the_mean(count):
    values = rng(5).exponential(size=count)
    drawn = weights(count, 40_000, rng())[1:] @ values
    assert drawn.var() == pytest.approx(values.var(ddof=1) / count, rel=0.05)


def test_means_are_those_of_the_resampled_frames_and_seeds():
    errors = rng(1).exponential(size=(3, 4, 20)).astype(np.float32)
    seeds, frames = weights(3, 10, rng(2)), weights(20, 10, rng(3))
    found = means(errors, seeds, frames)
    assert found[:, 0] == pytest.approx(errors.mean(axis=(0, 2)), rel=1e-6)
    for resample, point in itertools.product(range(11), range(4)):
        drawn_seeds = np.repeat(np.arange(3), np.rint(2 * seeds[resample]).astype(int)) if resample else np.arange(3)
        drawn_frames = np.repeat(np.arange(20), np.rint(19 * frames[resample]).astype(int)) if resample else range(20)
        wanted = errors[np.ix_(drawn_seeds, [point], drawn_frames)].mean()
        assert found[point, resample] == pytest.approx(wanted, rel=1e-5)


def paired(count: int, seed: int = 0) -> np.ndarray:
    """Errors of two operators (2, 1, count) on the same skewed frames; the second is 2 % better."""
    generator = rng(seed)
    frames = generator.lognormal(size=count)
    return frames * np.array([1.0, 0.98])[:, None, None] * generator.lognormal(sigma=0.1, size=(2, 1, count))


def gain(errors: np.ndarray, resamples: int = 4000) -> np.ndarray:
    frames = weights(errors.shape[-1], resamples, rng(9))
    one = weights(1, resamples, rng())
    first, second = (means(own[None], one, frames)[0] for own in errors)
    return 1 - second / first


def test_intervals_agree_with_scipys_paired_bootstrap():
    errors = paired(300)
    own = gain(errors)
    theirs = bootstrap(
        tuple(errors[:, 0]), lambda a, b, axis: 1 - b.mean(axis=axis) / a.mean(axis=axis), paired=True,
        vectorized=True, method="percentile", n_resamples=4000, rng=rng(3),
    )  # fmt: skip
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    for interval, tolerance in ((percentile(own, 0.95), 0.06), (simultaneous(own[None], 0.95)[0], 0.12)):
        assert interval.estimate == pytest.approx(1 - errors[1].mean() / errors[0].mean())
        assert interval.low == pytest.approx(theirs.confidence_interval.low, abs=tolerance * width)
        assert interval.high == pytest.approx(theirs.confidence_interval.high, abs=tolerance * width)
    # a bootstrap that is not paired would be several times as wide
    apart = bootstrap(
        tuple(errors[:, 0]), lambda a, b, axis: 1 - b.mean(axis=axis) / a.mean(axis=axis), vectorized=True,
        method="percentile", n_resamples=1000, rng=rng(3),
    )  # fmt: skip
    assert apart.confidence_interval.high - apart.confidence_interval.low > 3 * width


def test_coverage():
    """Of the true gain 2 %, in 200 made-up samples: 180 of 200 is three standard errors below 95 %."""
    runs = [gain(paired(200, seed), 500) for seed in range(200)]
    for covered in (
        sum(i.low <= 0.02 <= i.high for i in (percentile(values, 0.95) for values in runs)),
        sum(i.low <= 0.02 <= i.high for i in (simultaneous(values[None], 0.95)[0] for values in runs)),
    ):
        assert 180 <= covered <= 199


def test_simultaneous_intervals_cover_all_at_once():
    """Ten independent normal means: at the joint level each needs the quantile of the largest of ten."""
    values = np.concatenate([np.zeros((10, 1)), rng().normal(size=(10, 20_000))], axis=1)
    reach = norm.ppf((1 + 0.95 ** (1 / 10)) / 2)
    for interval in simultaneous(values, 0.95):
        assert (interval.low, interval.high) == pytest.approx((-reach, reach), rel=0.03)
    same = np.repeat(values[:1], 10, axis=0)  # ten times the same quantity is one quantity
    assert simultaneous(same, 0.95)[0].high == pytest.approx(norm.ppf(0.975), rel=0.03)


def test_a_quantity_without_spread_has_an_interval_of_no_width():
    assert simultaneous(np.zeros((1, 5)), 0.95) == [Interval(0, 0, 0)]


def test_wilson_interval_at_the_ends():
    z2 = norm.ppf(0.975) ** 2
    assert proportion(0, 64, 0.95) == pytest.approx((0, 0, z2 / (64 + z2)), abs=1e-12)
    assert proportion(64, 64, 0.95) == pytest.approx((1, 64 / (64 + z2), 1))


@pytest.mark.parametrize(
    ("interval", "is_alike", "is_gain"),
    [
        ((0, -0.5, 0.5), True, False),
        ((0.5, 0.2, 0.8), True, False),  # significant, but surely below the margin
        ((2, 1.5, 2.5), False, True),
        ((1.2, 0.1, 2.3), False, True),
        ((0.8, 0.1, 1.5), None, None),  # significant, perhaps below the margin
        ((0.8, -0.3, 1.9), None, None),
        ((-2, -2.5, -1.5), False, False),
        ((-1.2, -2.3, -0.1), False, False),
        ((-0.8, -1.5, -0.1), None, False),
        ((0, -5, 5), None, None),
    ],
)
def test_equivalent_and_superior(interval, is_alike, is_gain):
    assert equivalent(Interval(*interval), 1.0) is is_alike
    assert superior(Interval(*interval), 1.0) is is_gain
    mirrored = Interval(-interval[0], -interval[2], -interval[1])
    assert equivalent(mirrored, 1.0) is is_alike


def test_answers_that_stay_open():
    for answers in itertools.product((True, False, None), repeat=2):
        # what each of the open ones could turn out to be
        settled = list(itertools.product(*[(True, False) if a is None else (a,) for a in answers]))
        for combine, plain in ((every, all), (some, any)):
            possible = {plain(case) for case in settled}
            assert combine(answers) is (possible.pop() if len(possible) == 1 else None)
    assert (negation(True), negation(False), negation(None)) == (False, True, None)
    assert equivalent(Interval(0, -1, 0.5), 1.0) is None  # the margin itself is not within
