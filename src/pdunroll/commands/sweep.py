"""Hydra's callback around a run or a sweep: it checks all settings first and writes sweep.csv at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pdunroll.commands.config import Config
from pdunroll.commands.entry import require_machine, settings
from pdunroll.commands.start import one_line_errors
from pdunroll.errors import InputError


class Sweep(Callback):
    """The callback; it runs in the process of the command, while trainings may run in others or on other machines."""

    def __init__(self) -> None:
        self.jobs: dict[Path, Config] = {}  # the trainings by their folders

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the settings of a single run before anything is written."""
        with one_line_errors():
            task_settings(config)
            require_folder("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the settings of all trainings of a sweep, and log how many are to be run."""
        if config.hydra.job.name != "train":
            return
        with one_line_errors():
            from pdunroll.training.run_folder import RunFolder, identify
            from pdunroll.training.sweep import announce, claim

            side_by_side = require_jobs(config.hydra.launcher.get("n_jobs", 1))
            self.jobs = jobs_of(config)
            first = next(iter(self.jobs.values()))
            if "submitit" not in config.hydra.launcher._target_:  # the trainings run on this machine
                require_machine(first.trainer)
            require_folder("hydra.sweep.dir", config.hydra.sweep.dir)
            runs = [RunFolder(folder, identify(own.scientific, own.prepared)) for folder, own in self.jobs.items()]
            claim(Path(config.hydra.sweep.dir), runs)
            announce(runs[0].folder.parent, runs, side_by_side=side_by_side, retrain=first.retrain)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write sweep.csv, and print the failed trainings."""
        if self.jobs:
            with one_line_errors():
                from pdunroll.training.sweep import conclude, note_path

                note_path(Path(config.hydra.sweep.dir)).unlink(missing_ok=True)
                conclude(list(self.jobs))


def task_settings(config: DictConfig) -> Config:
    """Return the checked settings of a configuration that also has the settings of Hydra."""
    task = config.copy()
    with read_write(task), open_dict(task):
        del task["hydra"]
    return settings(task)


def require_folder(setting: str, folder: str) -> None:
    """Create a folder if it does not exist; raise `InputError` naming the setting if that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{setting}={folder} cannot be made ({error}); give another folder") from None


def jobs_of(config: DictConfig) -> dict[Path, Config]:
    """Return the checked settings of all trainings of the sweep by their folders.

    Raises:
        InputError: if two trainings would share a folder, or there is none.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = GlobalHydra.instance().config_loader()
    plain: Any = OmegaConf.to_container(config.hydra, resolve=False)  # each training resolves the interpolations
    swept = [f"{key}={value}" for key, value in (plain["sweeper"].get("params") or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*swept, *plain["overrides"]["task"]])
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    jobs: dict[Path, Config] = {}
    for own in batch:
        composed = loader.load_sweep_config(config, list(own))
        own_settings = task_settings(composed)
        folder = Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir
        if folder in jobs:
            raise InputError(
                f"two trainings of the sweep would go to {folder} ({' '.join(own)}); put what tells them apart into "
                f"`name`, such as 'name=rate${{optimization.learning_rate}}' prepared={own_settings.prepared}"
            )
        jobs[folder] = own_settings
    if not jobs:
        empty = next((part for part in swept if part.endswith("=")), " ".join(plain["overrides"]["task"]))
        raise InputError(f"the sweep has no training ({empty}); give each swept setting at least one value")
    return jobs


def require_jobs(number: object) -> int:
    """Return the number of parallel trainings, as n_jobs of joblib (-1: one per core)."""
    if isinstance(number, bool) or not isinstance(number, int) or number == 0:
        raise InputError(f"hydra.launcher.n_jobs must be an integer other than 0 (-1 for one per core), got {number!r}")
    return number
