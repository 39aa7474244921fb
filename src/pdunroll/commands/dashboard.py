"""Publish an experiment's dashboard on Weights & Biases."""

from __future__ import annotations

from pdunroll.commands.config import Config
from pdunroll.commands.entry import entry


@entry
def main(config: Config) -> None:
    """Publish the dashboard of an experiment."""
    from pdunroll.report.dashboard import publish
    from pdunroll.training.tracking import mode_in_environment

    with mode_in_environment(config.tracking):
        publish(config.outputs, config.name, config.tracking)
