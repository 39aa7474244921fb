"""Draw the paper's Figures 3 and 4 and write a short table of results."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, one_line_errors, settings
from pdunroll.report.figures import draw


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    """Draw the figures and write the table of results."""
    with one_line_errors():
        config = settings(cfg)
        options = config.figures
        lines = draw(
            config.outputs,
            regime_borders=options.regime_borders,
            l_training=options.l_training,
            step_norms=options.step_norms,
        )
        print(*lines, sep="\n")
