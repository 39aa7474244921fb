"""Lightning's training loop, from the start or from a checkpoint.

A pass over the training frames is an epoch of the protocol. Lightning's "epochs" are shorter, from one validation to
the next, since a killed training continues bit for bit only from the end of such an epoch.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment  # pyright: ignore[reportPrivateImportUsage]
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # pyright: ignore[reportPrivateImportUsage]

from pdunroll.errors import InputError
from pdunroll.files import atomic
from pdunroll.training.data import FrameData
from pdunroll.training.history import History
from pdunroll.training.module import UnrolledTraining

CHECKPOINT = "last.ckpt"
HISTORY = "training.csv"


def fit(
    module: UnrolledTraining,
    data: FrameData,
    folder: Path,
    *,
    epochs: int,
    title: str,
    accelerator: str = "cpu",
    loggers: list[Logger] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    **options: Any,
) -> History:
    """Train, from `folder`/last.ckpt on if it exists; write that file and training.csv.

    Args:
        module: the module, trained in place.
        data: its frames.
        folder: the folder of the checkpoint and of training.csv.
        epochs: the number of passes over the training frames.
        title: the name of the training in log lines.
        accelerator: "cpu" or "gpu".
        loggers: Lightning's loggers.
        callbacks: further callbacks.
        options: other options of Lightning's Trainer, such as gradient_clip_val.

    Returns:
        The rows of training.csv and the seconds of training.

    Raises:
        DivergenceError: if numbers are no longer finite.
        InputError: if the checkpoint is damaged, or the Trainer does not accept an option.
    """
    torch.ones(1).sqrt()  # with several threads, the first of a process can be inexact (PyTorch issue 188792)
    history = History(folder / HISTORY, title, epochs * data.steps_per_pass)
    resume = folder / CHECKPOINT
    checkpoint = ModelCheckpoint(
        folder, filename=Path(CHECKPOINT).stem, enable_version_counter=False, save_on_train_epoch_end=True
    )
    given: dict[str, Any] = {
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, **options
    }  # fmt: skip
    try:
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=epochs * data.validations_per_pass,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0 if resume.is_file() else -1,  # validation before the first step
            callbacks=[history, checkpoint, *callbacks],
            plugins=[Checkpoints(), LightningEnvironment()],  # on a cluster submitit requeues, not Lightning
            logger=loggers or False,
            default_root_dir=folder,
            **given,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        if not options:
            raise
        raise InputError(f"Lightning's Trainer does not take trainer.options {options} ({error})") from None
    with warnings.catch_warnings():  # warnings that do not concern the user
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.. is deprecated")
        warnings.filterwarnings("ignore", ".*does not have many workers")  # batches are slices of memory
        trainer.fit(module, datamodule=data, ckpt_path=resume if resume.is_file() else None, weights_only=True)
    return history


class Checkpoints(TorchCheckpointIO):
    """Checkpoints that are written atomically and loaded without running code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint and its checksum."""
        buffer = io.BytesIO()  # torch.save to a file hides the cause of a failure
        torch.save(checkpoint, buffer)
        with atomic(Path(path)) as temporary:
            temporary.write_bytes(buffer.getvalue() + checksum(buffer.getvalue()))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint; raise `InputError` if it is damaged."""
        content = Path(path).read_bytes()
        content, stored = content[:-CHECKSUM], content[-CHECKSUM:]
        if checksum(content) != stored:
            raise InputError(f"{path} is damaged (its checksum differs); remove it, and the training begins again")
        return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)


CHECKSUM = 32  # bytes at the end of a checkpoint


def checksum(content: bytes) -> bytes:
    """Return the SHA-256 of a checkpoint, since torch loads many damaged files without an error."""
    return hashlib.sha256(content).digest()
