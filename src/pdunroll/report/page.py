"""Write the results of an experiment as one HTML file.  python -m pdunroll report [experiment=...].

Reads only files of outputs/<name>/ and multirun/<name>/. Writes outputs/<name>/report.html, which is self-contained and
opens offline. Its sections are the functions of `pdunroll.report.sections`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pdunroll.errors import InputError
from pdunroll.files import atomic
from pdunroll.processes import command
from pdunroll.report import registry, sections
from pdunroll.report.gallery import figures_in
from pdunroll.report.style import set_style

log = logging.getLogger(__name__)


def write(folder: Path, name: str, *, runs: Path, prepared: Path) -> None:
    """Write report.html, all results of an experiment in one file.

    Args:
        folder: outputs/<name>/, with the tables of results and the figures.
        name: the experiment.
        runs: the folder of the trainings.
        prepared: the folder of the frames.

    Raises:
        InputError: naming the command to run if the evaluation or its figures are missing.
    """
    path = folder / "report.html"
    page = render(folder, name, runs, prepared)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    log.info("%s  %.1f MB", path, path.stat().st_size / 1e6)


def render(folder: Path, name: str, runs: Path, prepared: Path) -> str:
    """Return the page; see `write`."""
    experiment = sections.Experiment.read(folder, name, runs, prepared)
    figures = figures_in(folder, ".svg")
    if missing := [drawing.stem for drawing in registry.drawn_by("figures") if drawing not in figures]:
        raise InputError(f"{folder}/{missing[0]}.svg is missing; make it with `{command('figures', name)}`")
    set_style()
    found = [
        {"name": section, "title": title, "html": html}
        for section, (title, show) in registry.SECTIONS.items()
        if (html := show(experiment))
    ]
    return sections.rendered(
        "page.html", name=name, provenance=experiment.provenance, observed=experiment.observed, sections=found
    )
