"""Publish an experiment's dashboard on Weights & Biases."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, one_line_errors, settings


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    """Publish the dashboard of an experiment."""
    with one_line_errors():
        config = settings(cfg)
        from pdunroll.report.dashboard import publish
        from pdunroll.training.tracking import mode_in_environment

        with mode_in_environment(config.tracking):
            publish(config.outputs, config.name, config.tracking)
