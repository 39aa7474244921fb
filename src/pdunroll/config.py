"""The settings of the commands: their types, defaults and ranges, as conf/ composes them.

Hydra checks names and types against these dataclasses; `check_settings` checks the ranges that are declared beside the
fields.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pdunroll.errors import (
    InputError,
    require_choice,
    require_integer,
    require_name,
    require_positive,
    require_share,
    require_within,
)

CONF = str(Path(__file__).resolve().parents[2] / "conf")
MOST = 10**9  # the largest number of anything that is counted


def setting(default: Any, check: Callable[..., object], *limits: Any, symbol: str = "") -> Any:
    """Return a dataclass field whose value `check_settings` checks by `check(name, value, *limits)` unless it is None.

    Args:
        default: the default value.
        check: one of the checks of `pdunroll.errors`.
        limits: what the check takes after name and value.
        symbol: the paper's symbol, which a message shows after the name.
    """
    return field(default=default, metadata={"check": check, "limits": limits, "symbol": symbol})


@dataclass
class Data:
    """Where speech comes from, and how it is cut and degraded."""

    name: str = MISSING  # in tables and figures
    root: str | None = None  # a folder of audio, for the sources that read one
    source: Any = MISSING  # a pdunroll.speech.sources.Source
    frame_length: int = setting(320, require_integer, 1, 10**6)  # n, samples
    bits: int = setting(4, require_integer, 1, 32)  # of the quantizer
    level: float | None = setting(None, require_share)  # where samples are clipped, as a share of the peak; null: not
    missing: float = setting(0.0, require_within, 0, 0.99)  # share of samples


@dataclass
class Network:
    """The size and the step sizes of the unrolled algorithm."""

    iterations: int = setting(10, require_integer, 1, 10**6, symbol="L")  # in training
    rows: int | None = setting(None, require_integer, 1, 10**6, symbol="m")  # n if null
    step_ratio: float = setting(10.0, require_within, 1e-6, 1e6)  # sqrt(sigma / tau)
    extrapolation: float = setting(1.0, require_within, 0, 1)  # theta
    # ||K|| in the step sizes: as published, or "spectral" for the largest steps
    step_norm: str = setting("frobenius", require_choice, ("frobenius", "spectral"))
    learned_steps: bool = False  # learn sigma and tau with K, from these on


@dataclass
class Optimization:
    """Adam with a linearly decaying rate.

    The released code has adam_epsilon=1e-7 (the default of Keras), decay_counts=frames and shuffle_buffer=1000.
    """

    learning_rate: float = setting(1e-5, require_positive)  # of the first step
    final_learning_rate: float = setting(1e-8, require_positive)  # of the last step
    adam_epsilon: float = setting(1e-8, require_positive)  # 1e-7 in the released code
    decay_counts: str = setting("steps", require_choice, ("steps", "frames"))  # by "frames" the rate hardly falls
    epochs: int = setting(20, require_integer, 1, MOST)  # passes over the training frames
    batch_size: int = setting(32, require_integer, 1, MOST)  # frames
    shuffle_buffer: int | None = setting(None, require_integer, 1, MOST)  # frames to draw the next one from; null: all
    train_frames: int | None = setting(None, require_integer, 1, MOST)  # drawn for each epoch; null: all
    validation_frames: int | None = setting(1024, require_integer, 1, MOST)  # drawn once; null: all
    validations_per_epoch: int = setting(1, require_integer, 1, MOST)  # evenly spaced


@dataclass
class Trainer:
    """The machine's part, which does not change what is learned, and Lightning's further options, which may."""

    accelerator: str = setting("cpu", require_choice, ("cpu", "gpu"))  # cpu or gpu
    threads: int = setting(1, require_integer, 1, MOST)  # of torch, in each process
    options: dict[str, Any] = field(default_factory=dict)  # of Lightning's Trainer, such as gradient_clip_val

    @property
    def usable_threads(self) -> int:
        """The number of threads, at most that of the machine's cores."""
        return min(self.threads, os.cpu_count() or 1)


@dataclass
class Tracking:
    """Weights & Biases; the CSV tables are written in any case."""

    mode: str = setting("offline", require_choice, ("offline", "online", "disabled"))  # disabled by tracking=off
    project: str = "pdunroll"  # on Weights & Biases
    entity: str | None = None  # user or team; the login's own if null


@dataclass
class Evaluation:
    """The test error after every number of iterations."""

    runs: str = MISSING  # folder of the trainings
    iterations: int = setting(100_000, require_integer, 1, MOST)  # L_inference
    points: int = setting(100, require_integer, 1, MOST)  # at least so many numbers of iterations, log-spaced
    frames: int | None = setting(1024, require_integer, 1, MOST)  # test frames, drawn with the seed; null: all
    seed: int = 0  # of what is drawn
    tolerance: float = setting(1e-6, require_positive)  # relative duality gap of the certified optima
    max_iterations: int = setting(100_000, require_integer, 1, MOST)  # of the algorithm that finds them
    batch_size: int = setting(256, require_integer, 1, MOST)  # frames at a time
    jobs: int | None = setting(None, require_integer, 1, MOST)  # operators side by side, a thread each; null: all cores


@dataclass
class Theory:
    """Which theorems are measured where."""

    runs: list[str] = field(default_factory=list)  # trained operators beside the DCT, as folder names
    frames: int = setting(64, require_integer, 1, MOST)  # vertex frames that are measured
    count_frames: int = setting(256, require_integer, 1, MOST)  # test frames, drawn with the seed, that begin with them
    iterations: int = setting(100_000, require_integer, 100, MOST)  # largest L and b
    seed: int = 0  # of what is drawn


@dataclass
class Quality:
    """Speech quality over whole test sentences."""

    sentences: int | None = setting(12, require_integer, 1, MOST)  # drawn with the seed; null: all
    listen: int = setting(3, require_integer, 0, MOST)  # of them, written as audio
    seed: int = setting(0, require_integer, 0)  # of what is drawn
    shifts: int = setting(8, require_integer, 1, MOST)  # grids of frames to average over, beside a single one
    tolerance: float = setting(1e-2, require_positive)  # relative duality gap
    max_iterations: int = setting(20_000, require_integer, 1, MOST)  # of the algorithm
    jobs: int | None = setting(None, require_integer, 1, MOST)  # operators side by side, a thread each; null: all cores


@dataclass
class Figures:
    """What the figures show."""

    l_training: list[int] | None = None  # curves of the interpretability figure; all if null
    step_norms: list[str] | None = None  # panels of the two figures of the paper; all that were trained if null
    regime_borders: list[float] = field(default_factory=lambda: [35.0, 150.0])  # in L, between the paper's regimes
    runtime: bool = True  # bars of the seconds that trainings took, which mean nothing on a machine that was busy


@dataclass
class Verdicts:
    """When a claim holds."""

    margin: float = setting(0.01, require_share)  # share of the error below which differences do not count
    time_margin: float = setting(0.25, require_share)  # by which a time may differ from the claimed one
    memory_margin: float = setting(0.05, require_share)  # share of full's growth that counts as constant
    confidence: float = setting(0.95, require_share)  # of the intervals
    resamples: int = setting(2000, require_integer, 100, MOST)  # of the bootstrap
    seed: int = setting(0, require_integer, 0)  # of what is drawn


@dataclass
class Config:
    """All settings of a command."""

    name: str = setting(MISSING, require_name)  # folder below outputs/ and multirun/
    run: str = setting(MISSING, require_name)  # folder of one training below that
    prepared: Path = MISSING  # folder of the prepared frames
    seed: int = setting(0, require_integer, 0, 2**32 - 1)  # of a training
    retrain: bool = False  # train finished runs again that were made by other code of pdunroll
    data: Data = MISSING
    backprop: dict[str, Any] = MISSING  # the backward pass; each file of the group explains its settings
    objective: dict[str, Any] = MISSING  # what is minimized, a pdunroll.training.objectives.Objective
    algorithm: dict[str, Any] = MISSING  # a pdunroll.Algorithm, for certified optima
    network: Network = field(default_factory=Network)
    optimization: Optimization = field(default_factory=Optimization)
    trainer: Trainer = MISSING
    optimizer: dict[str, Any] = MISSING  # a torch.optim.Optimizer, as a partial that is given the parameters and lr
    schedule: dict[str, Any] | None = None  # a torch LRScheduler, stepped every step; null: the rate falls linearly
    callbacks: dict[str, Any] = field(default_factory=dict)  # further callbacks of Lightning, by any name
    logger: dict[str, Any] = field(default_factory=dict)  # further loggers of Lightning, by any name
    tracking: Tracking = MISSING
    evaluation: Evaluation = field(default_factory=Evaluation)
    theory: Theory = field(default_factory=Theory)
    figures: Figures = field(default_factory=Figures)
    verdicts: Verdicts = field(default_factory=Verdicts)
    quality: Quality = field(default_factory=Quality)

    @property
    def scientific(self) -> dict[str, Any]:
        """The settings that a training's result depends on."""
        adam = {"_target_": "torch.optim.Adam", "_partial_": True, "eps": self.optimization.adam_epsilon, "fused": True}
        own = {
            "objective": self.objective if self.objective["label"] else None,  # none for the error after L iterations
            "optimizer": self.optimizer if self.optimizer != adam else None,  # as in records from before the setting
            "schedule": self.schedule,
            "trainer": self.trainer.options,
            "callbacks": self.callbacks,
        }
        network = asdict(self.network)
        if not network["learned_steps"]:  # as in records from before the setting
            del network["learned_steps"]
        data, degraded = self.data, {"level": self.data.level, "missing": self.data.missing}
        return {
            "seed": self.seed,
            "data": {
                **{"name": data.name, "frame_length": data.frame_length, "bits": data.bits},
                **{name: given for name, given in degraded.items() if given},
            },
            "backprop": _recorded(self.backprop),
            "network": network,
            "optimization": asdict(self.optimization),
            **{name: given for name, given in own.items() if given},
        }

    @property
    def outputs(self) -> Path:
        """Where the tables and figures of this experiment are."""
        return Path("outputs") / self.name


def _recorded(mode: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a mode without `checkpoint_every` where it is not used, as older records hold them."""
    kept = {name: value for name, value in mode.items() if (name, value) != ("checkpoint_every", None)}
    return {name: _recorded(value) if isinstance(value, dict) else value for name, value in kept.items()}


def check_settings(config: Config) -> None:
    """Raise `InputError` that names the first setting out of its range, or one that does not exist."""
    sections = [("", config), *((f"{name}.", node) for name, node in vars(config).items() if is_dataclass(node))]
    for prefix, node in sections:
        if unknown := set(vars(node)) - {own.name for own in fields(node)}:
            raise InputError(f"{prefix}{min(unknown)} is no setting; --help lists them")
        for own in fields(node):
            value = getattr(node, own.name)
            if "check" in own.metadata and value is not None:
                symbol = f" ({own.metadata['symbol']})" if own.metadata["symbol"] else ""
                own.metadata["check"](f"{prefix}{own.name}{symbol}", value, *own.metadata["limits"])
    start, end = config.optimization.learning_rate, config.optimization.final_learning_rate
    if end > start:
        raise InputError(
            f"optimization.final_learning_rate must be at most optimization.learning_rate, {start:g}, got {end:g}"
        )
    require_integer("theory.count_frames", config.theory.count_frames, config.theory.frames)
    _require_target("data.source", config.data.source)
    _require_target("backprop.strategy", config.backprop.get("strategy"))
    _require_target("objective.loss", config.objective.get("loss"))
    _require_target("algorithm", config.algorithm)
    _require_target("optimizer", config.optimizer)
    if config.schedule is not None:
        _require_target("schedule", config.schedule)
    for group, nodes in (("callbacks", config.callbacks), ("logger", config.logger)):
        for name, node in nodes.items():
            _require_target(f"{group}.{name}", node)


def _require_target(name: str, node: object) -> None:
    """Raise `InputError` unless a node of the configuration says which class is to be built."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise InputError(f"{name} must be a mapping with a _target_, got {node!r}; see the files in {CONF}")
