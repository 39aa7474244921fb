"""Recordings of low bit depth: what is in a file, its quantization cells, and numbers that a file can hold within them.

Files are read in blocks, never as a whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pdunroll.errors import InputError
from pdunroll.restore import grid as levels
from pdunroll.restore.grid import MOST_LEVELS, Grid
from pdunroll.speech.sources import require_whole

if TYPE_CHECKING:
    from soundfile import SoundFile

PEAKS = 1e-30, 1e30  # of a channel: with these, its cells are well within the range of 32-bit numbers
SUBTYPES = {".wav": "FLOAT", ".flac": "PCM_24"}  # of output


@dataclass(frozen=True)
class Recording:
    """An audio file and what a first look at all of its samples has shown."""

    path: Path
    rate: int  # Hz
    samples: int  # of each channel
    values: list[dict[float, int] | None]  # of each channel: its values and their counts, None if they are too many
    unit: float  # the error that storing a level may have made

    @property
    def channels(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> str:
        """Such as "2 x 48000 samples, 16000 Hz"."""
        return f"{self.channels} x {self.samples} samples, {self.rate} Hz"

    def blocks(self, size: int) -> Iterator[NDArray[np.float64]]:
        """The samples, (size, channels) at a time."""
        import soundfile

        return soundfile.blocks(os.fsencode(self.path), size, dtype="float64", always_2d=True)


def scan(path: Path) -> Recording:
    """Read a file once.

    Raises `InputError` naming it if it is no audio, damaged, empty, not finite, silent, or too loud or too soft for the
    32-bit numbers of the output.
    """
    import soundfile

    if not path.is_file():
        raise InputError(f"{path} does not exist; give an audio file")
    read, peaks = 0, np.zeros(0)
    try:
        require_whole(path)
        info = soundfile.info(os.fsencode(path))
        unit = 2.0**-7 if info.subtype in ("PCM_S8", "PCM_U8") else 2.0**-15
        found = Recording(path, info.samplerate, info.frames, [{} for _ in range(info.channels)], unit)
        peaks = np.zeros(info.channels)
        for block in found.blocks(1 << 16):
            read += len(block)
            peaks = np.maximum(peaks, np.abs(block).max(axis=0))
            _count(found, block)
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"{path} cannot be read as audio ({error}); give a wav or flac file") from None
    if read != found.samples:
        raise InputError(f"{path} is damaged, it has {read} of {found.samples} samples; replace it")
    if read == 0:
        raise InputError(f"{path} is empty; give a recording of one sample at least")
    if not peaks.any():
        raise InputError(f"{path} is silent; there is nothing to restore")
    for peak in peaks[peaks > 0]:
        if not PEAKS[0] <= peak <= PEAKS[1]:
            raise InputError(f"{path} has a channel with a peak of {peak:.3g}; scale it to a peak of 1 first")
    return found


def _count(recording: Recording, block: NDArray) -> None:
    """Add the values of a block (samples, channels) to those of `recording`."""
    if not np.isfinite(block).all():
        raise InputError(f"{recording.path} holds samples that are NaN or infinite; replace them")
    for channel, counts in enumerate(recording.values):
        if counts is not None:
            for value, count in zip(*np.unique_counts(block[:, channel]), strict=True):
                counts[float(value)] = counts.get(float(value), 0) + int(count)
            if len(counts) > MOST_LEVELS:
                recording.values[channel] = None


def cells(recording: Recording, bits: int | None) -> list[Grid]:
    """The grid of each channel: found from its values, or that of `bits` bits on [-1, 1].

    A channel in which none can be found gets that of another one if its values are levels of it, and a silent one is
    left as it is. Raises `InputError` asking for --bits where that fails, too.
    """
    if bits is not None:
        return [levels.mid_rise(bits)] * recording.channels
    held = [np.array(sorted(values or {})) for values in recording.values]
    found: list[Grid | None] = []
    for values, counts in zip(held, recording.values, strict=True):
        weights = np.array([counts[value] for value in values.tolist()] if counts else [])
        found.append(levels.find(values, weights, _rounding(recording, values)))
    known = [grid for grid in found if grid is not None]
    for channel, values in enumerate(held):
        if found[channel] is not None:
            continue
        if values.tolist() == [0.0] and known:
            found[channel] = replace(known[0], kind="silent", lowest=0.0, count=1, shift=0.0)
            continue
        suited = (grid for grid in known if len(values) and grid.holds(values, _rounding(recording, values)))
        if (grid := next(suited, None)) is None:
            count = len(values) or f"more than {MOST_LEVELS}"
            raise InputError(
                f"{recording.path}: channel {channel + 1} has no evenly spaced levels of 12 bits or less ({count} "
                "different values); say by --bits N that it was quantized to N bits on [-1, 1]"
            )
        found[channel] = grid
    return [grid for grid in found if grid is not None]


def _rounding(recording: Recording, values: NDArray) -> float:
    return recording.unit * float(np.abs(values).max(initial=1.0))


def require_same_shape(reference: Recording, recording: Recording) -> None:
    """Raise `InputError` if two recordings can't be compared sample by sample."""
    if reference.shape != recording.shape:
        raise InputError(
            f"--reference {reference.path} has {reference.shape}, but {recording.path} {recording.shape}; "
            "give the recording it was made from"
        )


def require_storable(grids: list[Grid], output: Path) -> None:
    """Raise `InputError` if the format of `output` holds no number in an outermost cell."""
    for grid in grids if output.suffix.lower() == ".flac" else []:
        lowest = grid.lowest + grid.shift  # middle of a cell, in steps
        if grid.step * (lowest + 0.5) < -1.0 or grid.step * (lowest + grid.count - 1.5) > 1.0 - 2.0**-23:
            raise InputError(f"{output} cannot hold the cells beyond full scale; give an output named .wav")


def storable(samples: NDArray, grids: list[Grid], restored: NDArray, subtype: str) -> NDArray:
    """`restored` (N, channels) as what soundfile writes to `subtype` unchanged: the nearest numbers that lie in the
    cells of `samples`."""
    centre = np.stack([grid.centres(column) for grid, column in zip(grids, samples.T, strict=True)], axis=1)
    radius = np.array([grid.radius for grid in grids])
    lower, upper = centre - radius, centre + radius
    if subtype == "PCM_24":
        codes = np.rint(restored * 2.0**23).clip(np.ceil(lower * 2.0**23), np.floor(upper * 2.0**23))
        return codes.clip(-(2**23), 2**23 - 1).astype(np.int32) << 8
    numbers = restored.astype(np.float32)
    numbers = np.where(numbers > upper, np.nextafter(numbers, np.float32(-np.inf)), numbers)
    return np.where(numbers < lower, np.nextafter(numbers, np.float32(np.inf)), numbers)


@contextmanager
def writing(path: Path, suffix: str, rate: int, channels: int) -> Iterator[SoundFile]:
    """Open `path` for samples in the format that `suffix` names; the same samples give the same bytes at any time."""
    import soundfile

    name = os.fsencode(path)  # as text it could not be one that is not UTF-8
    with soundfile.SoundFile(name, "w", rate, channels, SUBTYPES[suffix], format=suffix[1:].upper()) as file:
        yield file
    if suffix == ".wav":  # libsndfile puts the time of day into its chunk of peaks, after a name, a size and a version
        with path.open("r+b") as header:
            peaks = header.read(256).find(b"PEAK")
            if peaks > 0:
                header.seek(peaks + 12)
                header.write(bytes(4))


class Distortion:
    """Signal-to-distortion ratio of what comes in blocks, over all channels."""

    def __init__(self, channels: int) -> None:
        # of truth, estimate and their difference: energies; of truth and estimate: the inner product
        self.truth, self.estimate, self.error, self.product = np.zeros((4, channels))

    def add(self, truth: NDArray, estimate: NDArray) -> None:
        """Count in a block, (N, channels)."""
        self.truth += (truth**2).sum(axis=0)
        self.estimate += (estimate**2).sum(axis=0)
        self.error += ((truth - estimate) ** 2).sum(axis=0)
        self.product += (truth * estimate).sum(axis=0)

    def sdr(self) -> float:
        """10 log10 of ||truth||^2 / ||truth - estimate||^2: the SNR of the estimate, in dB."""
        return decibels(self.truth.sum(), self.error.sum())

    def scale_invariant_sdr(self) -> float:
        """The same with the truth scaled to fit best, each channel by a factor of its own (Le Roux et al. 2019)."""
        target = self.product**2 / np.where(self.truth > 0.0, self.truth, 1.0)
        return decibels(target.sum(), (self.estimate - target).sum())


def decibels(signal: float, distortion: float) -> float:
    """Their ratio in dB, at most 200."""
    return 10.0 * math.log10(max(signal, 1e-300) / max(distortion, 1e-20 * signal, 1e-300))
