"""Speech quality over whole test sentences, and some to listen to.  python -m pdunroll quality [experiment=...]

Compares the quantized sentences with restorations by the DCT and, for each mask, norm and mode, by the operator
with the least validation error at the certified optimum, each at that optimum. Writes to outputs/<name>/:
    quality.csv          one row per restoration, sentence and metric
    quality_summary.csv  means over the sentences, and the gain over the quantized ones with its interval
    audio/               the sentences to listen to, and index.json, which describes them
"""

from __future__ import annotations

import io
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, Config, build, one_line_errors, settings
from pdunroll.errors import InputError
from pdunroll.files import replaced
from pdunroll.processes import command, end_with_parent

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Row = dict[str, Any]
KEY = ("restoration", "primal_mask", "step_norm", "run")
INDEX = "index.json"
METRICS = ("sdr_db", "si_sdr_db", "pesq_wb", "stoi")


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        assess(settings(cfg))


def assess(config: Config) -> None:
    """Restore, measure and write everything."""
    import numpy as np
    from joblib import Parallel, delayed

    from pdunroll.files import write_table
    from pdunroll.speech.frames import load, read_manifest

    options = config.quality
    test, manifest = load(config.prepared, "test"), read_manifest(config.prepared)
    files = manifest["splits"]["test"]["files"]
    drawn = np.random.default_rng(options.seed).permutation(len(files))[: options.sentences]
    sentences = {files[number]["name"]: test.file == number for number in sorted(drawn)}  # frames in order
    chosen = np.concatenate([np.flatnonzero(frames) for frames in sentences.values()])
    lengths = np.cumsum([frames.sum() * config.data.frame_length for frames in sentences.values()])[:-1]

    models = candidates(config)
    work = Parallel(n_jobs=options.jobs or -1, return_as="generator", max_nbytes=None)(
        delayed(restored)(config, operator, test.observation[chosen]) for _, operator in models
    )
    blank = dict.fromkeys(KEY)
    takes = [({**blank, "restoration": "original"}, test.truth[chosen])]
    takes.append(({**blank, "restoration": "quantized"}, test.observation[chosen]))
    takes += [(key, frames) for (key, _), frames in zip(models, work, strict=True)]
    signals = [(key, np.split(frames.ravel(), lengths)) for key, frames in takes]

    originals = signals[0][1]
    rows = [
        {**key, "file": name, "metric": metric, "value": value}
        for key, parts in signals[1:]
        for name, original, part in zip(sentences, originals, parts, strict=True)
        for metric, value in measures(original, part, manifest["settings"]["sample_rate"]).items()
    ]
    write_table(config.outputs / "quality.csv", rows)
    means = summary(rows, options.seed)
    write_table(config.outputs / "quality_summary.csv", means)
    listen(config.outputs / "audio", signals, list(sentences)[: options.listen], manifest["settings"]["sample_rate"])
    report(means)


def candidates(config: Config) -> list[tuple[Row, NDArray]]:
    """The DCT, and for each mask, norm and mode the operator with the least validation error at the optimum."""
    from pdunroll.core.problem import dct_operator
    from pdunroll.evaluation.tables import read_results
    from pdunroll.training.run_folder import finished_runs, identify, read_operator
    from pdunroll.training.run_key import run_key, run_name

    shape = config.shape
    validated = {run_name(row): row["validation_optimum_mse"] for row in read_results(config.outputs, "optima")}
    best: dict[tuple[str, str, str], tuple[float, Path]] = {}
    for folder, record in finished_runs(
        Path(config.evaluation.runs), identify(config.scientific, config.prepared), config.name
    ):
        key = run_key(record)
        if run_name(key) not in validated:
            raise InputError(
                f"{config.outputs}/optima.csv has no row for {folder}; run `{command('evaluate', config.name)}` again"
            )
        entry = validated[run_name(key)], folder
        kind = key["step_norm"], key["primal_mask"], key["backprop"]
        best[kind] = min(best.get(kind, entry), entry)
    found: list[tuple[Row, NDArray]] = [({**dict.fromkeys(KEY), "restoration": "dct"}, dct_operator(*shape).numpy())]
    for (norm, mask, mode), (_, folder) in sorted(best.items()):
        key = {"restoration": mode, "primal_mask": mask, "step_norm": norm, "run": folder.name}
        found.append((key, read_operator(folder, shape)))
    return found


def restored(config: Config, operator: NDArray, observation: NDArray) -> NDArray:
    """The optimum of each frame, (frames, n)."""
    end_with_parent()
    import torch

    from pdunroll.core.solve import solve
    from pdunroll.speech.quantizer import radius

    torch.set_num_threads(1)
    found = solve(
        torch.from_numpy(operator),
        torch.from_numpy(observation),
        radius=radius(config.data.bits),
        tolerance=config.quality.tolerance,
        max_iterations=config.quality.max_iterations,
        algorithm=build(config.algorithm),
    )
    return found.primal.numpy()


def measures(original: NDArray, signal: NDArray, rate: int) -> dict[str, float | None]:
    """Metrics of one sentence against the original, both (samples,); None where one cannot be had.

    sdr_db is 10 log10 of ||original||^2 / ||original - signal||^2, si_sdr_db the same after the best scaling of the
    original; PESQ (ITU-T P.862.2, wide band) and STOI come from the packages of the same names.
    """
    import torch
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio, signal_noise_ratio

    target, estimate = torch.from_numpy(original).double(), torch.from_numpy(signal).double()
    return {
        "sdr_db": float(signal_noise_ratio(estimate, target)),
        "si_sdr_db": float(scale_invariant_signal_distortion_ratio(estimate, target)),
        **perceived(original, signal, rate),
    }


def perceived(original: NDArray, signal: NDArray, rate: int) -> dict[str, float | None]:
    """PESQ and STOI, each None without its package, or where a sentence is too short or too quiet for it."""
    import warnings

    found: dict[str, float | None] = {"pesq_wb": None, "stoi": None}
    if not packages_are_there():
        return found
    from pesq import PesqError, pesq
    from pystoi import stoi

    try:
        found["pesq_wb"] = float(pesq(rate, original, signal, "wb"))
    except PesqError:
        log.warning("PESQ finds no speech in a sentence of %d samples", len(original))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        value = float(stoi(original, signal, rate))
    found["stoi"] = None if said else value  # it warns, and returns a constant, where a sentence is too short
    return found


@cache
def packages_are_there() -> bool:
    """Whether PESQ and STOI can be had; says so once if not."""
    from importlib.util import find_spec

    there = all(map(find_spec, ("pesq", "pystoi")))
    if not there:
        log.warning("PESQ and STOI are left out; `pip install -e '.[speech]'` brings them")
    return there


def summary(rows: list[Row], seed: int) -> list[Row]:
    """Means over the sentences; gain over the quantized ones, with a 95% interval (bootstrap over the sentences)."""
    import numpy as np
    from scipy.stats import bootstrap

    base = {(row["file"], row["metric"]): row["value"] for row in rows if row["restoration"] == "quantized"}
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
    """Return the names of what `listen` has written to a folder; none without its index."""
    from pdunroll.files import read_json

    try:
        return {INDEX, *(entry["file"] for entry in read_json(folder / INDEX))}
    except (InputError, KeyError, TypeError):
        return set()


def _write_sentences(partial: Path, signals: list[tuple[Row, list[NDArray]]], names: list[str], rate: int) -> None:
    import soundfile

    from pdunroll.files import write_json

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


def report(means: list[Row]) -> None:
    """Mean and gain of each restoration."""
    print(f"{'restoration':<12}{'mask':<12}{'step norm':<12}" + "".join(f"{metric:>18}" for metric in METRICS))
    for key in dict.fromkeys((row["restoration"], row["primal_mask"], row["step_norm"]) for row in means):
        found = {
            row["metric"]: row for row in means if (row["restoration"], row["primal_mask"], row["step_norm"]) == key
        }
        values = (f"{found[m]['mean']:.3f} ({found[m]['gain']:+.3f})" if m in found else "" for m in METRICS)
        print(f"{key[0]:<12}{key[1] or '':<12}{key[2] or '':<12}" + "".join(f"{value:>18}" for value in values))
