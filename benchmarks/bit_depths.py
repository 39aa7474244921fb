"""SDR of restored test sentences at other bit depths than the operator was trained at.

    python benchmarks/bit_depths.py outputs/quick/prepared docs/bit_depths.csv

Quantizes eight whole test sentences (drawn with seed 0) at 2 to 8 bits and restores them by the DCT and by the
operator that comes with the package, as `restore` does for accuracy, with frames side by side and with 8 shifts. Writes
the mean SDR in dB of each.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from restorations import overlapping

import pdunroll
from pdunroll.files import write_table
from pdunroll.restore import operator_file as operators
from pdunroll.restore.solvers import for_accuracy
from pdunroll.speech.frames import load, read_manifest

SENTENCES, BITS = 8, (2, 3, 4, 5, 6, 8)


def sdr(truth: Any, estimate: Any) -> float:
    """Return 10 log10 of ||truth||^2 / ||truth - estimate||^2, in dB."""
    return 10 * np.log10(np.sum(truth**2) / np.sum((truth - estimate) ** 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="a folder that `prepare` wrote, of frames of 320 samples")
    parser.add_argument("table", type=Path, help="the CSV file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    test = load(options.prepared, "test")
    drawn = np.sort(np.random.default_rng(0).permutation(test.file.max() + 1)[:SENTENCES])
    matrices = {
        "DCT": pdunroll.dct_operator(320, 320),
        "operator.npz": torch.from_numpy(operators.load(operators.SHIPPED).matrix),
    }
    methods = {f"{name}, {shifts} shifts": (K, shifts) for name, K in matrices.items() for shifts in (1, 8)}
    rows: list[dict[str, Any]] = [{"restoration": name} for name in ("quantized", *methods)]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    origin = {"commit": commit.stdout.strip(), "data": read_manifest(options.prepared)["digest"][:16]}
    truths = [test.truth[test.file == number].ravel().astype(np.float64) for number in drawn]
    for bits in BITS:
        scale = 2.0 ** (bits - 4)
        observed = [pdunroll.quantize(truth, bits) for truth in truths]
        found = {"quantized": observed}
        for name, (K, shifts) in methods.items():
            found[name] = [overlapping(K, shifts, for_accuracy, scale * x) / scale for x in observed]
        for row in rows:
            pairs = zip(truths, found[row["restoration"]], strict=True)
            row[f"{bits} bits"] = round(float(np.mean([sdr(y, restored) for y, restored in pairs])), 2)
        print(bits, *(f"{row['restoration']} {row[f'{bits} bits']:.2f}" for row in rows), flush=True)
    write_table(options.table, [{**row, **origin} for row in rows])


if __name__ == "__main__":
    main()
