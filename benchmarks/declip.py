"""Fit the operator of `restore --declip`, and compare it with others and with ffmpeg's adeclip on the same files.

    python benchmarks/declip.py fit outputs/declip/prepared src/pdunroll/restore/declip.npz
    python benchmarks/declip.py measure FOLDER docs/declip.csv --ffmpeg FFMPEG

`fit` reads the training frames of `experiment=declip data=ieee`. `measure` clips the recordings in a folder, at three
levels relative to their peaks, and writes the SDR of each restoration. (`pip install imageio-ffmpeg` brings an ffmpeg.)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

import pdunroll
from pdunroll.files import write_table
from pdunroll.restore import operator_file as operators
from pdunroll.restore.declip import DECLIP, declip_file
from pdunroll.restore.recordings import decibels
from pdunroll.speech.frames import load, read_manifest
from pdunroll.training.run_folder import environment

LEVELS = 0.1, 0.2, 0.4  # relative to the peak
FLOOR = 0.005  # of the largest mean amplitude; chosen on validation sentences, with the time that smaller ones take
SCALE = 0.5  # of full scale: where the files are clipped
EVERY = 9  # of the recordings, one is restored


def fit(prepared: Path, path: Path) -> None:
    """Write the DCT with each row divided by the mean amplitude of its coefficient in clipped frames, plus a floor."""
    manifest, frames = read_manifest(prepared), load(prepared, "train")
    settings = manifest["settings"]
    clipped = frames.truth[(np.abs(frames.observation) >= np.float32(settings["level"])).any(axis=1)]
    n = settings["frame_length"]
    transform = pdunroll.dct_operator(n, n, torch.float64).numpy()
    mean = np.abs(clipped @ transform.T).mean(axis=0)
    matrix = transform / (mean + FLOOR * mean.max())[:, None]
    provenance = {
        "command": f"python benchmarks/declip.py fit {prepared} {path}", "commit": environment()["commit"],
        "data": f"ieee, sha256 {manifest['digest']}", "bits": settings["bits"], "sample_rate": settings["sample_rate"],
    }  # fmt: skip
    operators.save(path, operators.Operator(matrix / np.linalg.norm(matrix, 2), provenance))
    print(f"{path}: {len(clipped)} frames")


def measure(folder: Path, path: Path, ffmpeg: Path | None, trained: Path | None) -> None:
    """Write a table of the mean SDR by each restoration, and print it."""
    found: dict[tuple[str, float], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        np.save(work / "dct.npy", pdunroll.dct_operator(320, 320).numpy())
        files = {"DCT": work / "dct.npy", "operator.npz": operators.SHIPPED, "declip.npz": DECLIP}
        files |= {"trained": trained} if trained else {}
        for recording in sorted(folder.glob("*.wav"))[::EVERY]:
            samples, rate = soundfile.read(recording)
            for level in LEVELS:
                truth = samples / np.abs(samples).max() * SCALE / level
                for restoration, value in scores(truth, rate, work, files, ffmpeg).items():
                    found.setdefault((restoration, level), []).append(value)
    rows = [
        {"restoration": restoration, "level": level, "sdr_db": float(np.mean(values)), "sentences": len(values)}
        for (restoration, level), values in found.items()
    ]
    write_table(path, rows)
    for row in rows:
        print(f"{row['restoration']:<12}{row['level']:>6}{row['sdr_db']:>9.2f} dB")


def scores(truth: NDArray, rate: int, work: Path, files: dict[str, Path], ffmpeg: Path | None) -> dict[str, float]:
    """Return the SDR of one clipped recording and of its restorations by the operators in some files, in dB."""
    clipped, restored = work / "clipped.wav", work / "restored.wav"
    soundfile.write(clipped, truth.clip(-SCALE, SCALE), rate, subtype="PCM_16")
    found = {"clipped": sdr(truth, clipped)}
    for name, operator in files.items():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            declip_file(clipped, restored, operator=operator)
        found[name] = sdr(truth, restored)
    if ffmpeg is not None:
        options: Any = ["-v", "error", "-y", "-i", clipped, "-af", "adeclip", "-c:a", "pcm_f32le", restored]
        subprocess.run([ffmpeg, *options], check=True)
        found["adeclip"] = sdr(truth, restored)
    return found


def sdr(truth: NDArray, path: Path) -> float:
    """Return the signal-to-distortion ratio of a file, in dB; a filter may have lost its last samples."""
    restored = soundfile.read(path)[0]
    clean = truth[: len(restored)]
    return decibels(float((clean**2).sum()), float(((clean - restored) ** 2).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fitting, measuring = commands.add_parser("fit"), commands.add_parser("measure")
    fitting.add_argument("prepared", type=Path)
    measuring.add_argument("folder", type=Path)
    for each in (fitting, measuring):
        each.add_argument("path", type=Path)
    measuring.add_argument("--ffmpeg", type=Path, help="an ffmpeg binary, to compare with its adeclip")
    measuring.add_argument("--trained", type=Path, metavar="FILE", help="an operator.npy of experiment=declip, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "fit":
        fit(given.prepared, given.path)
    else:
        measure(given.folder, given.path, given.ffmpeg, given.trained)


if __name__ == "__main__":
    main()
