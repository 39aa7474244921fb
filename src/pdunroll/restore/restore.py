"""Restore a recording of low bit depth, as `python -m pdunroll restore in.wav out.wav` does.

Every channel is cut into overlapping frames of n samples, and the results of the frames are averaged
(`pdunroll.speech.overlap`). For accuracy, every frame becomes a certified optimum of

    argmin_y ||K y||_1   subject to   y in the quantization cells of the recording

with the learned operator K (m, n), and the mean is moved towards the middles of the cells, for the highest SDR. For
listening, it is the result of a few iterations towards that optimum, where PESQ is highest. The design decisions and
their reasons:

- A recording is processed at its own rate. Resampling would mix samples and lose their cells, which are all that is
  known for certain. At rates other than the operator's, a frame has another duration than in training.
- The cells are inferred from the values in the file, for each channel (`pdunroll.restore.grid`). With --bits N they are
  those of `pdunroll.quantize` instead.
- The optimum scales with the cells, so that the volume does not matter. Frames are solved in units in which a cell is
  as wide as at 4 bits, so that rounding errors do not depend on it either. Operator and weight depend on the number of
  cells (`pdunroll.restore.depths`); a recording of more than 8 bits is passed through unchanged.
- A short last frame is filled with the samples before it, whose results are dropped, so that it has recorded samples
  only. A recording shorter than a frame is mirrored at its start, as the DCT continues its frames.
- The output format must have values in the cells: 32-bit float (.wav) or 24 bit (.flac).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pdunroll.errors import InputError, require_integer, require_positive, require_within
from pdunroll.files import atomic
from pdunroll.processes import printable
from pdunroll.restore import depths, operator_file, recordings
from pdunroll.restore.grid import Grid
from pdunroll.restore.recordings import Distortion, Recording
from pdunroll.restore.solvers import ITERATIONS, RADIUS, TOLERANCE, Solver, for_accuracy, for_listening
from pdunroll.speech.overlap import averaged, frame_count

BLOCK = 128  # frames that are solved together
SHIFTS = 8  # shifted grids of frames; 16 gain less than 0.1 dB more for twice the time (docs/restore.md)

Score = tuple[str, float, float]  # name of a measure, its values for input and result in dB


def restore_file(
    path: Path,
    output: Path,
    *,
    operator: Path | None = None,
    bits: int | None = None,
    reference: Path | None = None,
    listening: bool = False,
    shifts: int | None = None,
    tolerance: float | None = None,
    weight: float | None = None,
) -> None:
    """Restore a recording and print a summary.

    Args:
        path: the recording, in any format that libsndfile reads.
        output: the result, a .wav (32-bit float) or .flac (24 bit) in an existing folder.
        operator: an operator file, or the operator.npy of a training; by default `pdunroll.restore.depths` chooses one
            that comes with the package, or passes the recording through.
        bits: take the cells of `pdunroll.quantize` with this number of bits, 1 to 16, instead of inferring them.
        reference: the recording before quantization, to print the SDR against it.
        listening: run a few iterations only, for the highest PESQ, instead of solving to the optimum.
        shifts: the number of grids of frames to average over, 1 to n; by default `SHIFTS`.
        tolerance: the relative duality gap of each frame, > 0; by default `TOLERANCE`.
        weight: from 0, the middles of the cells, to 1, the mean of the frames; by default that of the recording's bit
            depth, and 1 for listening. With an operator or a weight, no recording is passed through.

    Raises:
        InputError: naming the invalid file or option.
    """
    torch.set_num_threads(1)  # several threads are no faster for matrices as small as these
    if bits is not None:
        require_integer("--bits", bits, 1, 16)
    if tolerance is not None:
        require_positive("--tolerance", tolerance)
        if listening:
            raise InputError("--tolerance needs --for accuracy; for listening, frames are not solved to the optimum")
    if weight is not None:
        require_within("--weight", weight, 0, 1)
    check_output(output, (path, operator, reference), tuple(recordings.SUBTYPES))
    given = None if operator is None else operator_file.load(operator)
    recording = recordings.scan(path)
    grids = recordings.cells(recording, bits)
    choice = depths.choose(grids)
    K, provenance = given or operator_file.load(operator_file.LISTENING if listening else choice.operator)
    unchanged = operator is None and weight is None and not choice.gains
    weight = (1.0 if listening else choice.weight) if weight is None else weight
    shifts = min(SHIFTS, K.shape[1]) if shifts is None else require_integer("--shifts", shifts, 1, K.shape[1])
    recordings.require_storable(grids, output)
    truth = None
    if reference is not None:
        truth = recordings.scan(reference)
        recordings.require_same_shape(truth, recording)
    print_cells(recording, grids)
    if unchanged:
        print(f"passed through unchanged: with {choice.bits} bits, restored speech is less than 1 dB better")
        _, scores = write(recording, output, None, grids, truth, n=K.shape[1], shifts=1)
        print_result(output, scores)
        return
    print(f"operator: {operator or 'of pdunroll'}, {K.shape[0]} x {K.shape[1]}, {origin(provenance, recording.rate)}")
    print(f"weight: {weight:g} (the recording counts as one of {choice.bits} bits)")
    matrix, tolerance = torch.from_numpy(K), tolerance or TOLERANCE
    solver = for_listening(matrix) if listening else for_accuracy(matrix, tolerance)
    start = time.perf_counter()
    gaps, scores = write(recording, output, solver, grids, truth, n=K.shape[1], shifts=shifts, weight=weight)
    seconds = (time.perf_counter() - start) * recording.rate / recording.samples
    print(f"{outcome(gaps, None if listening else tolerance)}, {seconds:.2f} s for a second of audio")
    print_result(output, scores)


def print_result(output: Path, scores: list[Score]) -> None:
    """Print the scores, and the name of the output as the last line."""
    for measure, before, after in scores:
        print(f"{measure:<6}  input {before:6.2f} dB, restored {after:6.2f} dB, gain {after - before:+.2f} dB")
    print(output)


def outcome(gaps: list[float], tolerance: float | None) -> str:
    """Return how many frames are certified to a tolerance, or with None how many were restored for listening."""
    if tolerance is None:
        gap = f"median gap {np.median(gaps):.1e}, not certified"
        return f"{ITERATIONS} iterations for each of {len(gaps)} frames, for listening ({gap})"
    certified = f"{sum(gap <= tolerance for gap in gaps)} of {len(gaps)} frames certified"
    return f"{certified} to a relative duality gap of {tolerance:g} (largest gap {max(gaps):.1e})"


def print_cells(recording: Recording, grids: list[Grid]) -> None:
    """Print the shape of a recording, the grid of each channel, and notes if little gain is to be expected."""
    print(f"{recording.path}: {recording.shape}, {recording.samples / recording.rate:.2f} s")
    for number, grid in enumerate(grids, start=1):
        print(f"channel {number}: {grid}")
    for number, grid in enumerate(grids, start=1):
        if grid.kind != "silent" and grid.zero_is_everywhere:
            print(f"note: every cell of channel {number} contains 0, so that its optimum is silence")


def check_output(output: Path, inputs: tuple[Path | None, ...], suffixes: tuple[str, ...]) -> None:
    """Raise `InputError` unless `output` can become a file with one of the suffixes that is none of the inputs."""
    if output.suffix.lower() not in suffixes:
        raise InputError(f"{output} must be named {' or '.join(suffixes)}; these keep every sample in its cell")
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(f"{output} must be a file in an existing folder")
    if any(path is not None and os.path.realpath(output) == os.path.realpath(path) for path in inputs):
        raise InputError(f"{output} is also an input; give the output another name")


def origin(provenance: dict[str, Any], rate: int) -> str:
    """Return a description of an operator's training, with a caution at rates other than that of its training."""
    if not {"data", "bits", "sample_rate"} <= set(provenance):
        return "of unknown origin"
    learned = provenance["sample_rate"]
    caution = "" if rate == learned else f" (at {rate} Hz its frames have another duration)"
    return f"trained on {str(provenance['data']).split(',')[0]} at {provenance['bits']} bits and {learned} Hz{caution}"


def write(
    recording: Recording,
    output: Path,
    solver: Solver | None,
    grids: list[Grid],
    truth: Recording | None,
    *,
    n: int,
    shifts: int,
    weight: float = 1.0,
) -> tuple[list[float], list[Score]]:
    """Restore a recording block by block.

    Args:
        recording: the recording.
        output: the file to write.
        solver: restores frames; None passes the samples through.
        grids: the grid of each channel.
        truth: the recording before quantization.
        n: samples in a frame.
        shifts: the number of grids of frames to average over.
        weight: of the restored samples against the middles of their cells.

    Returns:
        The relative duality gap of each frame and, if the truth is given, the scores.

    Raises:
        InputError: if the output cannot be written.
    """
    channels = recording.channels
    size = n // shifts * max(1, BLOCK // channels)
    gaps: list[float] = []
    quantized, restored = Distortion(channels), Distortion(channels)
    blocks = recording.blocks(size)
    if truth is not None:  # as further channels, which are not restored
        blocks = (np.concatenate(both, axis=1) for both in zip(blocks, truth.blocks(size), strict=True))
    frames = channels * frame_count(recording.samples, n, shifts)
    try:
        with (
            atomic(output) as temporary,
            recordings.writing(temporary, output.suffix.lower(), recording.rate, channels) as file,
            tqdm(total=frames, unit="frame", desc=printable(output.name), disable=solver is None) as bar,
        ):

            def restored_frames(block: NDArray) -> NDArray:
                assert solver is not None
                result, found = restore(solver, block[:, :channels], grids, weight)
                gaps.extend(found)
                bar.update(len(found))
                return result

            results = averaged(blocks, n, shifts, restored_frames) if solver else ((block, block) for block in blocks)
            for samples, result in results:
                samples, clean, result = samples[:, :channels], samples[:, channels:], result[:, :channels]
                file.write(recordings.storable(samples, grids, result, file.subtype))
                if truth is not None:
                    quantized.add(clean, samples)
                    restored.add(clean, result)
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"{output} cannot be written ({error}); give another output") from None
    if truth is None:
        return gaps, []
    return gaps, [
        ("SDR", quantized.sdr(), restored.sdr()),
        ("SI-SDR", quantized.scale_invariant_sdr(), restored.scale_invariant_sdr()),
    ]


def restore(solver: Solver, frames: NDArray, grids: list[Grid], weight: float = 1.0) -> tuple[NDArray, list[float]]:
    """Restore frames in units of their cells and weight them against the middles of the cells.

    Args:
        solver: restores frames in these units.
        frames: samples, (B, channels, n).
        grids: the grid of each channel.
        weight: from 0, the middles of the cells, to 1, the frames that the solver returns.

    Returns:
        The frames, (B, channels, n), and the relative duality gaps of the solver.
    """
    units = np.array([grid.radius / RADIUS for grid in grids])  # of frames; keeps middle cells exact
    x = 2.0 * RADIUS * np.stack([grid.middles(frames[:, number]) for number, grid in enumerate(grids)], axis=1)
    found = solver(torch.from_numpy(x.reshape(-1, x.shape[2])))
    y = x + weight * (found.frames.numpy().reshape(x.shape) - x)
    return y * units[:, None], found.gap.tolist()
