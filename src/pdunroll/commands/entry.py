"""How a command meets its settings: one decorator that composes and checks them and turns bad input into one line."""

from __future__ import annotations

import errno
import functools
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pdunroll.config import CONF, Config, Trainer, check_settings
from pdunroll.errors import InputError
from pdunroll.processes import patient_streams, printable

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
# What the trainings of one table may differ in, and where they come from.
FREE = ("seed", "backprop.", "objective.", "network.iterations", "network.step_norm", "data.name")
Result = TypeVar("Result")
log = logging.getLogger(__name__)

ConfigStore.instance().store(name="schema", node=Config)


def entry(command: Callable[[Config], Result]) -> Callable[[], Result]:
    """Make a function of the settings a command that Hydra starts; bad input is one line and exit status 2.

    Hydra calls the command after the function's module, and pickles it for trainings in other processes.
    """

    @hydra.main(version_base="1.3", config_path=CONF, config_name="config")
    @functools.wraps(command)
    def main(cfg: DictConfig) -> Result:
        with one_line_errors():
            return command(settings(cfg))

    return main


def settings(config: DictConfig) -> Config:
    """Return the configuration as typed, checked, plain values; raise `InputError` naming the setting at fault."""
    if HydraConfig.initialized():  # paths are those of the folder that the command was started in
        os.chdir(HydraConfig.get().runtime.cwd)
    plain = OmegaConf.to_object(config)
    assert isinstance(plain, Config)
    check_settings(plain)
    return plain


def given(config: Config) -> dict[str, Any]:
    """Return the settings of trainings, by dotted names, that the command line sets and that all must agree in."""
    from pdunroll.training.run_folder import flat

    said = {override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task}
    return {
        name: value for name, value in flat(config.scientific).items() if name in said and not name.startswith(FREE)
    }


def require_machine(trainer: Trainer) -> None:
    """Raise `InputError` where a GPU is wanted that torch does not find; warn where there are fewer cores."""
    if trainer.accelerator == "gpu":
        import torch  # here, since it takes seconds to load

        if not torch.cuda.is_available():
            raise InputError("trainer=gpu needs a GPU, and torch finds none that it can use; take trainer=cpu")
    if trainer.usable_threads < trainer.threads:
        log.warning("trainer.threads=%d: %d are used, one a core", trainer.threads, trainer.usable_threads)


def build(node: Any) -> Any:
    """Return the object that a `_target_` of the configuration describes."""
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
    except Exception as error:
        if (line := _explained(error)) is None:
            raise
        print(printable(f"pdunroll: {line}"), file=sys.stderr)
        raise SystemExit(2) from None


def _explained(error: Exception) -> str | None:
    """Return what went wrong outside of the program and what helps, None for a bug."""
    if isinstance(error, MemoryError):
        return f"out of memory ({error}); take smaller settings"
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        what = error.filename or "the output"
        return f"{what} cannot be read or written ({error.strerror}); {SYSTEM_ERRORS[error.errno]}"
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_by = str(frame.f_globals.get("__name__")).partition(".")[0]
    known = isinstance(error, InputError | HydraException | OmegaConfBaseException)
    return _message(error) if known or raised_by in ("hydra", "omegaconf", "antlr4", "yaml") else None


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
    """Return what is wrong with the first argument that chooses none of the files of a group."""
    for argument in arguments:
        group, _, option = argument.partition("=")
        folder = Path(CONF) / group
        if "=" in argument and folder.is_dir() and not (folder / f"{option}.yaml").is_file():
            options = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            wanted = f"{group} must be one of {options}" if group else "a setting must have a name"
            return InputError(f"{wanted}, got {argument!r}")
    return InputError(f"a group must be one of the files in {CONF}/GROUP; --help lists them")


def _message(error: BaseException) -> str:
    """Return the message of the innermost cause: an `InputError` if there is one, else what OmegaConf or Hydra said."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    chosen = next((cause for cause in causes if isinstance(cause, InputError)), None)
    if chosen is not None:
        return str(chosen)
    text = " | ".join(str(cause).split("Config search path")[0].split("object_type=")[0] for cause in causes)
    return " ".join(text.split())
