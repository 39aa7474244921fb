"""Train one operator, or several with -m.  python -m pdunroll train [-m] [experiment=...] [sweep=...] [backprop=...].

Each training has a folder. Its run.json records the scientific settings, the data, and digests of the code. A finished
training with the same settings, data and strategy is skipped, even if pdunroll itself has changed, unless retrain=true.
A killed training is resumed if nothing has changed at all. Otherwise the folder is cleared and the training starts
again. A lock keeps two processes from training in one folder. A training that diverges is marked as failed; the others
of its sweep continue, and the sweep exits with status 1.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pdunroll.commands.config import Config
from pdunroll.commands.entry import build, entry, require_machine
from pdunroll.errors import DivergenceError
from pdunroll.processes import end_with_parent

log = logging.getLogger(__name__)


@entry
def main(config: Config) -> float:
    """Train one operator; return its best validation MSE, or NaN if it diverged in a sweep."""
    end_with_parent()
    require_machine(config.trainer)
    from pdunroll.report.style import diverging
    from pdunroll.training.train import train

    alone = HydraConfig.get().mode == RunMode.RUN
    folder = Path(HydraConfig.get().runtime.output_dir)
    own = folder / config.run if alone else folder
    try:
        return train(
            own,
            config.scientific,
            config.prepared,
            strategy=build(config.backprop["strategy"]),
            optimizer=build(config.optimizer),
            schedule=build(config.schedule) if config.schedule else None,
            objective=build(config.objective["loss"]),
            callbacks=[build(node) for node in config.callbacks.values()],
            loggers=[build({"save_dir": str(own), **node}) for node in config.logger.values()],
            accelerator=config.trainer.accelerator,
            threads=config.trainer.usable_threads,
            tracking=config.tracking,
            group=config.name,
            picture=diverging,
            retrain=config.retrain,
        )
    except DivergenceError as error:  # other trainings of the sweep continue
        if alone:
            raise
        log.error("%s failed: %s", config.run, error)
        return math.nan
