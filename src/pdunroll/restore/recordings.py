"""Recordings of low bit depth: the values in a file, its quantization cells, and output that stays within them.

Files are read in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pdunroll.errors import InputError
from pdunroll.restore.grid import MAX_LEVELS, Grid, infer_grid, mid_rise
from pdunroll.speech.sources import file_name, require_whole

if TYPE_CHECKING:
    from soundfile import SoundFile

PEAKS = 1e-30, 1e30  # range of a channel's peak in which float32 represents its cells
SUBTYPES = {".wav": "FLOAT", ".flac": "PCM_24"}  # the formats of the output


@dataclass(frozen=True)
class Recording:
    """An audio file and the values in it.

    Attributes:
        path: the file.
        rate: in Hz.
        samples: the number of samples of each channel.
        values: the number of samples with each value, for each channel; None for more than `MAX_LEVELS` values.
        unit: the largest error of a level due to its storage format.
    """

    path: Path
    rate: int
    samples: int
    values: list[dict[float, int] | None]
    unit: float

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return len(self.values)

    @property
    def shape(self) -> str:
        """Return a description such as "2 x 48000 samples, 16000 Hz"."""
        return f"{self.channels} x {self.samples} samples, {self.rate} Hz"

    def blocks(self, size: int) -> Iterator[NDArray]:
        """Yield the samples in float64, in blocks of (size, channels); the last block may be shorter."""
        import soundfile

        return soundfile.blocks(file_name(self.path), size, dtype="float64", always_2d=True)


def scan(path: Path) -> Recording:
    """Read a file once and return its properties and the counts of its values.

    Raises:
        InputError: naming the file if it is no audio, damaged, empty, not finite, silent, or too loud or too soft for
            the 32-bit numbers of the output.
    """
    import soundfile

    if not path.is_file():
        raise InputError(f"{path} does not exist; give an audio file")
    read, peaks = 0, np.zeros(0)
    try:
        require_whole(path)
        info = soundfile.info(file_name(path))
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
        raise InputError(f"{path} is empty; give a recording of at least one sample")
    if not peaks.any():
        raise InputError(f"{path} is silent; there is nothing to restore")
    for peak in peaks[peaks > 0]:
        if not PEAKS[0] <= peak <= PEAKS[1]:
            raise InputError(f"{path} has a channel with a peak of {peak:.3g}; scale it to a peak of 1 first")
    return found


def _count(recording: Recording, block: NDArray) -> None:
    """Add the values of a block (samples, channels) to those of the recording."""
    if not np.isfinite(block).all():
        raise InputError(f"{recording.path} holds samples that are NaN or infinite; replace them")
    for channel, counts in enumerate(recording.values):
        if counts is not None:
            for value, count in zip(*np.unique_counts(block[:, channel]), strict=True):
                counts[float(value)] = counts.get(float(value), 0) + int(count)
            if len(counts) > MAX_LEVELS:
                recording.values[channel] = None


def cells(recording: Recording, bits: int | None) -> list[Grid]:
    """Return the grid of each channel.

    A channel without evenly spaced levels gets the grid of another channel that contains its values. A silent channel
    stays silent.

    Args:
        recording: as `scan` returns it.
        bits: the bits of a quantizer on [-1, 1]; if None, the grids are inferred from the values.

    Raises:
        InputError: asking for --bits where a channel has no grid.
    """
    if bits is not None:
        return [mid_rise(bits)] * recording.channels
    held = [np.array(sorted(values or {})) for values in recording.values]
    found: list[Grid | None] = []
    for values, counts in zip(held, recording.values, strict=True):
        weights = np.array([counts[value] for value in values.tolist()] if counts else [])
        found.append(infer_grid(values, weights, _rounding(recording, values)))
    known = [grid for grid in found if grid is not None]
    for channel, values in enumerate(held):
        if found[channel] is not None:
            continue
        if values.tolist() == [0.0] and known:
            found[channel] = replace(known[0], kind="silent", lowest=0.0, count=1, shift=0.0)
            continue
        fitting = (grid for grid in known if len(values) and grid.holds(values, _rounding(recording, values)))
        if (grid := next(fitting, None)) is None:
            count = len(values) or f"more than {MAX_LEVELS}"
            raise InputError(
                f"{recording.path}: channel {channel + 1} has no evenly spaced levels of 12 bits or less ({count} "
                "different values); give --bits N if it was quantized to N bits on [-1, 1]"
            )
        found[channel] = grid
    return [grid for grid in found if grid is not None]


def _rounding(recording: Recording, values: NDArray) -> float:
    """Return the largest error of these levels due to their storage format, which grows with a peak above 1."""
    return recording.unit * float(np.abs(values).max(initial=1.0))


def require_same_shape(reference: Recording, recording: Recording) -> None:
    """Raise `InputError` if two recordings cannot be compared sample by sample."""
    if reference.shape != recording.shape:
        raise InputError(
            f"--reference {reference.path} has {reference.shape}, but {recording.path} {recording.shape}; "
            "give the recording it was made from"
        )


def require_storable(grids: list[Grid], output: Path) -> None:
    """Raise `InputError` if the format of `output` cannot represent any value of an outermost cell."""
    for grid in grids if output.suffix.lower() == ".flac" else []:
        lowest = grid.lowest + grid.shift  # middle of a cell, in steps
        if grid.step * (lowest + 0.5) < -1.0 or grid.step * (lowest + grid.count - 1.5) > 1.0 - 2.0**-23:
            raise InputError(f"{output} cannot hold the cells beyond full scale; give an output named .wav")


def storable(samples: NDArray, grids: list[Grid], restored: NDArray, subtype: str) -> NDArray:
    """Return the values of the output format that are nearest to `restored` and in the cells of `samples`.

    Args:
        samples: the samples of the recording, (N, channels).
        grids: the grid of each channel.
        restored: the restored samples, (N, channels).
        subtype: one of `SUBTYPES`.

    Returns:
        Samples that soundfile writes in this subtype without a change, (N, channels).
    """
    centre = np.stack([grid.centres(column) for grid, column in zip(grids, samples.T, strict=True)], axis=1)
    radius = np.array([grid.radius for grid in grids])
    lower, upper = np.minimum(centre - radius, samples), np.maximum(centre + radius, samples)  # a border may be rounded
    if subtype == "PCM_24":
        codes = np.rint(restored * 2.0**23).clip(np.ceil(lower * 2.0**23), np.floor(upper * 2.0**23))
        return codes.clip(-(2**23), 2**23 - 1).astype(np.int32) << 8
    numbers = restored.astype(np.float32)
    numbers = np.where(numbers > upper, np.nextafter(numbers, np.float32(-np.inf)), numbers)
    return np.where(numbers < lower, np.nextafter(numbers, np.float32(np.inf)), numbers)


@contextmanager
def writing(path: Path, suffix: str, rate: int, channels: int) -> Iterator[SoundFile]:
    """Open `path` for writing in the format of a suffix; the same samples always give the same bytes."""
    import soundfile

    with soundfile.SoundFile(file_name(path), "w", rate, channels, SUBTYPES[suffix], format=suffix[1:].upper()) as file:
        yield file
    if suffix == ".wav":  # libsndfile writes the time of day into its PEAK chunk, after its name, size and version
        with path.open("r+b") as header:
            peaks = header.read(256).find(b"PEAK")
            if peaks > 0:
                header.seek(peaks + 12)
                header.write(bytes(4))


class Distortion:
    """The signal-to-distortion ratio of a signal that comes in blocks, over all channels.

    Args:
        channels: the number of channels.

    Examples:
        >>> import numpy as np
        >>> from pdunroll.restore.recordings import Distortion
        >>> score = Distortion(channels=1)
        >>> score.add(np.array([[1.0], [-1.0]]), np.array([[0.9], [-0.9]]))
        >>> round(score.sdr(), 6), round(score.scale_invariant_sdr(), 6)
        (20.0, 200.0)
    """

    def __init__(self, channels: int) -> None:
        # the energies of truth, estimate and their difference, and the inner product of truth and estimate
        self.truth, self.estimate, self.error, self.product = np.zeros((4, channels))

    def add(self, truth: NDArray, estimate: NDArray) -> None:
        """Add one block of the truth and the estimate, (N, channels) each."""
        self.truth += (truth**2).sum(axis=0)
        self.estimate += (estimate**2).sum(axis=0)
        self.error += ((truth - estimate) ** 2).sum(axis=0)
        self.product += (truth * estimate).sum(axis=0)

    def sdr(self) -> float:
        """Return 10 log10 of ||truth||^2 / ||truth - estimate||^2, the SNR of the estimate, in dB."""
        return decibels(self.truth.sum(), self.error.sum())

    def scale_invariant_sdr(self) -> float:
        """Return the SDR with each channel of the truth scaled to fit best, in dB (Le Roux et al. 2019)."""
        target = self.product**2 / np.where(self.truth > 0.0, self.truth, 1.0)
        return decibels(target.sum(), (self.estimate - target).sum())


def decibels(signal: float, distortion: float) -> float:
    """Return the ratio of two energies in dB, at most 200."""
    return 10.0 * math.log10(max(signal, 1e-300) / max(distortion, 1e-20 * signal, 1e-300))
