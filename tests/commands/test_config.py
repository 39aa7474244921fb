"""Every file in conf/ composes and its objects can be built; wrong settings are one line."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger

import pdunroll
from pdunroll.commands.config import Config
from pdunroll.commands.entry import CONF, InputError, build, settings
from pdunroll.commands.help import explained
from pdunroll.speech.sources import IEEE, Folder, Synthetic
from pdunroll.training.objectives import Objective

GROUPS = (
    "data", "degradation", "backprop", "objective", "algorithm", "optimizer", "schedule", "callbacks", "logger",
    "experiment", "sweep", "trainer", "tracking",
)  # fmt: skip


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))


def composed(*overrides: str, hydra: bool = False):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def test_groups_are_those_of_the_folder():
    assert sorted(path.name for path in Path(CONF).iterdir() if path.is_dir()) == sorted([*GROUPS, "hydra"])
    assert options("data") == ["folder", "ieee", "synthetic"]
    assert options("backprop") == [
        "full", "implicit", "lastiterations", "onestep", "phantom", "piggyback", "truncated",
    ]  # fmt: skip
    assert options("optimizer") == ["adam", "adamw", "sgd"]
    assert options("schedule") == ["constant", "cosine"]
    assert options("callbacks") == ["early_stopping"]
    assert options("logger") == ["csv"]
    assert options("algorithm") == ["chambolle_pock", "halpern"]
    assert options("degradation") == ["clipped", "missing", "quantized", "quantized_clipped"]
    assert options("objective") == [
        "halpern", "learned_steps", "perceptual", "plain", "random_depth", "several_depths", "warm",
    ]  # fmt: skip
    assert options("experiment") == ["declip", "demo", "depths", "few", "future", "paper", "quick", "smoke"]
    regimes = ["regime1", "regime2", "regime3", "regimes"]
    assert options("sweep") == [
        "future_halpern",
        "future_plain",
        "future_random",
        "future_steps",
        "future_warm",
        *regimes,
    ]
    assert options("tracking") == ["off", "offline", "online"]


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_every_preset_is_instantiated(group, option):
    config = settings(composed(f"{group}={option}", "data.root=somewhere"))
    source, strategy = build(config.data.source), build(config.backprop["strategy"])
    optimizer = build(config.optimizer)([torch.zeros(2, requires_grad=True)], lr=1e-4)
    assert isinstance(optimizer, torch.optim.Optimizer)
    if config.schedule is not None:
        assert isinstance(build(config.schedule)(optimizer), torch.optim.lr_scheduler.LRScheduler)
    assert all(isinstance(build(node), Callback) for node in config.callbacks.values())
    assert all(isinstance(build({"save_dir": ".", **node}), Logger) for node in config.logger.values())
    assert isinstance(source, Synthetic | IEEE | Folder)
    assert isinstance(strategy, pdunroll.Backprop)
    if group == "backprop":
        assert config.backprop["name"] == option
        assert config.run.startswith(f"{option}{config.backprop.get('iterations', '')}-{strategy.primal_mask}-")
    assert isinstance(build(config.objective["loss"]), Objective)
    assert isinstance(build(config.algorithm), pdunroll.RestartedHalpern | pdunroll.PlainChambollePock)


@pytest.mark.parametrize(("backprop", "mask"), [*itertools.product(("full", "truncated"), ("active_set", "released"))])
def test_backprop_group_makes_the_strategy(backprop, mask):
    extra = ["backprop.iterations=7"] if backprop == "truncated" else []
    config = settings(composed(f"backprop={backprop}", f"backprop.primal_mask={mask}", *extra))
    wanted = {"full": pdunroll.Full(primal_mask=mask), "truncated": pdunroll.Truncated(primal_mask=mask, iterations=7)}
    assert build(config.backprop["strategy"]) == wanted[backprop]


def test_the_paper_preset_is_the_protocol():
    config = settings(composed("experiment=paper"))
    assert (config.data.name, config.data.bits, config.data.frame_length) == ("ieee", 4, 320)
    assert (config.network.step_ratio, config.network.extrapolation, config.network.rows) == (10.0, 1.0, None)
    o = config.optimization
    assert (o.learning_rate, o.final_learning_rate, o.epochs, o.batch_size) == (1e-5, 1e-8, 20, 32)
    assert (o.train_frames, o.validation_frames, o.decay_counts) == (None, 1024, "frames")
    assert (o.adam_epsilon, o.shuffle_buffer, config.network.step_norm) == (1e-7, 1000, "frobenius")
    assert (config.evaluation.iterations, config.evaluation.frames) == (100_000, 1024)


def test_experiments_win_over_the_root_and_sweeps_over_experiments():
    assert settings(composed("experiment=quick")).optimization.learning_rate == 1e-4
    assert settings(composed("experiment=quick")).data.name == "ieee"
    hydra = composed("experiment=quick", hydra=True).hydra
    assert hydra.sweeper.params["network.iterations"] == "10,30,80,200,1000"
    hydra = composed("experiment=quick", "sweep=regime3", hydra=True).hydra
    assert hydra.sweeper.params["network.iterations"] == "200,500,1000"
    hydra = composed("experiment=paper", hydra=True).hydra
    assert hydra.sweeper.params["network.iterations"] == "10,20,30,40,60,80,100,200,500,1000"
    hydra = composed("experiment=paper", "sweep=regime1", hydra=True).hydra
    assert hydra.sweeper.params["network.iterations"] == "10,20,30"


@pytest.mark.parametrize("launcher", ["joblib", "basic", "cluster", "submitit_local"])
def test_launchers(launcher):
    hydra = composed(f"hydra/launcher={launcher}", hydra=True).hydra
    assert Plugins.instance()._instantiate(hydra.launcher) is not None


def test_cell_folder_names_tell_cells_apart():
    def cell(*overrides: str) -> str:
        return settings(composed(*overrides)).run

    assert cell("network.iterations=100") == "full-active_set-frobenius-L100-seed0"
    names = {
        cell(*overrides)
        for overrides in itertools.product(
            ("backprop=full", "backprop=truncated"),
            ("backprop.primal_mask=active_set", "backprop.primal_mask=released"),
            ("network.step_norm=frobenius", "network.step_norm=spectral"),
            ("network.iterations=10", "network.iterations=100"),
            ("seed=0", "seed=1"),
        )
    }
    assert len(names) == 32
    assert cell("backprop=truncated", "backprop.iterations=10") != cell("backprop=truncated")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("network.iterations=0", "network.iterations"),
        ("network.rows=0", "network.rows"),
        ("network.step_ratio=0", "network.step_ratio"),
        ("network.extrapolation=1.5", "network.extrapolation"),
        ("network.step_norm=foo", "network.step_norm must be one of frobenius, spectral, got 'foo'"),
        ("optimization.adam_epsilon=0", "optimization.adam_epsilon"),
        ("optimization.adam_epsilon=nan", "optimization.adam_epsilon"),
        ("optimization.shuffle_buffer=0", "optimization.shuffle_buffer"),
        ("optimization.learning_rate=-1", "optimization.learning_rate"),
        ("optimization.final_learning_rate=0", "optimization.final_learning_rate"),
        ("optimization.learning_rate=nan", "optimization.learning_rate"),
        ("optimization.batch_size=0", "optimization.batch_size"),
        ("optimization.epochs=0", "optimization.epochs"),
        ("optimization.decay_counts=hours", "optimization.decay_counts"),
        ("data.bits=0", "data.bits"),
        ("data.bits=33", "data.bits"),
        ("data.frame_length=0", "data.frame_length"),
        ("seed=-1", "seed"),
        ("evaluation.iterations=0", "evaluation.iterations"),
        ("evaluation.tolerance=0", "evaluation.tolerance"),
        ("theory.frames=0", "theory.frames"),
        ("theory.count_frames=1", "theory.count_frames"),
        ("theory.iterations=10", "theory.iterations"),
        ("verdicts.margin=0", "verdicts.margin"),
        ("verdicts.confidence=1", "verdicts.confidence"),
        ("verdicts.resamples=99", "verdicts.resamples"),
        ("trainer.threads=0", "trainer.threads"),
        ("trainer.accelerator=tpu", "trainer.accelerator"),
        ("tracking.mode=loud", "tracking.mode"),
        ("name=a/b", "name"),
    ],
)
def test_settings_out_of_range_are_named(override, named):
    with pytest.raises(InputError, match=named.replace(".", r"\.")) as caught:
        settings(composed(override))
    assert "\n" not in str(caught.value)


def test_settings_of_the_wrong_type_or_name_are_refused():
    for override in (
        "network.iterations=many",
        "network.iterationz=3",
        "backprop.mask=released",
        "optimisation.epochs=1",
    ):
        with pytest.raises(HydraException):
            composed(override)


def test_slurm_sends_a_job_again_that_has_run_out_of_time():
    own = ("account=a", "qos=q", "gres=gpu:1", "partition=p")
    given = [f"hydra.launcher.{part}" for part in own]
    launcher = composed("hydra/launcher=cluster", *given, hydra=True).hydra.launcher
    assert (launcher.account, launcher.qos, launcher.gres, launcher.partition) == ("a", "q", "gpu:1", "p")
    assert launcher.max_num_timeout == 10


def test_records_hold_what_is_not_the_default():
    plain = settings(composed("backprop=full")).scientific
    assert not {"optimizer", "schedule", "logger"} & set(plain)
    assert "checkpoint_every" not in str(plain)
    assert settings(composed("optimizer=adam", "logger=csv")).scientific == plain
    assert settings(composed("optimization.adam_epsilon=1e-7")).optimizer["eps"] == 1e-7
    other = settings(composed("optimizer=sgd", "schedule=cosine", "backprop.checkpoint_every=5")).scientific
    assert other["optimizer"] == {"_target_": "torch.optim.SGD", "_partial_": True, "momentum": 0.9}
    assert other["schedule"]["T_max"] == 2000
    assert other["backprop"]["strategy"]["checkpoint_every"] == 5
    assert "optimizer" in settings(composed("+optimizer.weight_decay=0.1")).scientific


def test_help_explains_every_setting():
    lines = list(explained(Config))
    for own in fields(Config):
        nested = get_type_hints(Config)[own.name]
        names = [f"{own.name}.{part.name}" for part in fields(nested)] if is_dataclass(nested) else [own.name]
        for name in names:
            assert [line for line in lines if re.match(rf"  {re.escape(name)} \(.+\): \S", line)], name


def test_help_needs_no_torch():
    names = ["prepare", "train", "evaluate", "theory", "figures", "settings", "verdicts"]
    program = (
        "import sys\n"
        "from contextlib import suppress\n"
        "from pdunroll.__main__ import main\n"
        f"for name in {names}:\n"
        "    sys.argv = ['pdunroll', name, '--help']\n"
        "    with suppress(SystemExit):\n"
        "        main()\n"
        "    assert not {'torch', 'librosa', 'matplotlib', 'wandb'} & set(sys.modules), name\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part in (
        "experiment: declip, demo, depths, few, future, paper, quick, smoke\n",
        "  network.iterations (int): L, in training\n",
        "  learning_rate: 0.0001\n",
    ):
        assert done.stdout.count(part) == len(names)
