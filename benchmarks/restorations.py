"""Restorations of quantized test sentences compared: baselines, shifts, and a few iterations for listening.

    python benchmarks/restorations.py outputs/quick/prepared docs
    python benchmarks/restorations.py outputs/few/prepared docs --few multirun/few

Scores all whole test sentences at 4 bits by SDR, SI-SDR, PESQ and STOI (extra `speech`) and writes to the folder given:
    restorations.csv   baselines and the operators of the package at the optimum, by shifts and tolerance
    listening.csv      the operator for listening against the number of iterations, with and without shifts
    listening.png      the latter as a figure
With --few it writes few.csv instead, of trained networks that restore by the iterations they were trained with.
Each holds the mean over the sentences and its 95% interval, by a bootstrap. The scores of single sentences are kept in
outputs/restorations, so that a second run goes on where the first one stopped. The setting of every baseline is the one
with the best mean SDR over 6 development sentences (`--tune` prints them). afftdn needs the package imageio-ffmpeg.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import signal, stats

import pdunroll
from pdunroll.evaluation.quality import measures
from pdunroll.files import read_table, write_table
from pdunroll.restore import operator_file
from pdunroll.restore.depths import CHOICES
from pdunroll.restore.solvers import ITERATIONS, RADIUS, Restored, Solver, for_accuracy, for_listening
from pdunroll.speech.frames import load, read_manifest
from pdunroll.speech.overlap import averaged
from pdunroll.training.run_folder import finished_runs

RATE, BITS, KEPT = 16_000, 4, Path("outputs/restorations")
MEASURES = ("sdr_db", "si_sdr_db", "pesq_nb", "pesq_wb", "stoi", "seconds")
LISTENING = (1, 2, 4, 6, 8, 10, 12, 16, 32, 128)  # iterations
DELAY = 400  # of afftdn at this rate, in samples: the maximum of its correlation with its input
NOISE = 4.0 * RADIUS**2 / 12  # the power of uniform noise in cells
Restore = Callable[[NDArray], NDArray]  # of a sentence (samples,)


def overlapping(
    operator: torch.Tensor, shifts: int, solver: Callable[[torch.Tensor], Solver], x: NDArray, weight: float = 1.0
) -> NDArray:
    """Restore a sentence by frames, as `python -m pdunroll restore --weight WEIGHT` does."""
    n, solve = operator.shape[1], solver(operator)

    def restore(frames: NDArray) -> NDArray:
        return solve(torch.from_numpy(frames[:, 0].copy())).frames.numpy()[:, None]

    blocks = np.array_split(x[:, None], max(1, len(x) * shifts // (128 * n)))
    return x + weight * (np.concatenate([result[:, 0] for _, result in averaged(blocks, n, shifts, restore)]) - x)


def low_pass(cutoff: float, x: NDArray) -> NDArray:
    """Return x filtered forwards and backwards by a Butterworth filter of order 4; the cutoff is in Hz."""
    return signal.sosfiltfilt(signal.butter(4, cutoff, fs=RATE, output="sos"), x).copy()


def spectral_subtraction(weight: float, floor: float, x: NDArray) -> NDArray:
    """Return x with a multiple of the known noise power subtracted from that of its STFT (Hann, 32 ms, 8 ms apart)."""
    frames = signal.ShortTimeFFT(signal.windows.hann(512, sym=False), hop=128, fs=RATE)
    spectrum = frames.stft(x)
    power = np.abs(spectrum) ** 2
    noise = weight * NOISE * float((frames.win**2).sum())
    gain = np.sqrt(np.maximum(1.0 - noise / np.maximum(power, 1e-20), floor**2))
    return frames.istft(gain * spectrum, k1=len(x))


def afftdn(reduction: float, x: NDArray) -> NDArray:
    """Return x denoised by ffmpeg's afftdn, told the power of the noise; the reduction is in dB."""
    import imageio_ffmpeg  # pyright: ignore[reportMissingImports] (not an extra)

    floor = max(-80.0, 10.0 * np.log10(NOISE))
    raw = ["-f", "f64le", "-ar", str(RATE), "-ac", "1"]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *raw, "-i", "-", "-af", f"afftdn=nr={reduction}:nf={floor:.1f}",
        *raw, "-",
    ]  # fmt: skip
    done = subprocess.run(
        command, input=np.pad(x, (0, DELAY)).astype("<f8").tobytes(), stdout=subprocess.PIPE, check=True
    )
    return np.frombuffer(done.stdout, "<f8")[DELAY:].copy()


def stft_operator(n: int = 640, window: int = 320, hop: int = 80) -> torch.Tensor:
    """Return a redundant short-time DCT of n samples, (m, n) with m > n: a tight frame with sine windows."""
    dct, sine = (
        pdunroll.dct_operator(window, window, torch.float64).numpy(),
        np.sin(np.pi * (np.arange(window) + 0.5) / window),
    )
    starts = range(hop - window, n, hop)
    padded = np.zeros((len(starts) * window, n + 2 * window))
    for number, start in enumerate(starts):
        padded[number * window : (number + 1) * window, start + window : start + 2 * window] = dct * sine
    return torch.from_numpy(padded[:, window:-window])


def methods() -> dict[str, Restore]:
    """Return the restorations of restorations.csv by name, the fast ones first."""
    dct = pdunroll.dct_operator(320, 320)
    learned = torch.from_numpy(operator_file.load(operator_file.SHIPPED).matrix)
    few = torch.from_numpy(operator_file.load(operator_file.LISTENING).matrix)
    found: dict[str, Restore] = {
        "quantized": lambda x: x,
        "low-pass": partial(low_pass, 2000.0),
        "spectral subtraction": partial(spectral_subtraction, 8.0, 0.05),
    }
    if find_spec("imageio_ffmpeg"):
        found["ffmpeg afftdn"] = partial(afftdn, 40.0)
    for shifts in (1, 8):
        name = f"listening.npz, {ITERATIONS} iterations, {shifts} shifts"
        found[name] = partial(overlapping, few, shifts, for_listening)
    for shifts in (1, 8):
        found[f"DCT, {shifts} shifts"] = partial(overlapping, dct, shifts, for_accuracy)
    weight = CHOICES[BITS].weight
    found[f"default: operator.npz, 8 shifts, weight {weight:g}"] = partial(
        overlapping, learned, 8, for_accuracy, weight=weight
    )
    for shifts in (8, 1, 2, 4, 16):
        found[f"operator.npz, {shifts} shifts"] = partial(overlapping, learned, shifts, for_accuracy)
    tight = partial(for_accuracy, tolerance=1e-3)
    found["operator.npz, 1 shifts, gap 1e-3"] = partial(overlapping, learned, 1, tight)
    found["short-time DCT, 2 shifts"] = partial(overlapping, stft_operator(), 2, for_accuracy)
    return found


def curves() -> dict[str, Restore]:
    """Return the restorations of listening.csv; the names hold shifts and iterations."""
    few = torch.from_numpy(operator_file.load(operator_file.LISTENING).matrix)
    found: dict[str, Restore] = {}
    for count in LISTENING:
        for shifts in (1, 8):
            solver = partial(for_listening, iterations=count)
            found[f"{shifts} shifts, {count} iterations"] = partial(overlapping, few, shifts, solver)
    for shifts in (1, 8):
        found[f"{shifts} shifts, optimum"] = partial(overlapping, few, shifts, for_accuracy)
    return found


def few(folder: Path, prepared: Path) -> dict[str, Restore]:
    """Return the restorations of few.csv: the trained networks with their own step sizes and numbers of iterations."""
    found: dict[str, Restore] = {"quantized": lambda x: x}
    for run in finished_runs(folder, read_manifest(prepared)["digest"], folder.name):
        operator = torch.from_numpy(run.operator())
        for shifts in (1, 8):
            name = f"{run.key.backprop}, {run.iterations} iterations, {shifts} shifts"
            solver = partial(by_network, iterations=run.iterations, **run.steps)
            found[name] = partial(overlapping, operator, shifts, solver)
    return found


def by_network(operator: torch.Tensor, **options: Any) -> Solver:
    """Return a solver that runs a network with these options of `unroll`, in float32; it knows no duality gaps."""

    def restore(x: torch.Tensor) -> Restored:
        y = pdunroll.unroll(operator, x.float(), radius=RADIUS, **options).double()
        return Restored(y, y.new_full((len(y),), torch.nan))

    return restore


def sentences(prepared: Path, split: str) -> list[NDArray]:
    """Return the whole sentences of a split in float64, (samples,) each."""
    data = load(prepared, split)
    return [data.truth[data.file == number].ravel().astype(float) for number in range(int(data.file.max()) + 1)]


def scored(truth: NDArray, restore: Restore) -> dict[str, float | None]:
    """Return the measures of one restored sentence, and the seconds of one core for a second of audio."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.process_time()
    result = restore(pdunroll.quantize(truth, BITS))
    seconds = (time.process_time() - start) * RATE / len(truth)
    return {**measures(truth.astype(np.float32), result.astype(np.float32), RATE), "seconds": seconds}


def table(chosen: dict[str, Restore], truths: list[NDArray], path: Path, jobs: int) -> pd.DataFrame:
    """Score each restoration, or read the scores of an earlier run; write their means and return them."""
    KEPT.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    rows = []
    for name, restore in chosen.items():
        kept = KEPT / f"{path.stem}-{name.replace(' ', '_')}.csv"
        if not kept.is_file():
            with Parallel(n_jobs=jobs) as parallel:
                write_table(kept, list(parallel(delayed(scored)(truth, restore) for truth in truths)))
        scores = pd.DataFrame(read_table(kept, "")).astype(float)
        row: dict[str, object] = {"restoration": name}
        for measure in MEASURES:
            values = scores[measure].dropna().to_numpy()
            row[measure] = round(values.mean(), 3)
            if measure != "seconds":
                row[f"{measure}_low"], row[f"{measure}_high"] = interval(values)
        rows.append({**row, "sentences": len(scores), "commit": commit.stdout.strip()})
        print(name, *(f"{measure} {row[measure]:.2f}" for measure in MEASURES), flush=True)
        write_table(path, rows)
    return pd.DataFrame(rows)


def interval(values: NDArray) -> tuple[float, float]:
    """Return the 95% interval of a mean, by a bootstrap."""
    if np.ptp(values) == 0.0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    return round(float(found.low), 3), round(float(found.high), 3)


def draw(means: pd.DataFrame, path: Path) -> None:
    """Draw the measures of listening.csv against the number of iterations, with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    titles = {"pesq_nb": "PESQ, narrow band", "pesq_wb": "PESQ, wide band", "stoi": "STOI", "sdr_db": "SDR in dB"}
    for axes, (measure, title) in zip(figure.subplots(2, 2, sharex=True).flat, titles.items(), strict=True):
        for shifts, colour in ((1, "C0"), (8, "C1")):
            mine = means[means.restoration.str.startswith(f"{shifts} shifts")]
            ends = mine[mine.restoration.str.endswith("iterations")]
            low, high = ends[f"{measure}_low"].to_numpy(), ends[f"{measure}_high"].to_numpy()
            label = "frames side by side" if shifts == 1 else f"{shifts} shifts"
            axes.semilogx(LISTENING, ends[measure], color=colour, marker=".", label=label)
            axes.fill_between(LISTENING, low, high, color=colour, alpha=0.2, linewidth=0)
            optimum = mine[mine.restoration.str.endswith("optimum")][measure].item()
            axes.axhline(optimum, color=colour, linestyle=":", label=f"{label}, optimum")
        axes.axvline(ITERATIONS, color="0.7", linewidth=1, zorder=0)
        axes.set(title=title, xlabel="iterations")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def tune(prepared: Path) -> None:
    """Print the mean SDR of the baselines' settings over 6 development sentences."""
    truths = sentences(prepared, "validation")[:6]
    settings = [(low_pass, (hertz,)) for hertz in (1000.0, 1500.0, 2000.0, 3000.0, 4000.0, 6000.0)]
    settings += [(spectral_subtraction, (w, f)) for w in (1.0, 2.0, 4.0, 8.0, 16.0) for f in (0.01, 0.05, 0.2)]
    settings += [(afftdn, (dB,)) for dB in (3.0, 6.0, 12.0, 20.0, 40.0) if find_spec("imageio_ffmpeg")]
    for method, values in settings:
        found = [measures(y, method(*values, pdunroll.quantize(y, BITS)), RATE)["sdr_db"] for y in truths]
        print(method.__name__, *values, round(float(np.mean(found)), 2), flush=True)


def main() -> None:
    """Score the restorations and write the tables and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="a folder that `prepare` wrote, of frames of 320 samples")
    parser.add_argument("folder", type=Path, help="where the tables and the figure go")
    parser.add_argument("--jobs", type=int, default=1, help="sentences side by side, a thread each")
    parser.add_argument("--few", type=Path, metavar="FOLDER", help="score the networks of multirun/few only")
    parser.add_argument("--tune", action="store_true", help="print the SDR of the baselines' settings only")
    options = parser.parse_args()
    if options.tune:
        tune(options.prepared)
        return
    truths = sentences(options.prepared, "test")
    if options.few:
        table(few(options.few, options.prepared), truths, options.folder / "few.csv", options.jobs)
        return
    table(methods(), truths, options.folder / "restorations.csv", options.jobs)
    draw(table(curves(), truths, options.folder / "listening.csv", options.jobs), options.folder / "listening.png")


if __name__ == "__main__":
    main()
