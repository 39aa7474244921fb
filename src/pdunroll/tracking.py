"""Weights & Biases: one run a training, grouped by experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from pdunroll.config import Tracking
from pdunroll.errors import InputError


@contextmanager
def tracked(
    tracking: Tracking, folder: Path, *, group: str, name: str, tags: list[str], config: dict[str, Any]
) -> Iterator[list[Logger]]:
    """Open a run and give the loggers for it (none with tracking=off); finishes the run on the way out.

    Raises `InputError` when a login would be asked for.
    """
    if tracking.mode == "disabled":
        yield []
        return
    import wandb

    if tracking.mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        raise InputError(
            "tracking=online needs a login: run `wandb login` or set WANDB_API_KEY, or use tracking=offline"
        )
    with wandb.init(
        mode=tracking.mode,
        project=tracking.project,
        group=group,
        name=name,
        tags=tags,
        config=config,
        job_type="train",
        dir=folder,
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off"),
    ) as run:
        yield [WandbLogger(experiment=run)]
