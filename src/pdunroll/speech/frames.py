"""From recordings to the dataset: peak normalisation, frames, degradation, and their storage on disk.

A prepared folder holds manifest.json and one npz for each split. The npz has the samples as recorded (int16 where the
source has them), each file's peak and the codes of the degraded samples (`pdunroll.speech.degradation`). They give y
and x exactly: y = samples / peak in float64, and x is the centre of the cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pdunroll.errors import InputError, require_integer
from pdunroll.files import digest, read_json, replaced, write_json
from pdunroll.processes import command
from pdunroll.speech import quantizer
from pdunroll.speech.degradation import Degradation, Observed
from pdunroll.speech.sources import SAMPLE_RATE, SPLITS, Recording

if TYPE_CHECKING:
    from pdunroll.core.problem import Box

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Frames:
    """The frames of one split.

    Attributes:
        truth: y, (frames, n), of files scaled to peak 1.
        observation: x, (frames, n).
        file: the index of each frame's file in the manifest, (frames,).
        bounds: the bounds of the true samples, (frames, n) each; None if they are x - radius and x + radius.
        radius: half a quantization step; None if `bounds` are given.
    """

    truth: NDArray[np.float32]
    observation: NDArray[np.float32]
    file: NDArray[np.int64]
    bounds: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    radius: float | None = None

    def box(self, numbers: NDArray) -> Box:
        """Return the box of the frames with these indices."""
        import torch

        from pdunroll.core.problem import Box

        x = torch.from_numpy(self.observation[numbers])
        if self.bounds is None:
            return Box.around(x, self.radius or 0.0)
        lower, upper = (torch.from_numpy(bound[numbers]) for bound in self.bounds)
        return Box.between(lower, upper, x)


def prepare(
    recordings: Iterable[Recording], folder: Path, *, frame_length: int, bits: int, level: float | None = None,
    missing: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Cut recordings into frames, degrade and store them.

    Args:
        recordings: of all three splits.
        folder: the prepared folder; it is replaced if an earlier call has written it.
        frame_length: n in samples, >= 1; the remainder at a file's end is dropped.
        bits: bits of the quantizer, 1 to 32.
        level: the clipping level as a share of the file's peak; None for no clipping.
        missing: the share of missing samples.

    Returns:
        The manifest: the settings, statistics and files of each split, and a digest of all these.

    Raises:
        InputError: if a recording is silent, shorter than a frame or in two splits, or if `folder` holds files that
            no earlier call has written.
    """
    require_integer("data.frame_length", frame_length, 1)
    degradation = Degradation(bits, level, missing)
    with replaced(folder, "prepared", prepared_files) as partial:
        return _store(_cut(recordings, frame_length, degradation), partial, frame_length, degradation)


def prepared_files(folder: Path) -> set[str]:
    """Return the names of the files that `prepare` has written to a folder; none if it has no manifest."""
    try:
        splits = read_manifest(folder)["splits"]
    except InputError:
        return set()
    return {MANIFEST, *(f"{split}.npz" for split in splits)}


Splits = dict[str, list[tuple[dict[str, Any], NDArray, NDArray]]]  # for each file: manifest entry, samples, codes


def _cut(recordings: Iterable[Recording], frame_length: int, degradation: Degradation) -> Splits:
    """Return the frames of each recording and the codes of their degraded samples, by split."""
    splits: Splits = {split: [] for split in SPLITS}
    seen: dict[str, Recording] = {}
    for recording in recordings:
        samples = recording.samples
        if len(samples) < frame_length:
            raise InputError(
                f"{recording.name} has {len(samples)} samples, fewer than one frame of {frame_length}; remove it"
            )
        peak = float(np.abs(samples.astype(np.float64)).max())
        if peak == 0.0:
            raise InputError(f"{recording.name} is silent; remove it")
        content = hashlib.sha256(samples.tobytes()).hexdigest()
        twin = seen.setdefault(content, recording)
        if twin.split != recording.split:
            raise InputError(
                f"{recording.name} ({recording.split}) and {twin.name} ({twin.split}) are the same recording; "
                "remove one, or the splits leak"
            )
        count = len(samples) // frame_length
        frames = samples[: count * frame_length].reshape(count, frame_length)
        codes = degradation.encode(frames / np.float64(peak), seed=int(content[:16], 16))
        entry = {"name": recording.name, "sha256": content, "samples": len(samples), "peak": peak, "frames": count}
        splits[recording.split].append((entry, frames, codes))
    for split, files in splits.items():
        if not files:
            raise InputError(f"the data source gave no recordings for {split}; each split needs at least one")
    return splits


def _store(splits: Splits, folder: Path, frame_length: int, degradation: Degradation) -> dict[str, Any]:
    """Write one npz for each split and the manifest; return the manifest."""
    settings = {"frame_length": frame_length, "bits": degradation.bits, "sample_rate": SAMPLE_RATE}
    settings |= degradation.beyond_quantization
    manifest: dict[str, Any] = {"settings": settings, "splits": {}}
    for split, files in splits.items():
        entries, frames, codes = zip(*files, strict=True)
        arrays = {
            "samples": np.concatenate(frames),
            "codes": np.concatenate(codes),
            "file_number": np.repeat(np.arange(len(entries)), [entry["frames"] for entry in entries]).astype(np.uint32),
            "peak": np.array([entry["peak"] for entry in entries]),
        }
        path = folder / f"{split}.npz"
        np.savez(path, **arrays)
        manifest["splits"][split] = {
            **_statistics(*_decoded(arrays, degradation)),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "files": list(entries),
        }
    manifest["digest"] = digest(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder.

    Raises:
        InputError: if it is missing or damaged, with the command that makes one.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder / MANIFEST} is missing; run `{command('prepare')}` first")
    manifest = read_json(folder / MANIFEST, ("settings", "splits", "digest"))
    try:
        parts = [(manifest["settings"], ("frame_length", "bits", "sample_rate"))]
        parts += [(manifest["splits"][split], ("frames", "sha256", "files")) for split in SPLITS]
        _ = [part[key] for part, keys in parts for key in keys]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged ({error}); run `{command('prepare')}` again") from None
    return manifest


def load(folder: Path, split: str) -> Frames:
    """Return the frames of one split of a prepared folder.

    Raises:
        InputError: if the folder is damaged or does not match its manifest.
    """
    manifest = read_manifest(folder)
    path = folder / f"{split}.npz"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != manifest["splits"][split]["sha256"]:
        raise InputError(f"{path} is missing or damaged; run `{command('prepare')}` again")
    degradation = Degradation.of(manifest["settings"])
    with np.load(path) as arrays:
        truth, observed = _decoded(arrays, degradation)
        observation, lower, upper = (part.astype(np.float32) for part in observed)
        file = arrays["file_number"].astype(np.int64)
    if degradation.beyond_quantization:
        return Frames(truth.astype(np.float32), observation, file, bounds=(lower, upper))
    return Frames(truth.astype(np.float32), observation, file, radius=quantizer.radius(degradation.bits))


def _decoded(arrays: Any, degradation: Degradation) -> tuple[NDArray[np.float64], Observed]:
    """Return y, (frames, n), and its observation and bounds, in float64."""
    truth = arrays["samples"] / arrays["peak"][arrays["file_number"], None]
    return truth, degradation.decode(arrays["codes"])


def _statistics(truth: NDArray, observed: Observed) -> dict[str, Any]:
    observation, lower, upper = observed
    mse = float(np.mean((truth - observation) ** 2))
    return {
        "frames": len(truth),
        "quantized_mse": mse,
        "quantized_snr_db": float(10 * np.log10(np.mean(truth**2) / mse)),
        # frames where 0 is feasible and therefore optimal: all samples in the two middle cells
        "trivial_share": float(np.mean(((lower <= 0) & (upper >= 0)).all(axis=1))),
    }
