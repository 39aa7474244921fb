"""Train one operator, or with -m a sweep.  python -m pdunroll train [-m] [experiment=...] [sweep=...] [backprop=...].

A training owns one folder. Its run.json says what made it: the scientific settings, the data, and digests of the code.
A finished training with the same settings, data and strategy is skipped, also where pdunroll itself has changed since,
unless retrain=true. A killed one is resumed if nothing at all has changed. In all other cases the folder is cleared and
trained again. Of two processes in one folder the second waits. A training that diverges is marked as failed; the
others of its sweep go on, and the sweep leaves with status 1.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, Config, build, one_line_errors, require_machine, settings
from pdunroll.errors import DivergenceError
from pdunroll.processes import end_with_parent

if TYPE_CHECKING:
    from pdunroll.core.gradients import Backprop
    from pdunroll.training.run_folder import RunFolder

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> float:
    """Train one operator; return its best validation MSE, NaN where it diverged in a sweep."""
    end_with_parent()
    with one_line_errors():
        config = settings(cfg)
        folder = Path(HydraConfig.get().runtime.output_dir)
        if HydraConfig.get().mode == RunMode.RUN:
            return train(config, folder / config.run)
        try:
            return train(config, folder)
        except DivergenceError as error:  # the others of the sweep go on
            log.error("%s failed: %s", config.run, error)
            return math.nan


def train(config: Config, folder: Path) -> float:
    """Train the run `folder`, or what is left of it; return the best validation MSE."""
    from pdunroll.training.run_folder import RunFolder, claimed, identify

    require_machine(config.trainer)
    strategy = build(config.backprop["strategy"])
    identity = identify(config.scientific, config.prepared)
    with claimed(folder):
        run = RunFolder(folder, identity)
        if run.done(retrain=config.retrain):
            log.info("%s is finished: skipped", folder)
            return run.record["results"]["validation_mse"]
        try:
            return _train(config, strategy, run)
        except DivergenceError as error:
            run.fail(str(error))
            raise


def _train(config: Config, strategy: Backprop, run: RunFolder) -> float:
    import torch
    from pytorch_lightning.loggers import WandbLogger

    from pdunroll.core.engine import product_name
    from pdunroll.core.problem import dct_operator
    from pdunroll.report.style import diverging
    from pdunroll.speech.frames import load
    from pdunroll.speech.quantizer import radius
    from pdunroll.training.data import FrameData
    from pdunroll.training.fit import fit
    from pdunroll.training.module import UnrolledTraining
    from pdunroll.training.run_folder import environment
    from pdunroll.training.tracking import conclude, tracked

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.set_num_threads(config.trainer.usable_threads)
    rows, frame_length = config.shape
    optimization = config.optimization
    data = FrameData(
        load(config.prepared, "train"),
        load(config.prepared, "validation"),
        batch_size=optimization.batch_size,
        seed=config.seed,
        shuffle_buffer=optimization.shuffle_buffer,
        train_frames=optimization.train_frames,
        validation_frames=optimization.validation_frames,
        validations_per_epoch=optimization.validations_per_epoch,
    )
    counted = data.steps_per_pass if optimization.decay_counts == "steps" else data.frames_per_pass
    module = UnrolledTraining(
        rows=rows,
        frame_length=frame_length,
        radius=radius(config.data.bits),
        iterations=config.network.iterations,
        backprop=strategy,
        step_ratio=config.network.step_ratio,
        extrapolation=config.network.extrapolation,
        step_norm=config.network.step_norm,
        learning_rate=optimization.learning_rate,
        final_learning_rate=optimization.final_learning_rate,
        adam_epsilon=optimization.adam_epsilon,
        decay=optimization.epochs * counted,
    )
    run.begin()
    names = config.backprop["name"], config.backprop["primal_mask"], config.network.step_norm
    tags = [config.name, *names, f"L={config.network.iterations}"]
    with tracked(
        config.tracking, run.folder, job_type="train", group=config.name, name=config.run, tags=tags,
        config={**run.identity["settings"], "data_digest": run.identity["data"], "environment": environment()},
        step="step",
    ) as tracker:  # fmt: skip
        history = fit(
            module,
            data,
            run.folder,
            epochs=optimization.epochs,
            title=config.run,
            accelerator=config.trainer.accelerator,
            loggers=[WandbLogger(experiment=tracker)] if tracker else [],
            callbacks=[build(node) for node in config.callbacks.values()],
            **config.trainer.options,
        )
        operator = module.best_operator.cpu().numpy()
        results = {
            "validation_mse": module.best_mse.item(),
            "initial_validation_mse": history.rows[0]["validation_mse"],
            "best_step": module.best_step.item(),
            "steps": module.global_step,
            "seconds": history.seconds,
            "seconds_per_epoch": history.seconds / optimization.epochs,
            "threads": config.trainer.usable_threads,
            "product": product_name() if config.trainer.accelerator == "cpu" else "cuda",
        }
        run.finish(operator, results)  # before anything is uploaded
        if tracker:
            summary = {f"best_{key}" if key == "validation_mse" else key: value for key, value in results.items()}
            change = operator - dct_operator(*operator.shape).numpy()
            conclude(tracker, summary, {"operator": diverging(operator), "operator_change": diverging(change)})
    return results["validation_mse"]
