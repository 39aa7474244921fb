"""Write the results of an experiment as one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path

from pdunroll.commands.config import Config
from pdunroll.commands.entry import entry
from pdunroll.report import page


@entry
def main(config: Config) -> None:
    """Write outputs/<name>/report.html from the tables and figures of the experiment."""
    page.write(config.outputs, config.name, runs=Path(config.evaluation.runs), prepared=config.prepared)
