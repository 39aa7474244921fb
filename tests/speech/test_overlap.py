"""Overlapping frames of a signal in blocks, and the mean of their results."""

from __future__ import annotations

import numpy as np
import pytest

from pdunroll.speech.overlap import averaged, frame_count


@pytest.mark.parametrize(("n", "shifts"), [(4, 1), (4, 2), (4, 4), (7, 3), (32, 8), (5, 5)])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_every_sample_is_the_mean_of_its_frames(n, shifts, size):
    hop, rng = n // shifts, np.random.default_rng(0)
    for samples in range(1, 3 * n + 9):
        x, cut = rng.normal(size=(samples, 2)), []

        def restore(frames, cut=cut):
            cut.extend(frames.copy())
            return frames * (np.arange(len(cut) - len(frames), len(cut))[:, None, None] + 1.0)  # tells frames apart

        parts = list(averaged((x[i : i + size] for i in range(0, samples, size)), n, shifts, restore))
        np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), x)
        assert len(cut) == frame_count(samples, n, shifts)
        weights, counts = np.zeros(samples), np.zeros(samples)
        for number in range(max(0, (samples - n) // hop + 1)):
            weights[number * hop : number * hop + n] += number + 1.0
            counts[number * hop : number * hop + n] += 1
            np.testing.assert_array_equal(cut[number], x[number * hop : number * hop + n].T)
        whole = int(counts.max() > 0) and number + 1
        if len(cut) > whole:  # the last frame ends with the signal, and counts from where a further frame would start
            weights[whole * hop :] += len(cut)
            counts[whole * hop :] += 1
        expected = x * (weights / counts)[:, None]
        np.testing.assert_allclose(np.concatenate([result for _, result in parts]), expected, atol=1e-12)


def test_short_signals_are_mirrored_at_their_start():
    frames = []
    list(averaged([np.array([[1.0], [2.0]])], 5, 2, lambda cut: frames.append(cut) or cut))
    np.testing.assert_array_equal(frames[0][0, 0], [1, 2, 2, 1, 1, 2][1:])
