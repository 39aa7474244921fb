"""An experiment as one HTML file that embeds all it shows.  python -m pdunroll report [experiment=...].

Reads tables, figures and files of outputs/<name>/ and multirun/<name>/ alone; writes outputs/<name>/report.html, which
opens offline. In the place of a part whose stage has not run stands the command that makes it.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdunroll.errors import InputError
from pdunroll.evaluation.tables import read_provenance, read_results
from pdunroll.files import atomic, read_json, read_table
from pdunroll.processes import command
from pdunroll.report.gallery import figures_in
from pdunroll.report.registry import drawn_by
from pdunroll.report.style import diverging, set_style
from pdunroll.speech.frames import read_manifest
from pdunroll.training.run_folder import read_record
from pdunroll.training.run_key import MASK_TITLES, NORM_TITLES, RunKey, after_training_iterations, by_operator

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Row = dict[str, Any]
BASELINES = ("original", "quantized", "dct")  # first in a list of restorations, before those by trained operators


def write(folder: Path, name: str, *, runs: Path, prepared: Path) -> None:
    """Write the page of the experiment `name` to `folder`, outputs/<name>/; see `render`."""
    path = folder / "report.html"
    page = render(folder, name, runs, prepared)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    log.info("%s  %.1f MB", path, path.stat().st_size / 1e6)


def render(folder: Path, name: str, runs: Path, prepared: Path) -> str:
    """The page; raises `InputError` naming the command where the evaluation or its figures are missing."""
    from jinja2 import Environment, StrictUndefined

    evaluation, _, training = read_results(folder).values()
    provenance = read_provenance(folder)
    figures = figures_in(folder, ".svg")
    if missing := [drawing.stem for drawing in drawn_by("figures") if drawing not in figures]:
        raise InputError(f"{folder}/{missing[0]}.svg is missing; make it with `{command('figures', name)}`")
    set_style()
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(
        resources.files("pdunroll.report").joinpath("page.html").read_text(encoding="utf-8")
    ).render(
        name=name,
        verdicts=claims(optional(folder, "verdicts", "verdicts")),
        quality=quality(optional(folder, "quality_summary", "quality")),
        results=results(evaluation, training, optional(folder, "optima", "evaluate")),
        figures=[
            {
                "title": drawing.caption,
                "svg": inline(path.read_text(encoding="utf-8"), drawing.stem.replace("/", "-"), drawing.caption),
            }
            for drawing, path in figures.items()
        ],
        curves=training_curves(runs),
        operators=operators(runs),
        sentences=sentences(folder / "audio"),
        masks=MASK_TITLES,
        norms=NORM_TITLES,
        provenance=provenance,
        manifest=read_manifest(prepared),
        settings=settings_text(folder / "settings.yaml"),
        environment=environments(runs),
        hours=sum(row["seconds"] for row in training) / 3600,
        commands={stage: command(stage, name) for stage in ("verdicts", "quality", "theory")},
    )


def optional(folder: Path, table: str, stage: str) -> list[Row]:
    """The rows of a table in outputs/<name>/, none if its stage has not run."""
    path = folder / f"{table}.csv"
    again = command(stage, folder.name)
    return read_table(path, again, columns=("primal_mask", "step_norm")) if path.is_file() else []


def claims(rows: list[Row]) -> dict[str, list[Any]]:
    """The settings, and one entry a claim: its statement and its verdict in each setting."""
    settings = list(dict.fromkeys((row["primal_mask"], row["step_norm"]) for row in rows))
    found: dict[str, dict[tuple, Row]] = {}
    for row in rows:
        found.setdefault(row["claim"], {})[row["primal_mask"], row["step_norm"]] = row
    return {
        "settings": settings,
        "claims": [
            {"statement": next(iter(own.values()))["statement"], "verdicts": [own.get(pair) for pair in settings]}
            for own in found.values()
        ],
    }


def results(evaluation: list[Row], training: list[Row], optima: list[Row]) -> list[Row]:
    """A row a model: test MSE after L_training and after all iterations, at the optimum; training time."""
    last = max(row["l_inference"] for row in evaluation)
    classical = after_training_iterations(evaluation)
    seconds, optimum = by_operator(training, "seconds"), by_operator(optima, "optimum_mse")
    return [
        {
            **key.columns,
            "classical": classical.get(key),
            "last": mse,
            "optimum": optimum.get(key),
            "seconds": seconds.get(key),
        }
        for key, mse in by_operator((row for row in evaluation if row["l_inference"] == last), "mse").items()
    ]


def quality(rows: list[Row]) -> list[Row]:
    """A row a restoration, with its metrics by name."""
    found: dict[tuple, Row] = {}
    for row in rows:
        key = {part: row[part] for part in ("restoration", "primal_mask", "step_norm", "run")}
        entry = found.setdefault(tuple(key.values()), {**key, "metrics": {}})
        entry["metrics"][row["metric"]] = row
    return list(found.values())


def inline(text: str, prefix: str, title: str) -> str:
    """An SVG document as an element of the page, its ids with a prefix: Matplotlib uses the same ones in each file."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def trainings(runs: Path) -> list[tuple[Path, Row]]:
    """Folder and record of each finished training."""
    records = [(path.parent, read_record(path)) for path in sorted(runs.glob("*/run.json"))]
    return [(folder, record) for folder, record in records if record["status"] == "finished"]


def training_curves(runs: Path) -> str:
    """Validation error over the steps of every training, a panel for each mask, norm and mode; empty without any."""
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, ...], list[tuple[int, list[Row]]]] = {}
    for folder, record in trainings(runs):
        key = RunKey.from_record(record)
        table = read_table(folder / "training.csv", command("train"), numbers=("step", "validation_mse"))
        panels.setdefault((*key.setting.order, key.backprop), []).append((key.l_training or 0, table))
    if not panels:
        return ""
    size = (1.0 + 2.9 * len(panels), 3.0)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    depths = sorted({depth for lines in panels.values() for depth, _ in lines})
    for axis, (key, lines) in zip(axes[0], sorted(panels.items()), strict=True):
        for depth, table in sorted(lines, key=lambda line: line[0]):
            colour = plt.get_cmap("viridis")(0.9 * depths.index(depth) / max(1, len(depths) - 1))
            steps, errors = ([row[column] for row in table] for column in ("step", "validation_mse"))
            axis.plot(steps, errors, color=colour, label=f"L = {depth}")
        axis.set(title=f"{key[2]}\n{key[1]}, {key[0]}", xlabel="step")
    axes[0][0].set_ylabel("validation MSE")
    axes[0][-1].legend(fontsize=7)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return inline(buffer.getvalue(), "curves", "Validation error during training")


def operators(runs: Path) -> list[Row]:
    """K and K - DCT of the DCT and, for each mask, norm and mode, of the operator that validated best after L."""
    import numpy as np
    from scipy.fft import dct

    from pdunroll.training.run_folder import read_operator

    best: dict[tuple[str, ...], tuple[float, Path]] = {}
    for folder, record in trainings(runs):
        own = RunKey.from_record(record)
        key = *own.setting.order, own.backprop
        entry = record["results"]["validation_mse"], folder
        best[key] = min(best.get(key, entry), entry)
    found: list[Row] = []
    for _, folder in (best[key] for key in sorted(best)):
        learned = read_operator(folder).astype(float)
        m, n = learned.shape
        initial = dct(np.eye(max(m, n)), norm="ortho", axis=0)[:m, :n]
        if not found:
            found.append({"name": "DCT", "image": image(diverging(initial)), "change": None, "largest": None})
        change = learned - initial
        largest = float(np.abs(change).max())
        images = {"image": image(diverging(learned)), "change": image(diverging(change))}
        found.append({"name": folder.name, **images, "largest": largest})
    return found


def image(picture: NDArray) -> str:
    """A picture (height, width, 4), uint8, as a PNG data URI."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    plt.imsave(buffer, picture, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def sentences(folder: Path) -> list[Row]:
    """The test sentences to listen to, each with its restorations: audio and spectrogram as data URIs."""
    from pdunroll.evaluation.tables import Sentence

    if not (folder / "index.json").is_file():
        return []
    found: dict[str, list[Row]] = {}
    for entry in read_json(folder / "index.json", kind=list[Sentence]):
        path = folder / entry["file"]
        if "step_norm" not in entry:
            raise InputError(f"{folder}/index.json names no step_norm; make it again with `{command('quality')}`")
        if not path.is_file():
            raise InputError(f"{path} is missing; make it again with `{command('quality')}`")
        audio = "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode()
        found.setdefault(entry["name"], []).append({**entry, "audio": audio, "spectrogram": spectrogram(path)})

    def order(take: Row) -> tuple[Any, ...]:
        kind = take["restoration"]
        number = BASELINES.index(kind) if kind in BASELINES else len(BASELINES)
        return number, kind, take["step_norm"] or "", take["primal_mask"] or ""

    return [{"name": name, "takes": sorted(takes, key=order)} for name, takes in found.items()]


def spectrogram(path: Path) -> str:
    """80 dB of short-time spectra (32 ms windows, 8 ms steps), as a PNG data URI."""
    import matplotlib
    import numpy as np
    import soundfile
    from scipy.signal import stft

    samples, rate = soundfile.read(path)
    window = round(0.032 * rate)
    power = np.abs(stft(samples, rate, nperseg=window, noverlap=window - round(0.008 * rate))[2]) ** 2
    decibels = 10 * np.log10(power + 1e-12)
    level = 1 + (decibels[::-1] - decibels.max()) / 80  # 0 for -80 dB and below
    return image(matplotlib.colormaps["magma"](level.clip(0, 1), bytes=True))


def settings_text(path: Path) -> str | None:
    """The resolved settings as they are on disk."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def environments(runs: Path) -> list[Row]:
    """Where and by what the trainings were made, without repetitions."""
    found = [record["environment"] for _, record in trainings(runs) if "environment" in record]
    return [entry for number, entry in enumerate(found) if entry not in found[:number]]
