"""What each departure of the released code from the paper does to the error, alone.

    python benchmarks/departures.py outputs/quick/prepared docs/departures.csv

Trains with full backpropagation, L = 30, one pass over the training frames of a prepared folder at rate 1e-4: as
released (three seeds, which shows what a difference means), with each departure undone alone, and with all undone.
Writes one row a training: MSE on 1,024 validation and 1,024 test frames after 30 iterations and at the certified
optimum. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pdunroll
from pdunroll.files import write_table
from pdunroll.speech.frames import Frames, load, read_manifest
from pdunroll.speech.quantizer import radius
from pdunroll.training.data import FrameData
from pdunroll.training.fit import fit
from pdunroll.training.module import UnrolledTraining

L, BITS = 30, 4
RELEASED = {
    "primal_mask": "released", "step_norm": "frobenius", "adam_epsilon": 1e-7, "decay_counts": "frames",
    "shuffle_buffer": 1000, "quantizer": "symmetric",
}  # fmt: skip
PAPER = {
    "primal_mask": "active_set", "step_norm": "spectral", "adam_epsilon": 1e-8, "decay_counts": "steps",
    "shuffle_buffer": None, "quantizer": "upper cell",
}  # fmt: skip


def cases() -> list[tuple[str, int, dict[str, Any]]]:
    """Return name, seed and settings of each training."""
    seeds = [("as released", seed, RELEASED) for seed in range(3)]
    alone = [(f"{key}={value}", 0, {**RELEASED, key: value}) for key, value in PAPER.items()]
    return [*seeds, *alone, ("all as in the paper", 0, PAPER)]


def observed(folder: Path, split: str, quantizer: str) -> Frames:
    """Return a split, quantized as the released code does it (symmetric about zero) or as this project does."""
    frames = load(folder, split)
    if quantizer != "symmetric":
        return frames
    with np.load(folder / f"{split}.npz") as arrays:
        truth = arrays["samples"] / arrays["peak"][arrays["file_number"], None]  # float64: rounding crosses borders
    step = 2 * radius(BITS)
    observation = np.sign(truth) * step * (np.floor(np.abs(truth) / step) + 0.5)
    return replace(frames, observation=observation.astype(np.float32))


def errors(operator: torch.Tensor, frames: Frames, step_norm: str) -> tuple[float, float]:
    """Return the MSE on 1,024 frames after L iterations and at the certified optimum."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(frames.truth))[:1024])
    y, x = torch.from_numpy(frames.truth[chosen]), torch.from_numpy(frames.observation[chosen])
    unrolled = pdunroll.unroll(operator, x, radius=radius(BITS), iterations=L, step_norm=step_norm)
    optimum = pdunroll.solve(operator, x, radius=radius(BITS)).primal
    return tuple(float((restored - y).double().square().mean()) for restored in (unrolled, optimum))


def train(folder: Path, name: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train once and return a row of the table."""
    splits = {split: observed(folder, split, settings["quantizer"]) for split in ("train", "validation", "test")}
    data = FrameData(
        splits["train"], splits["validation"], seed=seed, validations_per_epoch=8,
        shuffle_buffer=settings["shuffle_buffer"],
    )  # fmt: skip
    module = UnrolledTraining(
        frame_length=splits["train"].truth.shape[1], radius=radius(BITS), iterations=L,
        backprop=pdunroll.Full(primal_mask=settings["primal_mask"]), step_norm=settings["step_norm"],
        learning_rate=1e-4, adam_epsilon=settings["adam_epsilon"],
        decay=data.steps_per_pass if settings["decay_counts"] == "steps" else data.frames_per_pass,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        fit(module, data, Path(place), epochs=1, title=name)
    row: dict[str, Any] = {"setting": name, "seed": seed}
    for split in ("validation", "test"):
        after, optimum = errors(module.best_operator, splits[split], settings["step_norm"])
        row |= {f"{split}_mse": after, f"{split}_optimum_mse": optimum}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="a folder that `prepare` wrote, of 4-bit frames")
    parser.add_argument("table", type=Path, help="the CSV file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    rows = []
    for name, seed, settings in cases():
        rows.append(train(options.prepared, name, seed, settings))
        print("  ".join(f"{value:.4e}" if isinstance(value, float) else str(value) for value in rows[-1].values()))
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    data = read_manifest(options.prepared)["digest"][:16]
    write_table(options.table, [{**row, "commit": commit.stdout.strip(), "data": data} for row in rows])


if __name__ == "__main__":
    main()
