"""Write an experiment as one HTML file that embeds all it shows."""

from __future__ import annotations

from pathlib import Path

from pdunroll.commands.entry import entry
from pdunroll.config import Config
from pdunroll.report import page


@entry
def main(config: Config) -> None:
    """Write outputs/<name>/report.html from the tables and figures that are there."""
    page.write(config.outputs, config.name, runs=Path(config.evaluation.runs), prepared=config.prepared)
