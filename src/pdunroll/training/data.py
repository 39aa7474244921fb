"""Batches of frames, in an order that depends only on the seed and the pass."""

from __future__ import annotations

import math

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pdunroll.speech.frames import Frames


class FrameData(pl.LightningDataModule):
    """Training and validation frames; the order of pass p depends only on the seed and p.

    Batches are pairs (y, x), each (batch_size, n), or (y, x, lower, upper) where frames have bounds. `fit` reads the
    training frames of a pass in as many parts as there are validations in it.

    Args:
        train: the training frames.
        validation: the validation frames.
        batch_size: number of frames in a training batch.
        seed: the seed of the order of the training frames.
        shuffle_buffer: number of frames among which the next one is drawn; all if None.
        train_frames: number of frames drawn for each pass; all if None.
        validation_frames: number of frames drawn once for validation; all if None.
        validations_per_epoch: number of validations in each pass.
        numbered: whether the last tensor of a training batch has the indices of its frames, (batch_size,).
    """

    def __init__(
        self,
        train: Frames,
        validation: Frames,
        *,
        batch_size: int = 32,
        seed: int = 0,
        shuffle_buffer: int | None = None,
        train_frames: int | None = None,
        validation_frames: int | None = 1024,
        validations_per_epoch: int = 1,
        numbered: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed, self.shuffle_buffer, self.numbered = batch_size, seed, shuffle_buffer, numbered
        self.train, self.validation = (
            TensorDataset(*map(torch.from_numpy, (frames.truth, frames.observation, *(frames.bounds or ()))))
            for frames in (train, validation)
        )
        if numbered:
            self.train = TensorDataset(*self.train.tensors, torch.arange(len(self.train)))
        self.frames_per_pass = min(len(self.train), train_frames or len(self.train))
        self.steps_per_pass = math.ceil(self.frames_per_pass / batch_size)
        self.validations_per_pass = min(validations_per_epoch, self.steps_per_pass)
        self.validated = shuffled(len(self.validation), None, seed=0)[:validation_frames]

    def train_dataloader(self) -> DataLoader:
        """Return the batches up to the next validation; Lightning calls this for each of these parts of a pass."""
        assert self.trainer is not None
        number, part = divmod(self.trainer.current_epoch, self.validations_per_pass)
        order = shuffled(len(self.train), self.shuffle_buffer, seed=(self.seed << 20) + number)[: self.frames_per_pass]
        first, last = (p * self.steps_per_pass // self.validations_per_pass for p in (part, part + 1))
        return batches(self.train, order[first * self.batch_size : last * self.batch_size], self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Return the validation frames, always in the same order."""
        return batches(self.validation, self.validated, 1024)


def batches(frames: TensorDataset, order: Tensor, batch_size: int) -> DataLoader:
    """Return a loader of batches in a given order, each indexed from the tensors at once."""
    return DataLoader(frames, sampler=order.split(batch_size), batch_size=None)


def shuffled(population: int, buffer: int | None, seed: int) -> Tensor:
    """Return the numbers 0 .. population - 1 in random order.

    With a `buffer`, they are shuffled like a stream: the next number is drawn from a buffer of this size and replaced
    there by the next one of the stream. A number then comes at most `buffer` places early, and neighbours stay close.
    """
    generator = torch.Generator().manual_seed(seed)
    if buffer is None or buffer >= population:
        return torch.randperm(population, generator=generator)
    held, order = list(range(buffer)), []
    for item, place in enumerate(torch.randint(buffer, (population - buffer,), generator=generator).tolist(), buffer):
        order.append(held[place])
        held[place] = item
    rest = torch.tensor(held)[torch.randperm(buffer, generator=generator)]
    return torch.cat([torch.tensor(order), rest])
