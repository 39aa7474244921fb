"""Draw the paper's Figures 3 and 4 and write a short table of results."""

from __future__ import annotations

from pdunroll.commands.config import Config
from pdunroll.commands.entry import entry
from pdunroll.report.figures import draw


@entry
def main(config: Config) -> None:
    """Draw the figures and write the table of results."""
    options = config.figures
    lines = draw(
        config.outputs,
        regime_borders=options.regime_borders,
        l_training=options.l_training,
        step_norms=options.step_norms,
        runtime=options.runtime,
    )
    print(*lines, sep="\n")
