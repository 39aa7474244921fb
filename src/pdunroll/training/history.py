"""The table of a training, with one row per validation."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from pdunroll.files import write_table

log = logging.getLogger(__name__)


class History(pl.Callback):
    """Write a row per validation to training.csv, the loggers and the console; times exclude validation."""

    def __init__(self, path: Path, title: str, total_steps: int) -> None:
        self.path, self.title, self.total_steps = path, title, total_steps
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.rows, self.seconds = state_dict["rows"], state_dict["seconds"]

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Raise an interrupt again, which Lightning would turn into a status of its own."""
        if isinstance(exception, KeyboardInterrupt):
            raise exception

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log the rows of a resumed training again, since its loggers are new."""
        for row in self.rows:
            self._log(trainer, row)

    def _log(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        known = {key: value for key, value in row.items() if not math.isnan(value)}
        for logger in trainer.loggers:
            logger.log_metrics(known, step=int(row["step"]))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock that measures training alone."""
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop the clock, so that times exclude validation."""
        if not trainer.sanity_checking:
            self.seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write, log and print the row of this validation."""
        row = {"step": pl_module.global_step, **pl_module.latest, "seconds": self.seconds}
        self.rows.append(row)
        write_table(self.path, self.rows)
        self._log(trainer, row)
        log.info(
            "%s  step %d of %d  validation MSE %.4e  %.1f s",
            self.title, row["step"], self.total_steps, row["validation_mse"], row["seconds"],
        )  # fmt: skip
