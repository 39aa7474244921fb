"""Weights & Biases: one run per training and one per evaluation, grouped by experiment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pdunroll.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from wandb import Run


class Tracking(Protocol):
    """Where to log: online, offline or disabled; the project; the user or team, None for that of the login."""

    mode: str
    project: str
    entity: str | None


@contextmanager
def mode_in_environment(tracking: Tracking) -> Iterator[None]:
    """Keep wandb off the network in this context unless tracking=online; it must not have been used before.

    With `wandb.init(mode="offline")` alone, wandb 0.31 still connects to a telemetry host, unless the environment says
    offline at its first use.
    """
    if tracking.mode == "online":
        yield
        return
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = "offline"
    try:
        yield
    finally:
        os.environ.pop("WANDB_MODE") if before is None else os.environ.update(WANDB_MODE=before)


@contextmanager
def tracked(
    tracking: Tracking,
    folder: Path,
    *,
    job_type: str,
    group: str,
    name: str,
    tags: list[str],
    config: Mapping[str, Any],
    identity: str | None = None,
    step: str | None = None,
) -> Iterator[Run | None]:
    """Open a run below `folder`/wandb and finish it at the end; yield None with tracking=off.

    At the end, earlier offline runs in the folder are removed, so that `wandb sync` finds one run, unless the new run
    fails before anything is logged to it. Online, a run with the same `identity` is replaced. `step` is the metric on
    the x-axis of the others. Raises `InputError` if a login is missing or the run cannot be opened.
    """
    older = list((folder / "wandb").glob("offline-run-*"))
    if tracking.mode == "disabled":
        yield None
        remove(older)
        return
    with mode_in_environment(tracking):
        import wandb

        if tracking.mode == "online":
            require_login()
        try:
            run = wandb.init(
                mode=tracking.mode,  # pyright: ignore[reportArgumentType]
                entity=tracking.entity,
                project=tracking.project,
                id=identity,
                group=group,
                name=name,
                tags=tags,
                config=dict(config),
                job_type=job_type,
                dir=folder,
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"no run of Weights & Biases could be opened ({reason}); try tracking=offline") from None
        if step is not None:
            run.define_metric(step)
            run.define_metric("*", step_metric=step)
        try:  # not `with run`, which would print a traceback
            yield run
        except BaseException:
            began, own = run.step > 0, Path(run.dir).parent
            run.finish(exit_code=1)
            remove(older if began else [own])
            raise
        run.finish()
        remove(older)


def remove(folders: Iterable[Path]) -> None:
    """Remove the folders of runs."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def require_login() -> None:
    """Raise `InputError` if there is no login to Weights & Biases."""
    import wandb

    if not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        raise InputError(
            "tracking=online needs a login: run `wandb login` or set WANDB_API_KEY, or use tracking=offline"
        )


def conclude(run: Run, results: Mapping[str, Any], operator: NDArray, picture: Callable[[NDArray], NDArray]) -> None:
    """Log a training's results as summary values, and pictures of the operator and its difference to the DCT.

    Args:
        run: the run of the training.
        results: summary values by their names.
        operator: the trained K, (m, n).
        picture: draws a matrix (m, n) as a picture (m, n, 4).
    """
    import wandb

    from pdunroll.core.problem import dct_operator

    run.summary.update({"best_validation_mse" if key == "validation_mse" else key: own for key, own in results.items()})
    change = operator - dct_operator(*operator.shape).numpy()
    run.log({"operator": wandb.Image(picture(operator)), "operator_change": wandb.Image(picture(change))})
