"""Write an experiment as one HTML file that embeds all it shows."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, one_line_errors, settings
from pdunroll.report import page


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    """Write report.html."""
    with one_line_errors():
        config = settings(cfg)
        page.write(config.outputs, config.name, runs=Path(config.evaluation.runs), prepared=config.prepared)
