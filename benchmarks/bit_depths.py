"""Operators and weights for each bit depth: trained, compared on development sentences, measured on test sentences.

    python benchmarks/bit_depths.py train --root FOLDER
    python benchmarks/bit_depths.py compare outputs/depths/prepared6 docs/bit_depths_development.csv
    python benchmarks/bit_depths.py measure outputs/depths/prepared6 docs/bit_depths.csv
    python benchmarks/bit_depths.py others FOLDER docs/bit_depths_others.csv

`train` trains operators at some depths (experiment=depths) and writes them to outputs/depths/BITS.npz. `compare`
restores twelve development sentences, as `restore` does for accuracy, by those operators and the one that was trained
at 4 bits, and writes the mean gain in dB at each weight; `pdunroll.restore.depths` has the best. `measure` restores all
test sentences, with the weights there and with weight 1, and writes mean SDR and gain with their 95% intervals over the
sentences; `others` does it for the wav files in each folder of a folder, scaled to peak 1. Any folder that `prepare`
wrote of the corpus serves, since the sentences are quantized here.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from restorations import interval, overlapping, sentences

import pdunroll
from pdunroll.files import read_table, write_table
from pdunroll.restore import operator_file as operators
from pdunroll.restore.depths import CHOICES
from pdunroll.restore.solvers import for_accuracy
from pdunroll.speech.frames import read_manifest

SHIFTS, DEVELOPMENT, WORK = 8, 12, Path("outputs/depths")
TRAINED = {3: (2, 3), 6: (6,), 7: (6, 7, 8, 9)}  # bits at the training: those at which the operator is compared
WEIGHTS = [round(0.05 * step, 2) for step in range(1, 21)]


class Errors(NamedTuple):
    """What the SDR of a sentence depends on at any weight, with x the quantized and y the restored sentence."""

    signal: float  # ||truth||^2
    quantized: float  # ||x - truth||^2
    product: float  # <x - truth, y - x>
    change: float  # ||y - x||^2

    def sdr(self, weight: float) -> float:
        """Return the SDR of x + weight (y - x) in dB."""
        error = self.quantized + 2 * weight * self.product + weight**2 * self.change
        return 10 * float(np.log10(self.signal / error))


def train(root: str | None) -> None:
    """Train an operator at some depths and write it as an operator file."""
    for bits in TRAINED:
        common = ["experiment=depths", f"data.bits={bits}", *([f"data.root={root}"] if root else [])]
        step_ratio = f"network.step_ratio={10 * 2.0 ** (bits - 4):g}"  # so that the steps fit the cells as at 4 bits
        for command in (["prepare", *common], ["train", *common, step_ratio, "tracking=off"]):
            subprocess.run([sys.executable, "-m", "pdunroll", *command], check=True)
        made_by = f"python -m pdunroll train experiment=depths data.bits={bits} {step_ratio}"
        operators.save(WORK / f"{bits}.npz", operators.from_run(WORK / f"{bits}bits", made_by), small=True)


def restored(truths: list[NDArray], bits: int, K: torch.Tensor, split: str) -> list[Errors]:
    """Restore quantized sentences; a second call goes on after those that an earlier one has left in outputs/depths."""
    digest = hashlib.sha256(K.numpy().tobytes()).hexdigest()[:16]
    kept, scale = WORK / "errors" / f"{split}-{bits}-{digest}.csv", 2.0 ** (bits - 4)
    rows = read_table(kept, "") if kept.is_file() else []
    for truth in truths[len(rows) :]:
        x = pdunroll.quantize(truth, bits)
        change = overlapping(K, SHIFTS, for_accuracy, scale * x) / scale - x
        error = x - truth
        products = (truth @ truth, error @ error, error @ change, change @ change)
        rows.append(dict(zip(Errors._fields, map(float, products), strict=True)))
        write_table(kept, rows)
    return [Errors(**row) for row in rows[: len(truths)]]


def drawn(prepared: Path, split: str, count: int) -> list[NDArray]:
    """Return sentences of a split, drawn with seed 0; a greater number begins with those of a smaller one."""
    found = sentences(prepared, split)
    return [found[number] for number in np.random.default_rng(0).permutation(len(found))[:count]]


def matrix(path: Path) -> torch.Tensor:
    """Return the matrix of an operator file."""
    return torch.from_numpy(operators.load(path).matrix)


def compare(prepared: Path) -> list[dict[str, object]]:
    """Return the mean gain of each operator at each weight on development sentences, a row each."""
    truths = drawn(prepared, "validation", DEVELOPMENT)
    rows: list[dict[str, object]] = []
    for bits in (*CHOICES, 9, 10):
        paths = [WORK / f"{trained}.npz" for trained, depths in TRAINED.items() if bits in depths]
        for path in (operators.SHIPPED, *paths):
            name = f"trained at {operators.load(path).provenance['bits']} bits"
            found = restored(truths, bits, matrix(path), "development")
            gains = {weight: [own.sdr(weight) - own.sdr(0) for own in found] for weight in WEIGHTS}
            best = max(WEIGHTS, key=lambda weight: float(np.mean(gains[weight])))
            print(f"{bits} bits, {name}: {np.mean(gains[best]):+.2f} dB at weight {best:g}", flush=True)
            means = {f"{weight:g}": round(float(np.mean(gains[weight])), 3) for weight in WEIGHTS}
            rows.append({"bits": bits, "operator": name, "best_weight": best, **means})
    return rows


def measure(truths: list[NDArray], split: str, *, by_dct: bool) -> list[dict[str, object]]:
    """Return SDR and gain of restorations of some recordings at each depth, a row each; also by the DCT if asked."""
    dct, rows = pdunroll.dct_operator(320, 320), []
    for bits, choice in CHOICES.items():
        default = restored(truths, bits, matrix(choice.operator), split)
        plain = restored(truths, bits, dct, split) if by_dct else []
        for name, found, weight in (
            ("quantized", default, 0.0),
            ("DCT, mean of the optima", plain, 1.0),
            ("DCT", plain, choice.weight),
            ("mean of the optima", default, 1.0),
            ("default", default, choice.weight),
        ):
            if not found:
                continue
            sdr = np.array([own.sdr(weight) for own in found])
            gain = sdr - [own.sdr(0.0) for own in found]
            row: dict[str, object] = {"recordings": split, "bits": bits, "restoration": name, "weight": weight}
            for measured, values in (("sdr_db", sdr), ("gain_db", gain)):
                low, high = interval(values)
                row |= {measured: round(float(values.mean()), 3), f"{measured}_low": low, f"{measured}_high": high}
            rows.append({**row, "least_gain_db": round(float(gain.min()), 3), "number": len(sdr)})
            print(*rows[-1].values(), flush=True)
    return rows


def recordings(folder: Path) -> list[NDArray]:
    """Return the wav files in a folder, scaled to peak 1."""
    found = [soundfile.read(path)[0] for path in sorted(folder.glob("*.wav"))]
    return [samples / np.abs(samples).max() for samples in found]


def main() -> None:
    """Train, compare or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train").add_argument("--root", help="the corpus; downloaded if it is not given")
    for name in ("compare", "measure", "others"):
        own = commands.add_parser(name)
        own.add_argument("folder", type=Path, help="one that `prepare` wrote, of frames of 320 samples; or recordings")
        own.add_argument("table", type=Path, help="the CSV file to write")
        own.add_argument("--sentences", type=int, default=108, metavar="N", help="test sentences to measure")
        own.add_argument("--dct", action="store_true", help="measure the DCT, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    origin = {"commit": commit.stdout.strip()}
    if given.command == "train":
        train(given.root)
        return
    if given.command == "others":
        parts = [
            measure(recordings(part), part.name, by_dct=given.dct)
            for part in sorted(given.folder.iterdir())
            if part.is_dir()
        ]
        rows = [row for part in parts for row in part]
    else:
        origin["data"] = read_manifest(given.folder)["digest"][:16]
        if given.command == "compare":
            rows = compare(given.folder)
        else:
            rows = measure(drawn(given.folder, "test", given.sentences), "test", by_dct=given.dct)
    write_table(given.table, [{**row, **origin} for row in rows])


if __name__ == "__main__":
    main()
