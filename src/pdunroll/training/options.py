"""Options of a training that are plain numbers and words, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from pdunroll.errors import InputError, require_choice, require_integer, require_positive

MOST = 10**9  # the largest number of anything that is counted


@dataclass
class Optimization:
    """Adam with a linearly decaying rate.

    The released code has adam_epsilon=1e-7 (Keras' default), decay_counts=frames and shuffle_buffer=1000.
    """

    learning_rate: float = 1e-5
    final_learning_rate: float = 1e-8
    adam_epsilon: float = 1e-8
    decay_counts: str = "steps"  # or "frames": the rate then hardly falls
    epochs: int = 20
    batch_size: int = 32  # frames
    shuffle_buffer: int | None = None  # frames among which the next one is drawn; all if null
    train_frames: int | None = None  # frames drawn for each epoch; all if null
    validation_frames: int | None = 1024  # drawn once; all if null
    validations_per_epoch: int = 1

    def __post_init__(self) -> None:
        require_positive("optimization.learning_rate", self.learning_rate)
        require_positive("optimization.final_learning_rate", self.final_learning_rate)
        if self.final_learning_rate > self.learning_rate:
            raise InputError(
                f"optimization.final_learning_rate must be at most optimization.learning_rate, {self.learning_rate:g}, "
                f"got {self.final_learning_rate:g}"
            )
        require_positive("optimization.adam_epsilon", self.adam_epsilon)
        require_choice("optimization.decay_counts", self.decay_counts, ("steps", "frames"))
        for name in (
            "epochs", "batch_size", "validations_per_epoch", "train_frames", "validation_frames", "shuffle_buffer"
        ):  # fmt: skip
            if getattr(self, name) is not None:
                require_integer(f"optimization.{name}", getattr(self, name), 1, MOST)


@dataclass
class Tracking:
    """Weights & Biases; the CSV tables are written in any case."""

    mode: str = "offline"
    project: str = "pdunroll"
    entity: str | None = None  # user or team; the login's own if null

    def __post_init__(self) -> None:
        require_choice("tracking.mode", self.mode, ("offline", "online", "disabled"))
