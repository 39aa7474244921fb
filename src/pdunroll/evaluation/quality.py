"""Scores of restored sentences, and audio files of some of them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from pdunroll.core.algorithms import Algorithm
from pdunroll.core.problem import Box, dct_operator
from pdunroll.core.solve import solve
from pdunroll.errors import InputError
from pdunroll.evaluation.tables import read_results
from pdunroll.files import read_json, replaced, write_json
from pdunroll.processes import command, end_with_parent
from pdunroll.speech.overlap import averaged
from pdunroll.training.run_folder import Run
from pdunroll.training.run_key import by_operator

log = logging.getLogger(__name__)

Row = dict[str, Any]
KEY = ("restoration", "shifts", "primal_mask", "step_norm", "run")
INDEX = "index.json"
METRICS = ("sdr_db", "si_sdr_db", "pesq_nb", "pesq_wb", "stoi")


def candidates(outputs: Path, runs: Sequence[Run]) -> list[tuple[Row, NDArray]]:
    """Return the DCT, and for each mask, norm and mode the operator with the least validation error at the optimum.

    Args:
        outputs: outputs/<name>/ with optima.csv.
        runs: the trainings.

    Returns:
        The columns that name a restoration, and K (m, n), for each.

    Raises:
        InputError: if optima.csv lacks one of the trainings.
    """
    validated = by_operator(read_results(outputs)["optima"], "validation_optimum_mse")
    best: dict[tuple[str, ...], tuple[float, Run]] = {}
    for run in runs:
        key = run.key
        if key not in validated:
            again = command("evaluate", outputs.name)
            raise InputError(f"{outputs}/optima.csv has no row for {run.folder}; run `{again}` again")
        entry = validated[key], run
        kind = *key.setting.order, key.backprop
        best[kind] = min(best.get(kind, entry), entry, key=lambda entry: (entry[0], entry[1].folder))
    dct = dct_operator(*runs[0].shape).numpy()
    found: list[tuple[Row, NDArray]] = [
        ({"restoration": "dct", "primal_mask": None, "step_norm": None, "run": None}, dct)
    ]
    for (norm, mask, mode), (_, run) in sorted(best.items(), key=lambda item: item[0]):
        key = {"restoration": mode, "primal_mask": mask, "step_norm": norm, "run": run.folder.name}
        found.append((key, run.operator()))
    return found


def restored(
    operator: NDArray,
    sentences: Sequence[NDArray],
    shifts: int,
    *,
    radius: float | None,
    algorithm: Algorithm,
    tolerance: float,
    max_iterations: int,
) -> list[NDArray]:
    """Return degraded sentences restored to the certified optima of their frames, (samples,) each.

    Args:
        operator: K, (m, n).
        sentences: x in one column (samples, 1), or x and the bounds of the true samples (samples, 3).
        shifts: the number of shifted grids of frames to average over.
        radius: half a quantization step; None if there are bounds.
        algorithm: the solver, see `pdunroll.solve`.
        tolerance: the relative duality gap.
        max_iterations: the limit of iterations of a frame.
    """
    end_with_parent()
    torch.set_num_threads(1)

    def restore(frames: NDArray) -> NDArray:
        observation, *bounds = (torch.from_numpy(part.copy()) for part in frames.swapaxes(0, 1))
        found = solve(
            torch.from_numpy(operator),
            Box.between(bounds[0], bounds[1], observation) if bounds else observation,
            radius=radius,
            tolerance=tolerance,
            max_iterations=max_iterations,
            algorithm=algorithm,
        )
        return found.primal.numpy()[:, None]

    n = operator.shape[1]
    return [
        np.concatenate([result[:, 0] for _, result in averaged([sentence], n, shifts, restore)])
        for sentence in sentences
    ]


def measures(original: NDArray, signal: NDArray, rate: int) -> dict[str, float | None]:
    """Return the metrics of one sentence against the original, both (samples,); None if one is not available.

    sdr_db is 10 log10 of ||original||^2 / ||original - signal||^2, si_sdr_db the same after the best scaling of the
    original; PESQ (ITU-T P.862 narrow and P.862.2 wide band) and STOI come from the packages of the same names.
    """
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio, signal_noise_ratio

    target, estimate = torch.from_numpy(original).double(), torch.from_numpy(signal).double()
    return {
        "sdr_db": float(signal_noise_ratio(estimate, target)),
        "si_sdr_db": float(scale_invariant_signal_distortion_ratio(estimate, target)),
        **perceived(original, signal, rate),
    }


def perceived(original: NDArray, signal: NDArray, rate: int) -> dict[str, float | None]:
    """Return PESQ and STOI; None without their packages, or for a sentence that is too short or too quiet."""
    found: dict[str, float | None] = {"pesq_nb": None, "pesq_wb": None, "stoi": None}
    if not packages_are_there():
        return found
    from pesq import PesqError, pesq  # pyright: ignore[reportMissingImports] (an extra)
    from pystoi import stoi  # pyright: ignore[reportMissingImports]

    try:
        for band in ("nb", "wb"):
            found[f"pesq_{band}"] = float(pesq(rate, original, signal, band))
    except PesqError:
        log.warning("PESQ finds no speech in a sentence of %d samples", len(original))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        value = float(stoi(original, signal, rate))
    found["stoi"] = None if said else value  # it warns, and returns a constant, where a sentence is too short
    return found


@cache
def packages_are_there() -> bool:
    """Return whether the packages of PESQ and STOI are installed; warn once if not."""
    from importlib.util import find_spec

    there = all(map(find_spec, ("pesq", "pystoi")))
    if not there:
        log.warning("PESQ and STOI are left out; `pip install -e '.[speech]'` brings them")
    return there


def summary(rows: list[Row], seed: int, observed: str = "quantized") -> list[Row]:
    """Return means over the sentences and the gains over the observed ones, with 95% bootstrap intervals.

    `observed` is the name of the observed sentences in the rows. The bootstrap draws sentences.
    """
    from scipy.stats import bootstrap

    base = {(row["file"], row["metric"]): row["value"] for row in rows if row["restoration"] == observed}
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["value"] is not None and base[row["file"], row["metric"]] is not None:
            key = *(row[part] for part in KEY), row["metric"]
            groups.setdefault(key, []).append(row)
    found = []
    for (*key, metric), mine in groups.items():
        gains = np.array([row["value"] - base[row["file"], metric] for row in mine])
        low = high = None
        if len(gains) > 1 and np.ptp(gains) > 0:
            interval = bootstrap((gains,), np.mean, method="percentile", rng=seed).confidence_interval
            low, high = float(interval.low), float(interval.high)
        found.append({
            **dict(zip(KEY, key, strict=True)), "metric": metric,
            "mean": float(np.mean([row["value"] for row in mine])), "gain": float(gains.mean()),
            "low": low, "high": high, "sentences": len(mine),
        })  # fmt: skip
    return found


def listen(folder: Path, signals: list[tuple[Row, list[NDArray]]], names: list[str], rate: int) -> None:
    """Write the first sentences of each take as 16-bit wav files and index.json; replaces a `folder` that it made."""
    with replaced(folder, "audio", listed) as partial:
        _write_sentences(partial, signals, names, rate)


def listed(folder: Path) -> set[str]:
    """Return the names of the files that `listen` has written to a folder; none if it has no index."""
    try:
        return {INDEX, *(entry["file"] for entry in read_json(folder / INDEX))}
    except (InputError, KeyError, TypeError):
        return set()


def _write_sentences(partial: Path, signals: list[tuple[Row, list[NDArray]]], names: list[str], rate: int) -> None:
    entries = []
    for number, name in enumerate(names):
        for key, parts in signals:
            file = (
                "-".join(filter(None, (str(number), key["restoration"], key["primal_mask"], key["step_norm"]))) + ".wav"
            )
            audio = io.BytesIO()  # libsndfile hides why writing to a file failed
            soundfile.write(audio, parts[number].clip(-1.0, 1.0), rate, format="WAV", subtype="PCM_16")
            (partial / file).write_bytes(audio.getvalue())
            entries.append({"name": name, **key, "file": file, "seconds": len(parts[number]) / rate})
    write_json(partial / INDEX, entries)


def readable(means: list[Row]) -> str:
    """Return the mean and the gain of each restoration as a text table."""
    columns = KEY[:-1]
    lines = ["".join(f"{column:<16}" for column in columns) + "".join(f"{metric:>18}" for metric in METRICS)]
    for key in dict.fromkeys(tuple(row[column] for column in columns) for row in means):
        found = {row["metric"]: row for row in means if tuple(row[column] for column in columns) == key}
        values = (f"{found[m]['mean']:.3f} ({found[m]['gain']:+.3f})" if m in found else "" for m in METRICS)
        lines.append("".join(f"{part or '':<16}" for part in key) + "".join(f"{value:>18}" for value in values))
    return "\n".join(lines)
