"""Publish the dashboard of an experiment on Weights & Biases.  python -m pdunroll dashboard [experiment=...].

Logs the tables, figures and sentences of outputs/<name>/ as one run of job type "evaluation" beside the runs of the
trainings, and saves a workspace that shows both if tracking=online; saving it again replaces it. The specification of
the workspace is written to outputs/<name>/dashboard.json in any case.
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pdunroll.errors import InputError
from pdunroll.evaluation.tables import read_results
from pdunroll.files import read_json, read_table, write_json
from pdunroll.processes import command
from pdunroll.report.gallery import figures_in
from pdunroll.training.run_key import RunKey

if TYPE_CHECKING:
    from types import ModuleType

    from pdunroll.training.tracking import Tracking

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Contents(NamedTuple):
    """What the evaluation run logs; the keys are the names in the panels."""

    tables: dict[str, list[Row]]
    figures: dict[str, Path]
    sentences: list[tuple[Path, str]]  # audio and its caption


def publish(folder: Path, name: str, tracking: Tracking) -> None:
    """Write the specification, log the evaluation run and save the workspace."""
    if find_spec("wandb_workspaces") is None:
        raise InputError("the dashboard needs wandb-workspaces; run `pip install -e '.[dashboard]'`")
    from pdunroll.training.tracking import require_login

    path = folder / "dashboard.json"
    contents = collect(folder, name)
    known = read_json(path, ("saved",), dict[str, Any])["saved"] if path.is_file() else {}
    workspace = workspace_of(name, tracking.project, contents, tracking.entity or "")
    specification = {"project": tracking.project, "workspace": json.loads(dumped(workspace))}
    write_json(path, {**specification, "saved": known})
    if tracking.mode == "online":
        require_login()
    record(folder, name, tracking, contents)
    if tracking.mode == "online":
        saved = save(name, tracking, contents, known)
        write_json(path, {**specification, "saved": saved})
        log.info("workspace: %s", saved["workspace"]["url"])
    else:
        log.info(
            "%s is written; to publish it: `wandb login`, `wandb sync multirun/%s/*/wandb/offline-run-*`, "
            "`%s tracking=online`", path, name, command("dashboard", name),
        )  # fmt: skip


def collect(folder: Path, name: str) -> Contents:
    """Return the tables, figures and sentences in `folder`, outputs/<name>/.

    Raises:
        InputError: naming the command that makes a missing or damaged file.
    """
    from pdunroll.evaluation.tables import Sentence

    found = read_results(folder)
    tables = {part: found[part] for part in ("evaluation", "training")}
    tables["evaluation"] = [
        {"model": RunKey.from_row(row).label, "log10_l_inference": math.log10(row["l_inference"]), **row}
        for row in tables["evaluation"]
    ]
    tables["training"] = [{"model": RunKey.from_row(row).label, **row} for row in tables["training"]]
    for part in ("verdicts", "quality_summary"):
        if (folder / f"{part}.csv").is_file():
            again = command(part.split("_")[0], name)
            tables[part] = read_table(folder / f"{part}.csv", again, columns=("primal_mask", "step_norm"))
    figures = {drawing.stem: path for drawing, path in figures_in(folder, ".png").items()}
    index = folder / "audio" / "index.json"
    sentences = []
    for entry in read_json(index, kind=list[Sentence]) if index.is_file() else []:
        words = entry["name"], entry["restoration"], entry["primal_mask"], entry.get("step_norm")
        sentences.append((folder / "audio" / entry["file"], " ".join(filter(None, words))))
    for path, _ in sentences:
        if not path.is_file():
            raise InputError(f"{path} is missing; make it again with `{command('quality', name)}`")
    return Contents(tables, figures, sentences)


def record(folder: Path, name: str, tracking: Tracking, contents: Contents) -> None:
    """Log the evaluation run."""
    from pdunroll.training.run_folder import environment
    from pdunroll.training.tracking import tracked

    if tracking.mode == "disabled":
        return
    import wandb

    identity = "evaluation-" + re.sub(r"[^\w-]", "-", name)
    with tracked(
        tracking, folder, job_type="evaluation", group=name, name=f"{name} evaluation",
        tags=[name, "evaluation"], config={"name": name, "environment": environment()}, identity=identity,
    ) as tracker:  # fmt: skip
        assert tracker is not None
        logged: dict[str, Any] = {
            part: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows], allow_mixed_types=True)
            for part, rows in contents.tables.items()
        }
        logged |= {stem: wandb.Image(str(path)) for stem, path in contents.figures.items()}
        if contents.sentences:
            logged["sentences"] = [wandb.Audio(str(path), caption=caption) for path, caption in contents.sentences]
        tracker.log(logged)
        counted = contents.tables.get("verdicts", [])
        for word in ("holds", "does not hold", "undecided"):
            tracker.summary[f"verdicts {word}"] = sum(row["verdict"] == word for row in counted)


def libraries() -> tuple[ModuleType, ModuleType]:
    """Import `wandb_workspaces.workspaces` and `.reports.v2` without their warnings about pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    return workspaces, reports


def panels(contents: Contents) -> dict[str, list[Any]]:
    """Return the panels by their headings, first those of the trainings' runs, then those of the evaluation run."""
    _, wr = libraries()
    depth, best = wr.Config("network.iterations"), wr.SummaryMetric("best_validation_mse")

    def curve(metric: str, title: str, log_y: bool = True) -> Any:
        return wr.LinePlot(title=title, x="step", y=[metric], log_y=log_y, title_x="step")

    def series(value: str, title: str) -> Any:
        return wr.CustomChart(
            query={"summaryTable": {"tableKey": "evaluation"}},
            chart_name="wandb/lineseries/v0",
            chart_fields={"step": "log10_l_inference", "lineKey": "model", "lineVal": value},
            chart_strings={"title": title, "xname": "log10 of the iterations in inference"},
        )

    found = {
        "Training": [
            curve("validation_mse", "Validation MSE"),
            curve("train_mse", "Training MSE"),
            curve("gradient_norm", "Gradient norm"),
            curve("operator_norm", "||K||_2", log_y=False),
            curve("learning_rate", "Learning rate", log_y=False),
        ],
        "Against L in training": [
            wr.ScatterPlot(title="Best validation MSE against L", x=depth, y=best, log_x=True, log_y=True),
            wr.BarPlot(title="Seconds of training", metrics=[wr.SummaryMetric("seconds")]),
        ],
        "Operators": [wr.MediaBrowser(media_keys=["operator", "operator_change"])],
        "Iterations in inference": [series("mse", "Test MSE")],
    }
    if contents.figures:
        found["Figures"] = [wr.MediaBrowser(media_keys=list(contents.figures))]
    tables = [part for part in ("verdicts", "quality_summary") if part in contents.tables]
    if tables:
        found["Verdicts and speech quality"] = [wr.WeavePanelSummaryTable(table_name=part) for part in tables]
    if contents.sentences:
        found["Sentences"] = [wr.MediaBrowser(media_keys=["sentences"])]
    return found


# Runs of one group differ only in their seed.
GROUPS = ("backprop.name", "backprop.primal_mask", "network.step_norm", "network.iterations")


def workspace_of(name: str, project: str, contents: Contents, entity: str | None) -> Any:
    """Return the workspace: all panels, with the runs grouped by mode, mask, norm and L."""
    ws, _ = libraries()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"pdunroll {name}",
        sections=[ws.Section(name=title, panels=own, is_open=True) for title, own in panels(contents).items()],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=f"Metric('Group') == {name!r}", groupby=[ws.Config(key) for key in GROUPS]
        ),
    )


def dumped(view: Any) -> str:
    """Return a workspace as JSON, as it is sent."""
    return view._to_model().model_dump_json(by_alias=True, exclude_none=True)


def save(name: str, tracking: Tracking, contents: Contents, known: Row) -> Row:
    """Save the workspace, replacing the one that was saved before; return its address."""
    import requests
    import wandb
    from wandb.errors import Error

    try:
        entity = tracking.entity or wandb.Api().default_entity
        workspace = workspace_of(name, tracking.project, contents, entity)
        place = f"{entity}/{tracking.project}"
        if known.get("place") == place:
            workspace._internal_id, workspace._internal_name = known["workspace"]["id"], known["workspace"]["name"]
        workspace.save()
    except (Error, requests.RequestException, ValueError) as error:
        raise InputError(f"Weights & Biases rejected the dashboard ({' '.join(str(error).split())})") from None
    own = {"id": workspace._internal_id, "name": workspace._internal_name, "url": workspace.url}
    return {"place": place, "workspace": own}
