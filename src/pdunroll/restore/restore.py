"""Restore a recording of low bit depth, as `python -m pdunroll restore in.wav out.wav` does.

Every channel is cut into frames of n samples, and every frame becomes the certified optimum of

    argmin_y ||K y||_1   subject to   y in the quantization cells of the recording

with the learned operator K (m, n). The decisions and their reasons:

- A recording is processed at its own rate. Resampling would mix samples and lose their cells, which are all that is
  known for certain. At rates other than the operator's, a frame has another duration than those of the training.
- The cells are inferred from the values in the file, for each channel (`pdunroll.restore.grid`). With --bits N they are
  those of `pdunroll.quantize` instead.
- The optimum scales with the cells, so one operator serves all bit depths and volumes. Frames are solved in units in
  which a cell is as wide as at 4 bits, so that rounding errors do not depend on the volume. The gain does depend on the
  bit depth: on eight IEEE test sentences SDR rose by 7.6, 6.4, 4.7, 2.5, 0.1 dB at 2, 3, 4, 5, 6 bits and fell by
  3.3 dB at 8. A note says so where a recording has many levels.
- A short last frame is filled with the samples before it, whose results are dropped, so that all its samples are true
  ones in true cells. A recording shorter than a frame is mirrored at its start, as the DCT continues its frames.
- The output format must have numbers in the cells: 32-bit float (.wav) or 24 bit (.flac).
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pdunroll.core.solve import solve
from pdunroll.errors import InputError, require_integer
from pdunroll.files import atomic
from pdunroll.processes import printable
from pdunroll.restore import operator_file, recordings
from pdunroll.restore.grid import Grid
from pdunroll.restore.recordings import Distortion, Recording

BLOCK = 128  # frames that are solved together
TOLERANCE = 1e-6  # relative duality gap
FEW_LEVELS = 64  # those of 6 bits; with more, nothing is gained on speech
RADIUS = 1 / 16  # half a cell, in the units in which frames are solved

Score = tuple[str, float, float]  # a measure, its value for the input and for the result in dB


def restore_file(
    path: Path, output: Path, *, operator: Path | None = None, bits: int | None = None, reference: Path | None = None
) -> None:
    """Restore a recording and print a summary.

    Args:
        path: the recording, in any format that libsndfile reads.
        output: the result, a .wav (32-bit float) or .flac (24 bit) in an existing folder.
        operator: an operator file, or the operator.npy of a training; by default the one that comes with the package.
        bits: take the cells of `pdunroll.quantize` with this number of bits, 1 to 16, instead of inferring them.
        reference: the recording before quantization, to print the SDR against it.

    Raises:
        InputError: naming the file or option at fault.
    """
    torch.set_num_threads(1)  # for matrices as small as these, several threads only wait for each other
    if bits is not None:
        require_integer("--bits", bits, 1, 16)
    check_output(output, (path, operator, reference), tuple(recordings.SUBTYPES))
    K, provenance = operator_file.load(operator or operator_file.SHIPPED)
    recording = recordings.scan(path)
    grids = recordings.cells(recording, bits)
    recordings.require_storable(grids, output)
    truth = None
    if reference is not None:
        truth = recordings.scan(reference)
        recordings.require_same_shape(truth, recording)
    print_cells(recording, grids)
    print(f"operator: {operator or 'of pdunroll'}, {K.shape[0]} x {K.shape[1]}, {origin(provenance, recording.rate)}")
    start = time.perf_counter()
    gaps, scores = write(recording, output, K, grids, truth)
    seconds = (time.perf_counter() - start) * recording.rate / recording.samples
    certified = sum(gap <= TOLERANCE for gap in gaps)
    print(
        f"{certified} of {len(gaps)} frames certified to a relative duality gap of {TOLERANCE:g} "
        f"(largest gap {max(gaps):.1e}), {seconds:.2f} s for a second of audio"
    )
    for measure, before, after in scores:
        print(f"{measure:<6}  input {before:6.2f} dB, restored {after:6.2f} dB, gain {after - before:+.2f} dB")
    print(output)


def print_cells(recording: Recording, grids: list[Grid]) -> None:
    """Print the shape of a recording, the grid of each channel, and notes where little is to be expected."""
    print(f"{recording.path}: {recording.shape}, {recording.samples / recording.rate:.2f} s")
    for number, grid in enumerate(grids, start=1):
        print(f"channel {number}: {grid}")
    if max(grid.count for grid in grids) > FEW_LEVELS:
        print(f"note: with more than {FEW_LEVELS} levels the result may be further from the truth than the recording")
    for number, grid in enumerate(grids, start=1):
        if grid.kind != "silent" and grid.zero_is_everywhere:
            print(f"note: every cell of channel {number} holds 0, the sparsest signal: it comes out as silence")


def check_output(output: Path, inputs: tuple[Path | None, ...], suffixes: tuple[str, ...]) -> None:
    """Raise `InputError` unless `output` can become a file with one of the suffixes that is none of the inputs."""
    if output.suffix.lower() not in suffixes:
        raise InputError(f"{output} must be named {' or '.join(suffixes)}; these keep every sample in its cell")
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(f"{output} must be a file in an existing folder")
    if any(path is not None and os.path.realpath(output) == os.path.realpath(path) for path in inputs):
        raise InputError(f"{output} is an input, too; give the output another name")


def origin(provenance: dict[str, Any], rate: int) -> str:
    """Return a description of an operator's training, with a caution at rates other than that of its training."""
    if not {"data", "bits", "sample_rate"} <= set(provenance):
        return "of unknown origin"
    learned = provenance["sample_rate"]
    caution = "" if rate == learned else f" (at {rate} Hz its frames have another duration)"
    return f"trained on {str(provenance['data']).split(',')[0]} at {provenance['bits']} bits and {learned} Hz{caution}"


def write(
    recording: Recording, output: Path, K: NDArray, grids: list[Grid], truth: Recording | None
) -> tuple[list[float], list[Score]]:
    """Restore a recording block by block.

    Args:
        recording: the recording.
        output: the file to write.
        K: the operator, (m, n).
        grids: that of each channel.
        truth: the recording before quantization.

    Returns:
        The relative duality gap of each frame and, given the truth, the scores.

    Raises:
        InputError: if the output cannot be written.
    """
    n, channels = K.shape[1], recording.channels
    size = n * max(1, BLOCK // channels)
    gaps: list[float] = []
    quantized, restored = Distortion(channels), Distortion(channels)
    truths = None if truth is None else truth.blocks(size)
    before = np.empty((0, channels))
    try:
        with (
            atomic(output) as temporary,
            recordings.writing(temporary, output.suffix.lower(), recording.rate, channels) as file,
            tqdm(total=channels * -(-recording.samples // n), unit="frame", desc=printable(output.name)) as bar,
        ):
            for samples in recording.blocks(size):
                result, found = restore(K, before, samples, grids)
                file.write(recordings.storable(samples, grids, result, file.subtype))
                before = samples[-n:]
                gaps += found
                bar.update(len(found))
                if truths is not None:
                    clean = next(truths)
                    quantized.add(clean, samples)
                    restored.add(clean, result)
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"{output} cannot be written ({error}); give another output") from None
    if truths is None:
        return gaps, []
    return gaps, [
        ("SDR", quantized.sdr(), restored.sdr()),
        ("SI-SDR", quantized.scale_invariant_sdr(), restored.scale_invariant_sdr()),
    ]


def restore(K: NDArray, before: NDArray, samples: NDArray, grids: list[Grid]) -> tuple[NDArray, list[float]]:
    """Restore one block of samples to the optima of its frames.

    Args:
        K: the operator, (m, n).
        before: the n samples before the block, or none, (n or 0, channels); they fill a short last frame.
        samples: the block, (N, channels).
        grids: that of each channel.

    Returns:
        The restored samples, (N, channels), and the relative duality gap of each frame.
    """
    n, (N, channels) = K.shape[1], samples.shape
    units = np.array([grid.radius / RADIUS for grid in grids])  # in which frames are solved; middle cells stay exact
    joined = np.concatenate((before, samples))
    x = 2.0 * RADIUS * np.stack([grid.middles(column) for grid, column in zip(grids, joined.T, strict=True)], axis=1)
    whole, rest = divmod(N, n)
    frames = x[len(before) : len(before) + whole * n].reshape(whole, n, channels)
    if rest:
        last = x[-n:]
        last = np.pad(last, ((n - len(last), 0), (0, 0)), mode="symmetric")
        frames = np.concatenate((frames, last[None]))
    observation = torch.from_numpy(frames.transpose(0, 2, 1).reshape(-1, n))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* frames are not certified")  # the summary counts them
        found = solve(torch.from_numpy(K), observation, radius=RADIUS, tolerance=TOLERANCE)
    y = found.primal.numpy().reshape(-1, channels, n).transpose(0, 2, 1)
    result = np.concatenate((y[:whole].reshape(-1, channels), y[whole:, n - rest :].reshape(-1, channels)))
    return result * units, found.gap.tolist()
