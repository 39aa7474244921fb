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

CONF = str(Path(__file__).resolve().parents[3] / "conf")
MOST = 10**9  # the upper bound of counts


def setting(default: Any, check: Callable[..., object], *limits: Any, symbol: str = "") -> Any:
    """Return a dataclass field whose value `check_settings` checks by `check(name, value, *limits)` unless it is None.

    Args:
        default: the default value.
        check: one of the checks of `pdunroll.errors`.
        limits: the further arguments of the check.
        symbol: the paper's symbol, which error messages show after the name.
    """
    return field(default=default, metadata={"check": check, "limits": limits, "symbol": symbol})


@dataclass
class Data:
    """The corpus, its frames and their degradation."""

    name: str = MISSING  # name of the corpus in tables and figures
    root: str | None = None  # folder of audio files, for sources that read one
    source: Any = MISSING  # the corpus, a pdunroll.speech.sources.Source
    frame_length: int = setting(320, require_integer, 1, 10**6)  # n, the number of samples in a frame
    bits: int = setting(4, require_integer, 1, 32)  # bits of the quantizer
    level: float | None = setting(None, require_share)  # clipping level as a share of the peak; null: none
    missing: float = setting(0.0, require_within, 0, 0.99)  # share of samples that are lost


@dataclass
class Network:
    """The unrolled algorithm: its size and its step sizes."""

    iterations: int = setting(10, require_integer, 1, 10**6, symbol="L")  # L, in training
    rows: int | None = setting(None, require_integer, 1, 10**6, symbol="m")  # m, the number of rows of K; null: n
    step_ratio: float = setting(10.0, require_within, 1e-6, 1e6)  # sqrt(sigma / tau)
    extrapolation: float = setting(1.0, require_within, 0, 1)  # theta
    # norm of K in the step sizes: frobenius as published, or spectral for the largest steps allowed
    step_norm: str = setting("frobenius", require_choice, ("frobenius", "spectral"))
    learned_steps: bool = False  # learn sigma and tau together with K, starting from these
    steps_rate: float = setting(1.0, require_positive)  # their learning rate, relative to that of K


@dataclass
class Optimization:
    """Learning rate, batches and validation.

    The released code has adam_epsilon=1e-7 (the default of Keras), decay_counts=frames and shuffle_buffer=1000.
    """

    learning_rate: float = setting(1e-5, require_positive)  # learning rate of the first step
    final_learning_rate: float = setting(1e-8, require_positive)  # learning rate of the last step
    adam_epsilon: float = setting(1e-8, require_positive)  # epsilon of Adam; 1e-7 in the released code
    # what the schedule counts: steps, or frames as in the released code, by which the rate hardly falls
    decay_counts: str = setting("steps", require_choice, ("steps", "frames"))
    epochs: int = setting(20, require_integer, 1, MOST)  # passes over the training frames
    batch_size: int = setting(32, require_integer, 1, MOST)  # frames in a batch
    shuffle_buffer: int | None = setting(None, require_integer, 1, MOST)  # size in frames; null: shuffle all frames
    train_frames: int | None = setting(None, require_integer, 1, MOST)  # number drawn for each epoch; null: all
    validation_frames: int | None = setting(1024, require_integer, 1, MOST)  # number drawn once; null: all
    validations_per_epoch: int = setting(1, require_integer, 1, MOST)  # number, evenly spaced


@dataclass
class Trainer:
    """The device, which does not change what is learned, and further options of Lightning's Trainer, which may."""

    accelerator: str = setting("cpu", require_choice, ("cpu", "gpu"))  # cpu or gpu
    threads: int = setting(1, require_integer, 1, MOST)  # threads of torch in each process
    options: dict[str, Any] = field(default_factory=dict)  # Lightning's, such as gradient_clip_val

    @property
    def usable_threads(self) -> int:
        """The number of threads, limited to the number of cores."""
        return min(self.threads, os.cpu_count() or 1)


@dataclass
class Tracking:
    """Weights & Biases; the CSV tables are written in any case."""

    mode: str = setting("offline", require_choice, ("offline", "online", "disabled"))  # offline, online or disabled
    project: str = "pdunroll"  # project on Weights & Biases
    entity: str | None = None  # user or team; null: that of the login


@dataclass
class Evaluation:
    """Test errors along the iterations and at the certified optimum."""

    runs: str = MISSING  # folder of the trainings
    iterations: int = setting(100_000, require_integer, 1, MOST)  # largest number of iterations in inference
    points: int = setting(100, require_integer, 1, MOST)  # least number of log-spaced iteration counts
    frames: int | None = setting(1024, require_integer, 1, MOST)  # number of test frames, drawn by the seed; null: all
    seed: int = 0  # seed of the drawn frames
    tolerance: float = setting(1e-6, require_positive)  # relative duality gap of certified optima
    max_iterations: int = setting(100_000, require_integer, 1, MOST)  # limit for finding a certified optimum
    batch_size: int = setting(256, require_integer, 1, MOST)  # number of frames processed together
    jobs: int | None = setting(None, require_integer, 1, MOST)  # operators in parallel, a thread each; null: all cores


@dataclass
class Theory:
    """The operators, frames and iterations for which the theorems are measured."""

    runs: list[str] = field(default_factory=list)  # folders of trained operators to measure beside the DCT
    frames: int = setting(64, require_integer, 1, MOST)  # number of measured frames, whose optima are vertices
    count_frames: int = setting(256, require_integer, 1, MOST)  # number of test frames to draw them from
    iterations: int = setting(100_000, require_integer, 100, MOST)  # largest L and largest b
    seed: int = 0  # seed of the drawn frames


@dataclass
class Quality:
    """Speech quality over whole test sentences."""

    sentences: int | None = setting(12, require_integer, 1, MOST)  # number, drawn with the seed; null: all
    listen: int = setting(3, require_integer, 0, MOST)  # number of them to write as audio
    seed: int = setting(0, require_integer, 0)  # seed of the drawn sentences
    shifts: int = setting(8, require_integer, 1, MOST)  # shifted grids to average over, beside a single one
    tolerance: float = setting(1e-2, require_positive)  # relative duality gap of the restored frames
    max_iterations: int = setting(20_000, require_integer, 1, MOST)  # limit for reaching the tolerance
    jobs: int | None = setting(None, require_integer, 1, MOST)  # operators in parallel, a thread each; null: all cores


@dataclass
class Figures:
    """What the figures show."""

    l_training: list[int] | None = None  # L whose curves the interpretability figure shows; null: all
    step_norms: list[str] | None = None  # norms that the paper's two figures show; null: all that were trained
    regime_borders: list[float] = field(default_factory=lambda: [35.0, 150.0])  # L between the paper's regimes
    runtime: bool = True  # show training times in Figure 3, and judge them; false if the machine was busy


@dataclass
class Verdicts:
    """The thresholds by which claims are judged."""

    margin: float = setting(0.01, require_share)  # relative difference of errors that counts as none
    time_margin: float = setting(0.25, require_share)  # allowed relative deviation from a claimed time
    memory_margin: float = setting(0.05, require_share)  # growth, relative to that of full, that counts as none
    confidence: float = setting(0.95, require_share)  # confidence level of the intervals
    resamples: int = setting(2000, require_integer, 100, MOST)  # number of bootstrap resamples
    seed: int = setting(0, require_integer, 0)  # seed of the resamples


@dataclass
class Config:
    """All settings of a command."""

    name: str = setting(MISSING, require_name)  # name of the experiment: its folder in outputs/ and multirun/
    run: str = setting(MISSING, require_name)  # name of a training: its folder in multirun/NAME/
    prepared: Path = MISSING  # folder of the prepared frames
    seed: int = setting(0, require_integer, 0, 2**32 - 1)  # seed of a training
    retrain: bool = False  # train finished runs again if another version of pdunroll made them
    data: Data = MISSING
    backprop: dict[str, Any] = MISSING  # the backward pass; each file of the group explains its settings
    objective: dict[str, Any] = MISSING  # the loss, a pdunroll.training.objectives.Objective
    algorithm: dict[str, Any] = MISSING  # the solver for certified optima, a pdunroll.Algorithm
    network: Network = field(default_factory=Network)
    optimization: Optimization = field(default_factory=Optimization)
    trainer: Trainer = MISSING
    optimizer: dict[str, Any] = MISSING  # a torch.optim.Optimizer, called with the parameters and lr
    schedule: dict[str, Any] | None = None  # a torch LRScheduler, called with the optimizer; null: linear decay
    callbacks: dict[str, Any] = field(default_factory=dict)  # further Lightning callbacks, under arbitrary names
    logger: dict[str, Any] = field(default_factory=dict)  # further Lightning loggers, under arbitrary names
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
            "objective": self.objective if self.objective["label"] else None,  # None for the error after L iterations
            "optimizer": self.optimizer if self.optimizer != adam else None,  # as in records made before this setting
            "schedule": self.schedule,
            "trainer": self.trainer.options,
            "callbacks": self.callbacks,
        }
        network = asdict(self.network)
        if not network["learned_steps"]:  # as in records made before these settings
            del network["learned_steps"], network["steps_rate"]
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
        """The folder of the tables and figures of this experiment."""
        return Path("outputs") / self.name


def _recorded(mode: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a mode without an unused `checkpoint_every`, so that older records match."""
    kept = {name: value for name, value in mode.items() if (name, value) != ("checkpoint_every", None)}
    return {name: _recorded(value) if isinstance(value, dict) else value for name, value in kept.items()}


def check_settings(config: Config) -> None:
    """Raise `InputError` naming the first setting that is out of range or does not exist."""
    sections = [("", config), *((f"{name}.", node) for name, node in vars(config).items() if is_dataclass(node))]
    for prefix, node in sections:
        if unknown := set(vars(node)) - {own.name for own in fields(node)}:
            raise InputError(f"{prefix}{min(unknown)} is not a setting; --help lists them")
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
    """Raise `InputError` unless a node of the configuration names a class by `_target_`."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise InputError(f"{name} must be a mapping with a _target_, got {node!r}; see the files in {CONF}")
