"""The sections of report.html in their order; each is a function that returns HTML.

If the command that makes the data of a section has not been run, the section names that command.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pdunroll.errors import InputError
from pdunroll.evaluation.tables import Sentence, read_provenance, read_results
from pdunroll.files import read_json, read_table
from pdunroll.processes import command
from pdunroll.report.gallery import figures_in
from pdunroll.report.media import image, inline, spectrogram
from pdunroll.report.registry import Drawing, section
from pdunroll.report.style import diverging
from pdunroll.speech.frames import read_manifest
from pdunroll.training.run_folder import read_record
from pdunroll.training.run_key import MASK_TITLES, NORM_TITLES, RunKey, after_training_iterations, by_operator

if TYPE_CHECKING:
    from jinja2 import Environment

Row = dict[str, Any]
BASELINES = ("original", "observed", "dct")  # first in a list of restorations, before those by trained operators


class Experiment(NamedTuple):
    """The data of the sections.

    Attributes:
        folder: outputs/<name>/.
        name: the experiment.
        runs: the folder of the trainings.
        prepared: the folder of the frames.
        evaluation: the rows of evaluation.csv.
        optima: the rows of optima.csv.
        training: the rows of training.csv.
        provenance: the command, commit and data of these tables.
    """

    folder: Path
    name: str
    runs: Path
    prepared: Path
    evaluation: list[Row]
    optima: list[Row]
    training: list[Row]
    provenance: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, name: str, runs: Path, prepared: Path) -> Self:
        """Return the experiment with its tables of results."""
        return cls(folder, name, runs, prepared, **read_results(folder), provenance=read_provenance(folder))

    @property
    def observed(self) -> str:
        """The name of the unrestored frames, such as "quantized"."""
        return self.provenance.get("observed", "quantized")

    def table(self, name: str, stage: str) -> list[Row]:
        """Return the rows of a table of the command `stage`; none if it has not been run."""
        path = self.folder / f"{name}.csv"
        columns = ("primal_mask", "step_norm")
        return read_table(path, command(stage, self.name), columns=columns) if path.is_file() else []


@cache
def templates() -> Environment:
    """Return the templates of the sections and of the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("pdunroll.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def rendered(template: str, **content: Any) -> str:
    """Return a template of this package filled with content."""
    return templates().get_template(template).render(**content)


@section("figures", "Figures")
def figures(experiment: Experiment) -> str:
    """Show the paper's two figures."""
    return rendered("figures.html", figures=inlined(list(figures_in(experiment.folder, ".svg").items())[:2]))


@section("verdicts", "What holds")
def verdicts(experiment: Experiment) -> str:
    """Show a row for each claim, with its verdict in each setting."""
    rows = experiment.table("verdicts", "verdicts")
    settings = list(dict.fromkeys((row["primal_mask"], row["step_norm"]) for row in rows))
    found: dict[str, dict[tuple, Row]] = {}
    for row in rows:
        found.setdefault(row["claim"], {})[row["primal_mask"], row["step_norm"]] = row
    claims = [
        {"statement": next(iter(own.values()))["statement"], "verdicts": [own.get(pair) for pair in settings]}
        for own in found.values()
    ]
    return rendered(
        "verdicts.html", settings=settings, claims=claims, masks=MASK_TITLES, norms=NORM_TITLES,
        command=command("verdicts", experiment.name),
    )  # fmt: skip


@section("results", "Test errors")
def results(experiment: Experiment) -> str:
    """Show for each operator the test MSE after L_training and all iterations and at the optimum, and the time."""
    last = max(row["l_inference"] for row in experiment.evaluation)
    classical = after_training_iterations(experiment.evaluation)
    seconds = by_operator(experiment.training, "seconds")
    optimum = by_operator(experiment.optima, "optimum_mse")
    ends = by_operator((row for row in experiment.evaluation if row["l_inference"] == last), "mse")
    groups: dict[str, list[Row]] = {}
    for key, mse in ends.items():
        untrained = experiment.observed if key.backprop == "none" else f"DCT, {key.step_norm}"
        row = {
            **key.columns,
            "label": key.mode.label if key.trained else untrained,
            "classical": classical.get(key),
            "last": mse,
            "optimum": optimum.get(key),
            "seconds": seconds.get(key),
        }
        groups.setdefault(", ".join(key.setting.titles) if key.trained else "Without training", []).append(row)
    return rendered("results.html", groups=groups, last=last)


@section("more", "More figures")
def more(experiment: Experiment) -> str:
    """Show all other figures, and the validation error of every training against the steps."""
    found = inlined(list(figures_in(experiment.folder, ".svg").items())[2:])
    if curves := training_curves(experiment.runs):
        found.append({"title": "Validation error during training", "svg": curves})
    return rendered("figures.html", figures=found)


@section("operators", "Operators")
def operators(experiment: Experiment) -> str:
    """Show K and K - DCT of the best operators."""
    return rendered("operators.html", operators=best_operators(experiment.runs))


@section("speech", "Speech")
def speech(experiment: Experiment) -> str:
    """Show the scores of the restorations, and sentences to listen to."""
    found: dict[tuple, Row] = {}
    for row in experiment.table("quality_summary", "quality"):
        key = {part: row.get(part) for part in ("restoration", "shifts", "primal_mask", "step_norm")}
        entry = found.setdefault((*key.values(), row.get("run")), {**key, "metrics": {}})
        entry["metrics"][row["metric"]] = row
    return rendered(
        "speech.html", quality=list(found.values()), command=command("quality", experiment.name),
        sentences=sentences(experiment.folder / "audio", experiment.observed),
    )  # fmt: skip


@section("origin", "How it was made")
def origin(experiment: Experiment) -> str:
    """Show the data, machine, commit and settings, and the command that reproduces the experiment."""
    settings = experiment.folder / "settings.yaml"
    environments = [record["environment"] for _, record in trainings(experiment.runs) if "environment" in record]
    return rendered(
        "origin.html",
        name=experiment.name,
        provenance=experiment.provenance,
        hours=sum(row["seconds"] for row in experiment.training) / 3600,
        manifest=read_manifest(experiment.prepared),
        observed=experiment.observed,
        environment=[entry for number, entry in enumerate(environments) if entry not in environments[:number]],
        settings=settings.read_text(encoding="utf-8") if settings.is_file() else None,
    )


def inlined(figures: Iterable[tuple[Drawing, Path]]) -> list[Row]:
    """Return the title and the SVG element of each figure."""
    return [
        {
            "title": drawing.caption,
            "svg": inline(path.read_text(encoding="utf-8"), drawing.stem.replace("/", "-"), drawing.caption),
        }
        for drawing, path in figures
    ]


def trainings(runs: Path) -> list[tuple[Path, Row]]:
    """Return the folder and the record of each finished training."""
    records = [(path.parent, read_record(path)) for path in sorted(runs.glob("*/run.json"))]
    return [(folder, record) for folder, record in records if record["status"] == "finished"]


def training_curves(runs: Path) -> str:
    """Return a figure of the validation error in every training, a panel for each mask, norm and mode, or ""."""
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, ...], list[tuple[int, list[Row]]]] = {}
    for folder, record in trainings(runs):
        key = RunKey.from_record(record)
        table = read_table(folder / "training.csv", command("train"), numbers=("step", "validation_mse"))
        panels.setdefault((*key.setting.order, key.backprop), []).append((key.l_training or 0, table))
    if not panels:
        return ""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.0 + 2.9 * columns, 2.8 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    depths = sorted({depth for lines in panels.values() for depth, _ in lines})
    flat = list(axes.ravel())
    for axis in flat[len(panels) :]:
        axis.remove()
    for axis, (key, lines) in zip(flat, sorted(panels.items()), strict=False):
        for depth, table in sorted(lines, key=lambda line: line[0]):
            colour = plt.get_cmap("viridis")(0.9 * depths.index(depth) / max(1, len(depths) - 1))
            steps, errors = ([row[column] for row in table] for column in ("step", "validation_mse"))
            axis.plot(steps, errors, color=colour, label=f"L = {depth}")
        axis.set(title=f"{key[2]}\n{key[1]}, {key[0]}", xlabel="step")
    for row in axes:
        row[0].set_ylabel("validation MSE")
    flat[len(panels) - 1].legend(fontsize=7)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return inline(buffer.getvalue(), "curves", "Validation error during training")


def best_operators(runs: Path) -> list[Row]:
    """Return pictures of the DCT and, for each mask, norm and mode, of the operator with the best validation MSE."""
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
        initial = np.asarray(dct(np.eye(max(m, n)), norm="ortho", axis=0))[:m, :n]
        if not found:
            found.append({"name": "DCT", "image": image(diverging(initial)), "change": None, "largest": None})
        change = learned - initial
        largest = float(np.abs(change).max())
        images = {"image": image(diverging(learned)), "change": image(diverging(change))}
        found.append({"name": folder.name, **images, "largest": largest})
    return found


def sentences(folder: Path, observed: str) -> list[Row]:
    """Return the test sentences to listen to and their restorations, with audio and spectrogram as data URIs.

    `observed` is the name of the unrestored sentences.
    """
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
        kind = "observed" if take["restoration"] == observed else take["restoration"]
        number = BASELINES.index(kind) if kind in BASELINES else len(BASELINES)
        return number, kind, take["step_norm"] or "", take["primal_mask"] or ""

    return [{"name": name, "takes": sorted(takes, key=order)} for name, takes in found.items()]
