"""Restore the clipped samples of a recording, as `python -m pdunroll restore --declip in.wav out.wav` does.

Every channel is cut into frames of n samples, and every frame with a clipped sample becomes the certified optimum of

    argmin_y ||K y||_1   subject to   lower <= y <= upper

with an operator K (m, n) fitted to clipped speech (docs/degradations.md). A clipped sample is between the clipping
level and `HEADROOM` times that level; every other one is known up to the rounding of its format and is not changed.

The level is found for each channel and each sign, since amplifiers may clip one side only, or both at different
amplitudes. A recording clips at its extreme value if several samples in a row have this value repeatedly.
"""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pdunroll.core.problem import Box
from pdunroll.core.solve import solve
from pdunroll.errors import InputError, require_positive
from pdunroll.files import atomic
from pdunroll.processes import printable
from pdunroll.restore import operator_file, recordings
from pdunroll.restore.recordings import Distortion, Recording
from pdunroll.restore.restore import check_output, origin

BLOCK = 128  # frames that are solved together
TOLERANCE = 1e-2  # relative duality gap; at 1e-3 the SDR is the same to 0.1 dB, for three times the time
DECLIP = operator_file.SHIPPED.with_name("declip.npz")
HEADROOM = 4.0  # upper bound of clipped samples relative to the level: 12 dB
RUN, RUNS = 3, 2  # a side clips if its extreme value occurs RUN times in a row, and that at least RUNS times


class Levels(NamedTuple):
    """The values at which a channel clips; infinite on a side without clipping."""

    low: float
    high: float

    def __str__(self) -> str:
        sides = (("below", self.low), ("above", self.high))
        found = [f"{word} {level:.6g}" for word, level in sides if math.isfinite(level)]
        return f"clipped {' and '.join(found)}" if found else "not clipped"

    @property
    def clips(self) -> bool:
        """Whether the channel clips."""
        return self.low > -math.inf or self.high < math.inf


def declip_file(
    path: Path, output: Path, *, level: float | None = None, operator: Path | None = None, reference: Path | None = None
) -> None:
    """Restore the clipped samples of a recording and print a summary.

    Args:
        path: the recording, in any format that libsndfile reads.
        output: the result, a .wav of 32-bit floats in an existing folder; amplitudes may exceed full scale.
        level: the amplitude at which samples are clipped, > 0; by default it is found from the recording.
        operator: an operator file, or the operator.npy of a training; by default the one that comes with the package.
        reference: the recording before clipping, to print the SDR against it.

    Raises:
        InputError: naming the invalid file or option, also if the recording does not clip.
    """
    torch.set_num_threads(1)  # several threads are no faster for matrices as small as these
    if level is not None:
        require_positive("--level", level)
    check_output(output, (path, operator, reference), (".wav",))
    K, provenance = operator_file.load(operator or DECLIP)
    recording = recordings.scan(path)
    levels = find_levels(recording) if level is None else [Levels(-level, level)] * recording.channels
    if not any(own.clips for own in levels):
        raise InputError(
            f"{path} does not clip: its extreme value is not that of {RUN} samples in a row, {RUNS} times; "
            "give the clipping level by --level"
        )
    truth = None if reference is None else recordings.scan(reference)
    if truth is not None:
        recordings.require_same_shape(truth, recording)
    print(f"{path}: {recording.shape}, {recording.samples / recording.rate:.2f} s")
    for number, own in enumerate(levels, start=1):
        print(f"channel {number}: {own}")
    print(f"operator: {operator or 'of pdunroll'}, {K.shape[0]} x {K.shape[1]}, {origin(provenance, recording.rate)}")
    start = time.perf_counter()
    done = _write(recording, output, K, levels, truth)
    seconds = (time.perf_counter() - start) * recording.rate / recording.samples
    print(
        f"{done.clipped} clipped samples in {len(done.gaps)} frames, {sum(gap <= TOLERANCE for gap in done.gaps)} of "
        f"them certified to a relative duality gap of {TOLERANCE:g}, {seconds:.2f} s for a second of audio"
    )
    if truth is not None:
        before, after = done.before.sdr(), done.after.sdr()
        print(f"SDR  input {before:6.2f} dB, restored {after:6.2f} dB, gain {after - before:+.2f} dB")
    print(output)


def find_levels(recording: Recording) -> list[Levels]:
    """Return where each channel clips, in two passes over the file.

    Args:
        recording: as `pdunroll.restore.recordings.scan` returns it.
    """
    extremes = [(block.min(axis=0), block.max(axis=0)) for block in recording.blocks(1 << 16)]
    lows, highs = (np.array(side) for side in zip(*extremes, strict=True))
    low, high = lows.min(axis=0), highs.max(axis=0)
    runs = np.zeros((2, recording.channels), dtype=int)
    before = np.zeros((2, RUN, recording.channels), dtype=bool)
    for block in recording.blocks(1 << 16):
        at = np.concatenate((before, np.stack((block <= low, block >= high))), axis=1)
        full: NDArray = np.all(np.lib.stride_tricks.sliding_window_view(at, RUN, axis=1), axis=-1)  # RUN in a row
        runs += (full[:, 1:] & ~full[:, :-1]).sum(axis=1)
        before = at[:, -RUN:]
    clips = (runs >= RUNS) & np.stack((low < 0, high > 0))
    return [
        Levels(
            float(low[channel]) if clips[0, channel] else -math.inf,
            float(high[channel]) if clips[1, channel] else math.inf,
        )
        for channel in range(recording.channels)
    ]


def restore_clipped(K: NDArray, frames: NDArray, levels: Levels, precision: float) -> tuple[NDArray, NDArray]:
    """Restore the clipped samples of frames.

    Args:
        K: the operator, (m, n).
        frames: the frames of one channel that have clipped samples, (B, n).
        levels: where the channel clips.
        precision: the half width of the interval of a sample that is not clipped, relative to the level.

    Returns:
        The frames, (B, n), and the relative duality gap of each, (B,).

    Example:
        >>> import numpy as np
        >>> from pdunroll.restore.declip import Levels, restore_clipped
        >>> frames, gaps = restore_clipped(np.eye(2), np.array([[0.2, 0.5]]), Levels(-0.5, 0.5), 2.0**-16)
        >>> frames.round(3)
        array([[0.2, 0.5]])
    """
    unit = min(-levels.low, levels.high)  # frames are solved in this unit
    low, high, x = levels.low / unit, levels.high / unit, frames / unit
    lower, upper = np.where(x >= high, high, x - precision), np.where(x <= low, low, x + precision)
    lower, upper = np.where(x <= low, HEADROOM * low, lower), np.where(x >= high, HEADROOM * high, upper)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* frames are not certified")  # the summary counts them
        box = Box.between(*(torch.from_numpy(part) for part in (lower, upper, x)))
        found = solve(torch.from_numpy(K), box, tolerance=TOLERANCE)
    return np.where((x <= low) | (x >= high), found.primal.numpy() * unit, frames), found.gap.numpy()


class _Done(NamedTuple):
    """Statistics of the written recording."""

    clipped: int  # samples
    gaps: list[float]
    before: Distortion
    after: Distortion


def _write(recording: Recording, output: Path, K: NDArray, levels: list[Levels], truth: Recording | None) -> _Done:
    """Restore a recording block by block."""
    n, channels = K.shape[1], recording.channels
    size = n * max(1, BLOCK // channels)
    (lows, highs), clipped, gaps = np.array(levels).T, 0, []
    before, after = Distortion(channels), Distortion(channels)
    truths = None if truth is None else truth.blocks(size)
    try:
        with (
            atomic(output) as temporary,
            recordings.writing(temporary, ".wav", recording.rate, channels) as file,
            tqdm(total=recording.samples, unit="sample", desc=printable(output.name)) as bar,
        ):
            for samples in recording.blocks(size):
                clipped += int(((samples <= lows) | (samples >= highs)).sum())
                padded = np.pad(samples, ((0, -len(samples) % n), (0, 0)), mode="symmetric")  # only the last frame
                frames = padded.T.reshape(channels, -1, n).copy()
                for own, of_channel in zip(levels, frames, strict=True):
                    beyond = ((of_channel <= own.low) | (of_channel >= own.high)).any(axis=1)
                    if beyond.any():
                        of_channel[beyond], found = restore_clipped(K, of_channel[beyond], own, recording.unit / 2)
                        gaps += found.tolist()
                result = frames.reshape(channels, -1)[:, : len(samples)].T
                file.write(result.astype(np.float32))
                bar.update(len(samples))
                if truths is not None:
                    clean = next(truths)
                    before.add(clean, samples)
                    after.add(clean, result)
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"{output} cannot be written ({error}); give another output") from None
    return _Done(clipped, gaps, before, after)
