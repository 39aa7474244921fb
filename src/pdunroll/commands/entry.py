"""The decorator that makes a command of a function, and the checks of its settings."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pdunroll.commands import help
from pdunroll.commands.config import CONF, Config, Trainer, check_settings
from pdunroll.commands.start import one_line_errors
from pdunroll.errors import InputError

# The settings in which the trainings of one table may differ.
FREE = ("seed", "backprop.", "objective.", "network.iterations", "network.step_norm", "data.name")
Result = TypeVar("Result")
log = logging.getLogger(__name__)

ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(group="hydra/help", name="settings", node=help.NODE)


def entry(command: Callable[[Config], Result]) -> Callable[[], Result]:
    """Make a command of a function of the settings; invalid input gives one line and exit status 2.

    The command has the name and the module of the function, by which Hydra names it and pickles it for other processes.
    """

    @hydra.main(version_base="1.3", config_path=CONF, config_name="config")
    @functools.wraps(command)
    def main(cfg: DictConfig) -> Result:
        with one_line_errors():
            return command(settings(cfg))

    return main


def settings(config: DictConfig) -> Config:
    """Return the configuration as a checked `Config`; raise `InputError` naming an invalid setting."""
    if HydraConfig.initialized():  # relative paths refer to the folder in which the command was started
        os.chdir(HydraConfig.get().runtime.cwd)
    plain = OmegaConf.to_object(config)
    assert isinstance(plain, Config)
    check_settings(plain)
    return plain


def given(config: Config) -> dict[str, Any]:
    """Return the settings on the command line, by dotted names, that all trainings of a table must have."""
    from pdunroll.training.run_folder import flat

    said = {override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task}
    return {
        name: value for name, value in flat(config.scientific).items() if name in said and not name.startswith(FREE)
    }


def require_machine(trainer: Trainer) -> None:
    """Raise `InputError` if a GPU is needed and torch finds none; warn if there are fewer cores than threads."""
    if trainer.accelerator == "gpu":
        import torch  # here, since it takes seconds to load

        if not torch.cuda.is_available():
            raise InputError("trainer=gpu needs a GPU, and torch finds none that it can use; take trainer=cpu")
    if trainer.usable_threads < trainer.threads:
        log.warning("trainer.threads=%d: %d are used, one per core", trainer.threads, trainer.usable_threads)


def build(node: Any) -> Any:
    """Return the object that a `_target_` of the configuration describes."""
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all")
