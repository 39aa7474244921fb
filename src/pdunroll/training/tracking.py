"""Weights & Biases: one run a training and one an evaluation, grouped by experiment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdunroll.config import Tracking
from pdunroll.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from wandb import Run


@contextmanager
def mode_in_environment(tracking: Tracking) -> Iterator[None]:
    """Keep wandb off the network in this context unless tracking=online; it must not have been used before.

    With mode="offline" given to `wandb.init` alone, wandb 0.31 still looks up a telemetry host and connects to it: for
    that it reads the environment only, at its first use.
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
    """Open a run below `folder`/wandb, None with tracking=off; finishes it on the way out.

    Runs that were kept there offline before are removed on the way out: the new one takes their place, so that
    `wandb sync` finds one run in a folder. One that fails before anything was logged to it leaves them. Where runs are
    uploaded to, one of the same `identity` is replaced. `step` names the metric that the others are drawn over. Raises
    `InputError` when a login would be asked for, and where none can be opened.
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
    """Remove runs that another has taken the place of, or that nothing was logged to."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def require_login() -> None:
    """Raise `InputError` that says what to do where no login to Weights & Biases is known."""
    import wandb

    if not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        raise InputError(
            "tracking=online needs a login: run `wandb login` or set WANDB_API_KEY, or use tracking=offline"
        )


def conclude(run: Run, results: Mapping[str, Any], operator: NDArray, picture: Callable[[NDArray], NDArray]) -> None:
    """Add a training's results to its summary values, and pictures of the operator and its change from the DCT.

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
