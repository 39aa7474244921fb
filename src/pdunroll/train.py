"""Train one operator, or with -m a sweep.  python -m pdunroll.train [-m] [experiment=...] [sweep=...] [backprop=...]

A training owns one folder ("cell"). Its run.json says what made it, by a digest of the scientific settings, the data
and the training code. With an equal digest a finished training is skipped and a killed one resumed; with another one
the cell is cleared and trained again. Of two processes in one cell the second waits. A training that diverges is marked
as failed; the others of its sweep go on, and the sweep leaves with status 1.
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

from pdunroll.config import CONF, Config, build, one_line_errors, require_machine, run, settings
from pdunroll.errors import DivergenceError
from pdunroll.processes import end_with_parent

if TYPE_CHECKING:
    from pdunroll.backprop import Backprop
    from pdunroll.cell import Cell

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> float:
    end_with_parent()
    with one_line_errors():
        config = settings(cfg)
        folder = Path(HydraConfig.get().runtime.output_dir)
        if HydraConfig.get().mode == RunMode.RUN:
            return train(config, folder / config.cell)
        try:
            return train(config, folder)
        except DivergenceError as error:  # the others of the sweep go on
            log.error("%s failed: %s", config.cell, error)
            return math.nan


def train(config: Config, folder: Path) -> float:
    """Train the cell `folder`, or what is left of it; return the best validation MSE."""
    from pdunroll.cell import Cell, claimed, identify

    require_machine(config.trainer)
    strategy = build(config.backprop["strategy"])
    identity = identify(config)
    with claimed(folder):
        cell = Cell(folder, identity)
        if cell.finished:
            log.info("%s is finished and nothing it depends on has changed: skipped", folder)
            return cell.record["results"]["validation_mse"]
        try:
            return _train(config, strategy, cell)
        except DivergenceError as error:
            cell.fail(str(error))
            raise


def _train(config: Config, strategy: Backprop, cell: Cell) -> float:
    import torch
    from pytorch_lightning.loggers import WandbLogger

    from pdunroll.cell import environment
    from pdunroll.engine import product_name
    from pdunroll.frames import load
    from pdunroll.network import UnrolledNetwork
    from pdunroll.plotting import diverging
    from pdunroll.problem import dct_operator
    from pdunroll.quantizer import radius
    from pdunroll.tracking import conclude, tracked
    from pdunroll.training import FrameData, fit

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.set_num_threads(config.trainer.usable_threads)
    network = UnrolledNetwork(
        rows=config.network.rows or config.data.frame_length,
        frame_length=config.data.frame_length,
        radius=radius(config.data.bits),
        iterations=config.network.iterations,
        backprop=strategy,
        step_ratio=config.network.step_ratio,
        extrapolation=config.network.extrapolation,
        step_norm=config.network.step_norm,
    )
    data = FrameData(
        load(config.prepared, "train"), load(config.prepared, "validation"), config.optimization, config.seed
    )
    cell.begin()
    names = config.backprop["name"], config.backprop["primal_mask"], config.network.step_norm
    tags = [config.name, *names, f"L={config.network.iterations}"]
    with tracked(
        config.tracking, cell.folder, job_type="train", group=config.name, name=config.cell, tags=tags,
        config={**cell.identity["settings"], "data_digest": cell.identity["data"], "environment": environment()},
        step="step",
    ) as tracker:  # fmt: skip
        module, history = fit(
            network,
            data,
            config.optimization,
            cell.folder,
            title=config.cell,
            accelerator=config.trainer.accelerator,
            loggers=[WandbLogger(experiment=tracker)] if tracker else [],
        )
        operator = module.best_operator.cpu().numpy()
        results = {
            "validation_mse": module.best_mse.item(),
            "initial_validation_mse": history.rows[0]["validation_mse"],
            "best_step": module.best_step.item(),
            "steps": module.global_step,
            "seconds": history.seconds,
            "seconds_per_epoch": history.seconds / config.optimization.epochs,
            "threads": config.trainer.usable_threads,
            "product": product_name() if config.trainer.accelerator == "cpu" else "cuda",
        }
        cell.finish(operator, results)  # before anything is uploaded
        if tracker:
            summary = {f"best_{key}" if key == "validation_mse" else key: value for key, value in results.items()}
            change = operator - dct_operator(*operator.shape).numpy()
            conclude(tracker, summary, {"operator": diverging(operator), "operator_change": diverging(change)})
    return results["validation_mse"]


if __name__ == "__main__":
    run(main)
