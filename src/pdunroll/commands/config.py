"""The typed schema of conf/ and how an entry point meets its settings.

Hydra checks the schema's keys and types, `__post_init__` the ranges. An entry point reads the configuration once, by
`settings`, and hands plain arguments on: no configuration object travels further in.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pdunroll.errors import InputError, require_choice, require_integer, require_name, require_positive
from pdunroll.processes import patient_streams, printable
from pdunroll.training.options import MOST, Optimization, Tracking

# What the system refuses, and what may be done about it.
SYSTEM_ERRORS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "go to a folder that can be written to",
    errno.EACCES: "see to its permissions",
    errno.EPERM: "see to its permissions",
    errno.ENOTDIR: "remove the file that is in the way",
    errno.EISDIR: "remove the folder that is in the way",
    errno.EEXIST: "remove the file that is in the way",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ELOOP: "remove the link that points to itself",
}
log = logging.getLogger(__name__)
CONF = str(Path(__file__).resolve().parents[3] / "conf")


@dataclass
class Data:
    """Where speech comes from and what becomes of it."""

    name: str = MISSING
    root: str | None = None  # a folder of audio, for the sources that read one
    source: Any = MISSING  # a pdunroll.speech.sources.Source
    frame_length: int = 320  # n, samples
    bits: int = 4

    def __post_init__(self) -> None:
        require_target("data.source", self.source)
        require_integer("data.frame_length", self.frame_length, 1, 10**6)
        require_integer("data.bits", self.bits, 1, 32)


@dataclass
class Network:
    """The size and the step sizes of the unrolled algorithm."""

    iterations: int = 10  # L in training
    rows: int | None = None  # m; n if null
    step_ratio: float = 10.0
    extrapolation: float = 1.0  # theta
    step_norm: str = "frobenius"  # ||K|| in the step sizes: as published, or "spectral" for the largest steps

    def __post_init__(self) -> None:
        require_integer("network.iterations (L)", self.iterations, 1, 10**6)
        if self.rows is not None:
            require_integer("network.rows (m)", self.rows, 1, 10**6)
        if not 1e-6 <= self.step_ratio <= 1e6:
            raise InputError(f"network.step_ratio must be in [1e-6, 1e6], got {self.step_ratio}")
        if not 0 <= self.extrapolation <= 1:
            raise InputError(f"network.extrapolation must be in [0, 1], got {self.extrapolation}")
        require_choice("network.step_norm", self.step_norm, ("frobenius", "spectral"))


@dataclass
class Trainer:
    """The machine's part, which does not change what is learned, and Lightning's further options, which may."""

    accelerator: str = "cpu"
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)  # of Lightning's Trainer, such as gradient_clip_val

    def __post_init__(self) -> None:
        require_choice("trainer.accelerator", self.accelerator, ("cpu", "gpu"))
        require_integer("trainer.threads", self.threads, 1, MOST)

    @property
    def usable_threads(self) -> int:
        """The number of threads, at most that of the machine's cores."""
        return min(self.threads, os.cpu_count() or 1)


@dataclass
class Evaluation:
    """The test error after every number of iterations."""

    runs: str = MISSING  # folder of the trainings
    iterations: int = 100_000  # L_inference
    points: int = 100  # at least so many numbers of iterations, log-spaced
    frames: int | None = 1024  # test frames, drawn with the seed; all if null
    seed: int = 0
    tolerance: float = 1e-6  # relative duality gap of the certified optima
    max_iterations: int = 100_000  # of the algorithm that finds them
    batch_size: int = 256  # frames at a time
    jobs: int | None = None  # operators side by side, one thread each; one a core if null

    def __post_init__(self) -> None:
        for name in ("iterations", "points", "frames", "max_iterations", "batch_size", "jobs"):
            if getattr(self, name) is not None:
                require_integer(f"evaluation.{name}", getattr(self, name), 1, MOST)
        require_positive("evaluation.tolerance", self.tolerance)


@dataclass
class Theory:
    """Which theorems are measured where."""

    runs: list[str] = field(default_factory=list)  # trained operators beside the DCT, as folder names
    frames: int = 64  # vertex frames that are measured
    count_frames: int = 256  # test frames, drawn with the seed, among which they are the first
    iterations: int = 100_000  # largest L and b
    seed: int = 0

    def __post_init__(self) -> None:
        require_integer("theory.frames", self.frames, 1, MOST)
        require_integer("theory.count_frames", self.count_frames, self.frames)
        require_integer("theory.iterations", self.iterations, 100, MOST)


@dataclass
class Quality:
    """Speech quality over whole test sentences."""

    sentences: int | None = 12  # drawn with the seed; all if null
    listen: int = 3  # of them, written as audio
    seed: int = 0
    tolerance: float = 1e-5  # relative duality gap
    max_iterations: int = 20_000
    jobs: int | None = None  # operators side by side, one thread each; one a core if null

    def __post_init__(self) -> None:
        for name in ("sentences", "jobs"):
            if getattr(self, name) is not None:
                require_integer(f"quality.{name}", getattr(self, name), 1, MOST)
        require_integer("quality.listen", self.listen, 0, MOST)
        require_integer("quality.seed", self.seed, 0)
        require_integer("quality.max_iterations", self.max_iterations, 1, MOST)
        require_positive("quality.tolerance", self.tolerance)


@dataclass
class Figures:
    """What the figures show."""

    l_training: list[int] | None = None  # curves of the interpretability figure; all if null
    step_norms: list[str] | None = None  # panels of the two figures of the paper; all that were trained if null
    regime_borders: list[float] = field(default_factory=lambda: [35.0, 150.0])  # in L, between the paper's regimes


@dataclass
class Verdicts:
    """When a claim holds."""

    margin: float = 0.01  # share of the error below which a difference counts as none
    time_margin: float = 0.25  # by how much a time may differ from the claimed one
    memory_margin: float = 0.05  # share of full's growth below which memory is constant
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("margin", "time_margin", "memory_margin", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"verdicts.{name} must be between 0 and 1, got {getattr(self, name)}")
        require_integer("verdicts.resamples", self.resamples, 100, MOST)
        require_integer("verdicts.seed", self.seed, 0)


@dataclass
class Config:
    """All settings of a command, as conf/ composes them."""

    name: str = MISSING  # folder below outputs/ and multirun/
    run: str = MISSING  # folder of one training below that
    prepared: Path = MISSING  # folder of the prepared frames
    seed: int = 0
    retrain: bool = False  # train finished runs again that were made by other code of pdunroll
    data: Data = MISSING
    backprop: dict[str, Any] = MISSING
    algorithm: dict[str, Any] = MISSING  # a pdunroll.Algorithm, for certified optima
    network: Network = field(default_factory=Network)
    optimization: Optimization = field(default_factory=Optimization)
    trainer: Trainer = MISSING
    callbacks: dict[str, Any] = field(
        default_factory=dict
    )  # further callbacks of Lightning, each a _target_, by any name
    tracking: Tracking = MISSING
    evaluation: Evaluation = field(default_factory=Evaluation)
    theory: Theory = field(default_factory=Theory)
    figures: Figures = field(default_factory=Figures)
    verdicts: Verdicts = field(default_factory=Verdicts)
    quality: Quality = field(default_factory=Quality)

    def __post_init__(self) -> None:
        require_integer("seed", self.seed, 0, 2**32 - 1)
        require_target("backprop.strategy", self.backprop.get("strategy"))
        require_target("algorithm", self.algorithm)
        for name, node in self.callbacks.items():
            require_target(f"callbacks.{name}", node)
        require_name("name", self.name)
        require_name("run", self.run)

    @property
    def scientific(self) -> dict[str, Any]:
        """The settings that a training's result depends on."""
        own = {"trainer": self.trainer.options, "callbacks": self.callbacks}
        return {
            "seed": self.seed,
            "data": {"name": self.data.name, "frame_length": self.data.frame_length, "bits": self.data.bits},
            "backprop": self.backprop,
            "network": asdict(self.network),
            "optimization": asdict(self.optimization),
            **{name: given for name, given in own.items() if given},
        }

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), the shape of K."""
        return self.network.rows or self.data.frame_length, self.data.frame_length

    @property
    def outputs(self) -> Path:
        """Where the tables and figures of this experiment are."""
        return Path("outputs") / self.name


def require_machine(trainer: Trainer) -> None:
    """Raise `InputError` where a GPU is wanted that torch does not find; say so where there are fewer cores."""
    if trainer.accelerator == "gpu":
        import torch  # here, since it takes seconds to load

        if not torch.cuda.is_available():
            raise InputError("trainer=gpu needs a GPU, and torch finds none that it can use; take trainer=cpu")
    if trainer.usable_threads < trainer.threads:
        log.warning("trainer.threads=%d: %d are used, one a core", trainer.threads, trainer.usable_threads)


def require_target(setting: str, node: object) -> None:
    """Raise `InputError` unless a node of the configuration says what is to be built of it."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise InputError(f"{setting} must be a mapping with a _target_, got {node!r}; see the files in {CONF}")


ConfigStore.instance().store(name="schema", node=Config)


def settings(config: DictConfig) -> Config:
    """The configuration as typed, checked, plain values; raises `InputError` naming the setting at fault."""
    if HydraConfig.initialized():  # paths are those of the folder that the command was started in
        os.chdir(HydraConfig.get().runtime.cwd)
    plain = OmegaConf.to_object(config)
    assert isinstance(plain, Config)
    for prefix, node in (("", plain), *((f"{name}.", part) for name, part in vars(plain).items())):
        if is_dataclass(node) and (unknown := set(vars(node)) - {field.name for field in fields(node)}):
            raise InputError(f"{prefix}{min(unknown)} is no setting; --help lists them")
    return plain


# what the trainings of one table may differ in, and where they come from
FREE = ("seed", "backprop.", "network.iterations", "network.step_norm", "data.name")


def given(config: Config) -> dict[str, Any]:
    """Return the settings of trainings, by dotted names, that the command line sets and that all must agree in."""
    from pdunroll.training.run_folder import flat

    said = {override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task}
    return {
        name: value for name, value in flat(config.scientific).items() if name in said and not name.startswith(FREE)
    }


def build(node: Any) -> Any:
    """The object that a `_target_` of the configuration describes."""
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn bad input, and errors of the system, into one line on stderr and exit status 2.

    Other exceptions are bugs and keep their traceback. An interrupt ends at once, with all processes that were started:
    what was being written is whole or not there.
    """
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    try:
        yield
    except KeyboardInterrupt:
        import psutil

        for child in psutil.Process().children(recursive=True):
            child.kill()
        if multiprocessing.parent_process() is None:
            print("pdunroll: interrupted; the same command goes on where it stood", file=sys.stderr, flush=True)
        os._exit(130)  # at once: nothing is waited for
    except (InputError, HydraException, OmegaConfBaseException) as error:
        print(printable(f"pdunroll: {_line(error)}"), file=sys.stderr)
        raise SystemExit(2) from None
    except MemoryError as error:
        print(printable(f"pdunroll: out of memory ({error}); take smaller settings"), file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        what = error.filename or "the output"
        line = f"pdunroll: {what} cannot be read or written ({error.strerror}); {SYSTEM_ERRORS[error.errno]}"
        print(printable(line), file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        if _raised_by(error) not in ("hydra", "omegaconf", "antlr4", "yaml"):
            raise
        print(f"pdunroll: {_line(error)}", file=sys.stderr)  # of settings that their parsers do not expect
        raise SystemExit(2) from None


def _raised_by(error: BaseException) -> str:
    """The package whose code raised an exception."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def run(main: Callable[[], object], *, composed: bool = True) -> None:
    """Call an entry point so that errors in composing the configuration (`composed`) are one line, too."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let them through, instead of a printout and status 1
    with patient_streams(), one_line_errors():
        if composed and not Path(CONF).is_dir():
            raise InputError(f"{CONF} is missing; the chain runs from a clone of the repository: pip install -e FOLDER")
        try:
            main()
        except ValueError as error:
            if str(error).startswith("Config group override"):  # Hydra does not say which
                raise _not_an_option(sys.argv[1:]) from None
            raise


def _not_an_option(arguments: list[str]) -> InputError:
    """What is wrong with the first argument that chooses none of the files of a group."""
    for argument in arguments:
        group, _, option = argument.partition("=")
        folder = Path(CONF) / group
        if "=" in argument and folder.is_dir() and not (folder / f"{option}.yaml").is_file():
            options = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            wanted = f"{group} must be one of {options}" if group else "a setting must have a name"
            return InputError(f"{wanted}, got {argument!r}")
    return InputError(f"a group must be one of the files in {CONF}/GROUP; --help lists them")


def _line(error: BaseException) -> str:
    """The message of the innermost cause: an `InputError` if there is one, else what OmegaConf or Hydra said."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    chosen = next((cause for cause in causes if isinstance(cause, InputError)), None)
    if chosen is not None:
        return str(chosen)
    text = " | ".join(str(cause).split("Config search path")[0].split("object_type=")[0] for cause in causes)
    return " ".join(text.split())
