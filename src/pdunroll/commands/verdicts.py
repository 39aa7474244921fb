"""Judge which claims of the slides hold."""

from __future__ import annotations

from pdunroll.commands.config import Config
from pdunroll.commands.entry import entry


@entry
def main(config: Config) -> None:
    """Judge the claims and print the verdicts."""
    from dataclasses import asdict

    from pdunroll.claims.judge import judge

    times = {} if config.figures.runtime else {"time_margin": None}
    text = judge(
        config.outputs,
        name=config.name,
        data=config.data.name,
        regime_borders=config.figures.regime_borders,
        **{**asdict(config.verdicts), **times},
    )
    print(text)
