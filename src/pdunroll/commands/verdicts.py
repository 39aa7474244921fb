"""Judge which claims of the slides hold."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, one_line_errors, settings


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    """Judge the claims and print the verdicts."""
    with one_line_errors():
        config = settings(cfg)
        from dataclasses import asdict

        from pdunroll.claims.judge import judge

        text = judge(
            config.outputs,
            name=config.name,
            data=config.data.name,
            regime_borders=config.figures.regime_borders,
            **asdict(config.verdicts),
        )
        print(text)
