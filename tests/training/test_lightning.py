"""The LightningModule in a Trainer, with loaders and callbacks that the project did not make."""

from __future__ import annotations

import csv
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import pdunroll
from oracles import problem
from pdunroll.errors import InputError
from pdunroll.training.module import UnrolledTraining, described, rebuilt

N, RADIUS = 16, 1 / 16

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated"),
]


def loader(frames: int = 48, seed: int = 0, shuffle: bool = False, dtype: torch.dtype = torch.float32) -> DataLoader:
    _, truth, observation = problem(N, N, frames, seed, dtype)
    return DataLoader(TensorDataset(truth, observation), batch_size=8, shuffle=shuffle)


def module(**options) -> UnrolledTraining:
    return UnrolledTraining(
        **{"frame_length": N, "radius": RADIUS, "iterations": 5, "learning_rate": 1e-3, **options}
    )  # fmt: skip


def trainer(folder: Path, **options) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
    return pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **{**quiet, "max_epochs": 2, **options})


def test_callbacks_and_loggers_see_what_is_logged(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="validation_mse", filename="best")
    stop = EarlyStopping("validation_mse", patience=1, min_delta=1.0)  # nothing improves by so much
    logger = CSVLogger(tmp_path, name="csv", version=0)
    run = trainer(tmp_path, max_epochs=9, callbacks=[best, stop, LearningRateMonitor("step")], logger=logger)
    run.fit(module(), loader(shuffle=True), loader(24, seed=1))
    assert run.current_epoch == 2  # stopped early
    assert best.best_model_score is not None
    with (tmp_path / "csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name for row in rows for name, value in row.items() if value}
    assert {"train_mse", "validation_mse", "learning_rate", "gradient_norm", "operator_norm", "lr-Adam"} <= logged


def test_the_rate_reaches_its_end_with_the_trainers_steps(tmp_path):
    model = module(final_learning_rate=1e-5)
    run = trainer(tmp_path, accumulate_grad_batches=2)
    run.fit(model, loader(), loader(24, seed=1))
    assert run.global_step == 2 * 3
    (group,) = model.optimizers().param_groups
    assert group["lr"] == pytest.approx(1e-5)


def test_accumulated_batches_are_one_larger_batch(tmp_path):
    operators = {}
    for size, batches in ((8, 3), (24, 1)):
        data = DataLoader(loader().dataset, batch_size=size)
        model = module()
        run = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=batches)
        run.fit(model, data)  # without validation
        assert {"train_mse", "gradient_norm"} <= set(run.callback_metrics)
        operators[size] = model.network.operator.detach()
    torch.testing.assert_close(operators[8], operators[24], rtol=0, atol=1e-6)


def test_gradients_are_clipped(tmp_path):
    seen = []

    class Watching(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            if (grad := module.network.operator.grad) is not None:
                seen.append(float(grad.norm()))

    run = trainer(tmp_path, max_epochs=1, gradient_clip_val=1e-3, callbacks=[Watching()])
    run.fit(module(), loader(), loader(24, seed=1))
    assert seen
    assert max(seen) <= 1e-3 * (1 + 1e-5)


def test_a_checkpoint_is_loaded_without_arguments(tmp_path):
    strategy = pdunroll.Truncated(iterations=7, primal_mask="released")
    model = module(backprop=strategy, rows=12, step_norm="spectral", extrapolation=0.5)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader(), loader(24, seed=1))
    run.save_checkpoint(tmp_path / "own.ckpt")
    again = UnrolledTraining.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert again.network.backprop == strategy
    assert again.hparams == model.hparams
    torch.testing.assert_close(again.network.operator, model.network.operator, rtol=0, atol=0)
    x = loader().dataset.tensors[1]
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_strategies_are_rebuilt_from_plain_data_and_nothing_else_is():
    for strategy in (pdunroll.Full(checkpoint_every=3), pdunroll.Truncated(iterations=9), pdunroll.Implicit()):
        assert rebuilt(described(strategy)) == strategy
    for name in ("builtins.print", "os.system", None):
        with pytest.raises(InputError, match="import its module first"):
            rebuilt({"_target_": name})


def test_test_and_predict(tmp_path):
    model, data = module(), loader(20)
    run = trainer(tmp_path)
    (found,) = run.test(model, data, verbose=False)
    truth, observation = data.dataset.tensors
    restored = pdunroll.unroll(model.network.operator.detach(), observation, radius=RADIUS, iterations=5)
    assert found["test_mse"] == pytest.approx(float((restored - truth).square().mean()), rel=1e-5)
    pairs = torch.cat(run.predict(model, data))
    alone = torch.cat(run.predict(model, DataLoader(observation, batch_size=8)))
    for predicted in (pairs, alone):
        torch.testing.assert_close(predicted, restored, rtol=0, atol=1e-6)


def test_optimizer_and_schedule_may_be_given_and_are_adam_with_a_linear_fall_by_default(tmp_path):
    def trained(**options) -> torch.Tensor:
        model = module(learning_rate=1e-2, decay=12, **options)
        trainer(tmp_path, max_epochs=2).fit(model, loader(), loader(24, seed=1))
        return model.network.operator.detach()

    adam = partial(torch.optim.Adam, eps=1e-8, fused=True)
    fall = partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=1e-6, total_iters=12)
    default = trained()
    assert torch.equal(trained(optimizer=adam), default)
    torch.testing.assert_close(trained(schedule=fall), default, rtol=0, atol=1e-6)
    assert not torch.equal(trained(optimizer=torch.optim.SGD), default)


def test_float64_trains_and_half_precision_is_refused(tmp_path):
    model = module()
    trainer(tmp_path, max_epochs=1, precision="64-true").fit(
        model, loader(dtype=torch.float64), loader(24, seed=1, dtype=torch.float64)
    )
    assert model.network.operator.dtype == torch.float64
    with pytest.raises(InputError, match="precision must be 32-true or 64-true, got bf16-mixed"):
        trainer(tmp_path, precision="bf16-mixed").fit(module(), loader(), loader(24, seed=1))


def test_the_best_operator_is_that_of_the_smallest_error_on_all_validation_frames(tmp_path):
    model = module(learning_rate=0.3, final_learning_rate=0.3)
    history = []

    class Watching(pl.Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                history.append((trainer.callback_metrics["validation_mse"].item(), module.network.operator.clone()))

    trainer(tmp_path, max_epochs=4, callbacks=[Watching()]).fit(model, loader(), loader(24, seed=1))
    errors = np.array([error for error, _ in history])
    assert math.isclose(model.best_mse.item(), errors.min(), rel_tol=1e-6)
    torch.testing.assert_close(model.best_operator, history[int(errors.argmin())][1].detach(), rtol=0, atol=0)
