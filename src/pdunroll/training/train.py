"""Train one operator in its folder: skip a finished training, resume an interrupted one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, WandbLogger

from pdunroll.core.compiled import product_name
from pdunroll.core.gradients import Backprop
from pdunroll.errors import DivergenceError
from pdunroll.speech.degradation import Degradation
from pdunroll.speech.frames import load
from pdunroll.speech.quantizer import radius
from pdunroll.training.data import FrameData
from pdunroll.training.fit import fit
from pdunroll.training.history import History
from pdunroll.training.module import UnrolledTraining
from pdunroll.training.objectives import Objective
from pdunroll.training.run_folder import STEPS, RunFolder, claimed, environment, identify
from pdunroll.training.run_key import RunKey
from pdunroll.training.tracking import Tracking, conclude, tracked

log = logging.getLogger(__name__)


def train(
    folder: Path,
    settings: dict[str, Any],
    prepared: Path,
    *,
    strategy: Backprop,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
    objective: Objective | None = None,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    accelerator: str = "cpu",
    threads: int = 1,
    tracking: Tracking,
    group: str,
    picture: Callable[[NDArray], NDArray],
    retrain: bool = False,
) -> float:
    """Train one operator; write run.json, operator.npy and training.csv to its folder.

    Args:
        folder: the folder of the training. If another process trains there, wait for it.
        settings: the scientific settings as in run.json: seed, data, backprop, network, optimization and possibly
            trainer (options of Lightning's Trainer).
        prepared: the folder of the prepared frames.
        strategy: the backward pass, built of settings["backprop"].
        optimizer: see `UnrolledTraining`; built of settings["optimizer"], if that is there.
        schedule: see `UnrolledTraining`; built of settings["schedule"], if that is there.
        objective: the loss, built of settings["objective"]; the error after L iterations if None.
        callbacks: further callbacks of Lightning, built of settings["callbacks"].
        loggers: further loggers of Lightning.
        accelerator: "cpu" or "gpu".
        threads: the number of threads of torch.
        tracking: whether and how the training is logged to Weights & Biases.
        group: the name of the experiment there.
        picture: draws a matrix (m, n) as a picture (m, n, 4) for Weights & Biases.
        retrain: train again if the training was finished by another version of the package.

    Returns:
        The best validation MSE, that of an earlier call if the training is finished.

    Raises:
        DivergenceError: if numbers are no longer finite; run.json has the reason.
        InputError: if the frames do not fit the settings, or files in the folder are damaged.
    """
    identity, epochs = identify(settings, prepared), settings["optimization"]["epochs"]
    with claimed(folder):
        run = RunFolder(folder, identity)
        if run.done(retrain=retrain):
            log.info("%s is finished: skipped", folder)
            return run.record["results"]["validation_mse"]
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        torch.set_num_threads(threads)
        data = frame_data(settings, prepared, numbered=objective is not None and objective.keeps_pairs)
        module = training_module(settings, strategy, data, objective, optimizer, schedule)
        run.begin()
        try:
            with tracked(
                tracking, folder, job_type="train", group=group, name=folder.name, tags=tags(group, settings),
                config={**settings, "data_digest": identity["data"], "environment": environment()}, step="step",
            ) as tracker:  # fmt: skip
                history = fit(
                    module, data, folder, epochs=epochs, title=folder.name, accelerator=accelerator,
                    loggers=[*([WandbLogger(experiment=tracker)] if tracker else []), *loggers], callbacks=callbacks,
                    **settings.get("trainer", {}),
                )  # fmt: skip
                operator = module.best_operator.cpu().numpy()
                results = results_of(module, history, epochs=epochs, threads=threads, accelerator=accelerator)
                run.finish(operator, results)  # before anything is uploaded
                if tracker:
                    conclude(tracker, results, operator, picture)
        except DivergenceError as error:
            run.fail(str(error))
            raise
    return results["validation_mse"]


def tags(group: str, settings: dict[str, Any]) -> list[str]:
    """Return the tags of a training on Weights & Biases."""
    key = RunKey.from_record({"settings": settings})
    return [group, key.backprop, *key.setting, f"L={key.l_training}"]


def results_of(
    module: UnrolledTraining, history: History, *, epochs: int, threads: int, accelerator: str
) -> dict[str, Any]:
    """Return the results of a training as in run.json."""
    learned = dict(zip(STEPS, module.best_steps.tolist(), strict=True)) if module.network.learned_steps else {}
    return {
        "validation_mse": module.best_mse.item(),
        "initial_validation_mse": history.rows[0]["validation_mse"],
        "best_step": module.best_step.item(),
        "steps": module.global_step,
        "seconds": history.seconds,
        "seconds_per_epoch": history.seconds / epochs,
        "threads": threads,
        "product": product_name() if accelerator == "cpu" else "cuda",
        **learned,
    }


def frame_data(settings: dict[str, Any], prepared: Path, *, numbered: bool = False) -> FrameData:
    """Return the training and validation frames that the settings ask for."""
    optimization = settings["optimization"]
    return FrameData(
        load(prepared, "train"),
        load(prepared, "validation"),
        seed=settings["seed"],
        batch_size=optimization["batch_size"],
        shuffle_buffer=optimization["shuffle_buffer"],
        train_frames=optimization["train_frames"],
        validation_frames=optimization["validation_frames"],
        validations_per_epoch=optimization["validations_per_epoch"],
        numbered=numbered,
    )


def training_module(
    settings: dict[str, Any],
    strategy: Backprop,
    data: FrameData,
    objective: Objective | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
) -> UnrolledTraining:
    """Return the module to train; its rate decays over the number of steps, or of frames, in all passes of `data`."""
    optimization = settings["optimization"]
    counted = data.steps_per_pass if optimization["decay_counts"] == "steps" else data.frames_per_pass
    return UnrolledTraining(
        frame_length=settings["data"]["frame_length"],
        radius=None if Degradation.of(settings["data"]).beyond_quantization else radius(settings["data"]["bits"]),
        backprop=strategy,
        objective=objective,
        **settings["network"],
        learning_rate=optimization["learning_rate"],
        final_learning_rate=optimization["final_learning_rate"],
        adam_epsilon=optimization["adam_epsilon"],
        decay=optimization["epochs"] * counted,
        optimizer=optimizer,
        schedule=schedule,
    )
