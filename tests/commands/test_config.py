"""Every file in conf/ composes and its objects can be built; wrong settings are one line."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from pytorch_lightning import Callback

import pdunroll
from pdunroll.commands.entry import CONF, InputError, build, settings
from pdunroll.speech.sources import IEEE, Folder, Synthetic
from pdunroll.training.objectives import Objective

GROUPS = ("data", "backprop", "objective", "algorithm", "callbacks", "experiment", "sweep", "trainer", "tracking")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))


def composed(*overrides: str, hydra: bool = False):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def test_groups_are_those_of_the_folder():
    assert sorted(path.name for path in Path(CONF).iterdir() if path.is_dir()) == sorted([*GROUPS, "hydra"])
    assert options("data") == ["folder", "ieee", "synthetic"]
    assert options("backprop") == ["full", "implicit", "truncated"]
    assert options("callbacks") == ["early_stopping"]
    assert options("algorithm") == ["chambolle_pock", "halpern"]
    assert options("objective") == ["halpern", "plain", "random_depth", "several_depths", "warm"]
    assert options("experiment") == ["demo", "future", "paper", "quick", "smoke"]
    regimes = ["regime1", "regime2", "regime3", "regimes"]
    assert options("sweep") == ["future_halpern", "future_plain", "future_random", "future_warm", *regimes]
    assert options("tracking") == ["off", "offline", "online"]


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_every_preset_is_instantiated(group, option):
    config = settings(composed(f"{group}={option}", "data.root=somewhere"))
    source, strategy = build(config.data.source), build(config.backprop["strategy"])
    assert all(isinstance(build(node), Callback) for node in config.callbacks.values())
    assert isinstance(source, Synthetic | IEEE | Folder)
    assert isinstance(strategy, pdunroll.Full | pdunroll.Truncated | pdunroll.Implicit)
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


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate", "theory", "figures", "settings", "verdicts"])
def test_help_needs_no_torch(name):
    program = (
        f"import sys; from pdunroll.__main__ import main; sys.argv = ['pdunroll', '{name}', '--help']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'librosa', 'matplotlib', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "experiment: demo, future, paper, quick, smoke" in done.stdout
