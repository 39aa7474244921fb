"""Restoration of a signal in overlapping frames, block by block, with averaged results.

With S shifts, a frame of n samples starts every n // S samples, as on S shifted grids of frames side by side. A sample
is in S frames, and its result is the mean of their results. Quantization cells are convex, so that the mean of values
in a cell is in the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray


def frame_count(samples: int, n: int, shifts: int) -> int:
    """Return the number of frames of n samples into which `averaged` cuts a signal of `samples` samples."""
    hop = n // shifts
    whole = max(0, (samples - n) // hop + 1)
    rest = samples - whole * hop
    return whole + (rest > 0 and (rest + hop > n or whole == 0))


def averaged(
    blocks: Iterable[NDArray], n: int, shifts: int, restore: Callable[[NDArray], NDArray]
) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield the samples of a signal with their results, each the mean over the frames that hold the sample.

    If the last frame does not end with the signal, one more frame does, whose results count only for the samples that
    are not yielded before. A signal shorter than a frame is mirrored at its start. The memory does not grow with the
    length of the signal.

    Args:
        blocks: the signal, (samples, channels) each, of any lengths.
        n: samples in a frame.
        shifts: S, from 1 (frames side by side) to n.
        restore: returns the results of frames (B, channels, n); it may return fewer channels.

    Yields:
        Samples and their results, (samples, channels) each.

    Examples:
        >>> import numpy as np
        >>> from pdunroll.speech.overlap import averaged
        >>> blocks = [np.arange(5.0)[:, None], np.arange(5.0, 9.0)[:, None]]
        >>> parts = list(averaged(blocks, n=4, shifts=2, restore=lambda frames: 2.0 * frames))
        >>> np.concatenate([result for _, result in parts])[:, 0]
        array([ 0.,  2.,  4.,  6.,  8., 10., 12., 14., 16.])
    """
    hop = n // shifts
    before = x = total = count = np.empty(
        (0, 0)
    )  # `before`: the last `hop` samples that are done; others: not done yet
    for block in blocks:
        x = np.concatenate((x, block)) if x.size else block
        done = max(0, (len(x) - n) // hop + 1) * hop
        if done:
            results = restore(sliding_window_view(x, n, axis=0)[:done:hop])
            total, count = _added(total, count, results, np.arange(0, done, hop))
            yield x[:done], total[:done] / count[:done]
            before, x, total, count = x[done - hop : done], x[done:], total[done:], count[done:]
    if len(x) and (len(x) + hop > n or not len(before)):
        last = np.concatenate((before, x))[-n:] if len(before) else x
        last = np.pad(last, ((n - len(last), 0), (0, 0)), mode="symmetric")
        results = restore(last.T[None])[:, :, n - len(x) :]
        total, count = _added(total, count, results, np.zeros(1, int))
    if len(x):
        yield x, total / count


def _added(total: NDArray, count: NDArray, results: NDArray, starts: NDArray) -> tuple[NDArray, NDArray]:
    """Return sums (samples, channels) and counts (samples, 1) with results (B, channels, n) added at `starts`."""
    length = starts[-1] + results.shape[2]
    new, counts = np.zeros((length, results.shape[1])), np.zeros((length, 1))
    if len(total):
        new[: len(total)], counts[: len(count)] = total, count
    for start, frame in zip(starts, results, strict=True):
        new[start : start + len(frame.T)] += frame.T
        counts[start : start + len(frame.T)] += 1.0
    return new, counts
