"""The errors of single frames for one operator: along the iterations and at the certified optimum."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pdunroll.core.algorithms import Algorithm
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.solve import solve
from pdunroll.evaluation.curves import error_curve
from pdunroll.files import atomic, digest
from pdunroll.processes import end_with_parent
from pdunroll.training.code_digest import WITHOUT, source_digest
from pdunroll.training.run_key import run_name

log = logging.getLogger(__name__)

Row = dict[str, Any]


def frame_errors(
    path: Path, key: Row, operator: NDArray, truth: NDArray, observation: NDArray, validation: list[NDArray],
    grid: NDArray, chosen: NDArray, *, radius: float, step_ratio: float, extrapolation: float, algorithm: Algorithm,
    tolerance: float, max_iterations: int, batch_size: int, device: str,
) -> dict[str, NDArray]:  # fmt: skip
    """Return what is known of each frame for one operator; from the file `path` if it is there already.

    Args:
        path: outputs/<name>/errors/<run>.npz, which is written.
        key: names the operator, and with its step_norm the step sizes that the operator is iterated with.
        operator: K, (m, n).
        truth: y, (frames, n); observation: x, (frames, n); validation: the same two of the validation frames.
        grid: numbers of iterations, ascending; chosen: the frames' numbers in their split.

    Returns:
        errors (len(grid), frames) and gaps (frames,) of the last iterate; optimum_errors, optimum_gaps and iterations
        (frames,) of the certified optimum; validation_optimum_errors (frames,).
    """
    end_with_parent()
    parts = {"operator": operator, "truth": truth, "observation": observation, "grid": grid}
    parts |= dict(zip(("validation_truth", "validation_observation"), validation, strict=True))
    identity = digest(
        {
            **{part: hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for part, array in parts.items()},
            "radius": radius,
            "step_ratio": step_ratio,
            "extrapolation": extrapolation,
            "step_norm": key["step_norm"],
            "solve": [repr(algorithm), tolerance, max_iterations],
            "code": source_digest("evaluation.curves", "core.solve", type(algorithm).__module__, without=WITHOUT),
        }
    )
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                if stored["identity"].item() == identity:
                    return dict(stored)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            log.warning("%s is damaged and is made again", path)

    torch.set_num_threads(1)
    K, y, x = (torch.from_numpy(array).to(device) for array in (operator, truth, observation))
    steps = chambolle_pock(
        K,
        radius=radius,
        step_ratio=step_ratio,
        extrapolation=extrapolation,
        step_norm=key["step_norm"],
    )
    errors, gaps = error_curve(steps, K, y, x, grid.tolist(), batch_size)
    solved = partial(
        solve,
        K,
        radius=radius,
        tolerance=tolerance,
        max_iterations=max_iterations,
        algorithm=algorithm,
    )
    optimum = solved(x)
    validated, observed = (torch.from_numpy(array).to(device) for array in validation)
    found = {
        "errors": errors,
        "gaps": gaps,
        "optimum_errors": (optimum.primal - y).double().square().mean(dim=1).cpu().numpy(),
        "validation_optimum_errors": (solved(observed).primal - validated).double().square().mean(dim=1).cpu().numpy(),
        "optimum_gaps": optimum.gap.cpu().numpy(),
        "iterations": optimum.iterations.cpu().numpy(),
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **found, grid=grid, frames=chosen, identity=identity)
    return found


def certificate(found: dict[str, NDArray], tolerance: float) -> dict[str, Any]:
    """The row of optima.csv, but for its key."""
    hard = found["iterations"] > 0
    return {
        "optimum_mse": float(found["optimum_errors"].mean()),
        "validation_optimum_mse": float(found["validation_optimum_errors"].mean()),
        "certified": float((found["optimum_gaps"] <= tolerance).mean()),
        "largest_optimum_gap": float(found["optimum_gaps"].max()),
        "median_iterations": float(np.median(found["iterations"][hard])) if hard.any() else 0.0,
        # of nontrivial frames: an objective that goes to 0 has no relative gap
        "median_gap": float(np.median(found["gaps"][hard])) if hard.any() else 0.0,
        "largest_gap": float(found["gaps"][hard].max(initial=0.0)),
    }


def metrics(rows: list[Row], optima: list[Row]) -> dict[str, Any]:
    """Test MSE of each operator: classical (after L_training iterations) and optimality (at the certified optimum)."""
    result: dict[str, Any] = {"quantized": rows[0]["mse"]}
    optimum = {run_name(row): row["optimum_mse"] for row in optima}
    classical = {run_name(row): row["mse"] for row in rows if row["l_inference"] == row["l_training"]}
    for name, mse in optimum.items():
        result[name] = {"classical": classical[name], "optimality": mse} if name in classical else mse
    return result
