"""The errors of single frames for one operator: along the iterations and at the certified optimum."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdunroll.core.algorithms import Algorithm
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.solve import solve
from pdunroll.evaluation.curves import error_curve
from pdunroll.files import atomic, digest
from pdunroll.processes import end_with_parent
from pdunroll.training.code_digest import WITHOUT, source_digest
from pdunroll.training.run_key import RunKey, after_training_iterations, by_operator

log = logging.getLogger(__name__)

Row = dict[str, Any]


def frame_errors(
    path: Path, key: RunKey, operator: NDArray, truth: NDArray, observation: NDArray, validation: list[NDArray],
    grid: NDArray, chosen: NDArray, *, radius: float, steps: Mapping[str, Any], algorithm: Algorithm,
    tolerance: float, max_iterations: int, batch_size: int, device: str,
) -> dict[str, NDArray]:  # fmt: skip
    """Return the errors of each frame for one operator, from a file if they are stored in it already.

    Args:
        path: outputs/<name>/errors/<run>.npz, which is read if it has this result, and written otherwise.
        key: what names the operator.
        operator: K, (m, n).
        truth: y of the test frames, (frames, n).
        observation: x of the test frames, (frames, n).
        validation: y and x of the validation frames.
        grid: numbers of iterations, ascending.
        chosen: the numbers of the test frames in their split; they are stored with the errors.
        radius: half a quantization step.
        steps: the step sizes and the extrapolation, as arguments of `pdunroll.unroll`.
        algorithm: the one that solves for the certified optima.
        tolerance: the relative duality gap of the optima.
        max_iterations: of the solver.
        batch_size: frames that are iterated together.
        device: where the computation runs, such as "cpu".

    Returns:
        errors (len(grid), frames) and gaps (frames,) of the last iterate; optimum_errors, optimum_gaps and iterations
        (frames,) of the certified optimum; of the validation frames the mean errors validation_errors (len(grid),) and
        validation_optimum_errors (frames,).
    """
    end_with_parent()
    arrays = {"operator": operator, "truth": truth, "observation": observation, "grid": grid}
    arrays |= dict(zip(("validation_truth", "validation_observation"), validation, strict=True))
    identity = digest(
        {
            **{name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for name, array in arrays.items()},
            "radius": radius,
            **steps,
            "curves": ["test", "validation"],
            "solve": [repr(algorithm), tolerance, max_iterations],
            "code": source_digest("evaluation.curves", "core.solve", type(algorithm).__module__, without=WITHOUT),
        }
    )
    if (stored := _stored(path, identity)) is not None:
        return stored
    torch.set_num_threads(1)
    K, y, x, y_validation, x_validation = (
        torch.from_numpy(array).to(device) for array in (operator, truth, observation, *validation)
    )
    unrolled = chambolle_pock(K, radius=radius, **steps)
    errors, gaps = error_curve(unrolled, K, y, x, grid.tolist(), batch_size)
    validation_errors, _ = error_curve(unrolled, K, y_validation, x_validation, grid.tolist(), batch_size)
    solved = partial(solve, K, radius=radius, tolerance=tolerance, max_iterations=max_iterations, algorithm=algorithm)
    optimum = solved(x)
    found = {
        "errors": errors,
        "gaps": gaps,
        "optimum_errors": _mse(optimum.primal, y),
        "validation_errors": validation_errors.mean(axis=1, dtype=np.float64),
        "validation_optimum_errors": _mse(solved(x_validation).primal, y_validation),
        "optimum_gaps": optimum.gap.cpu().numpy(),
        "iterations": optimum.iterations.cpu().numpy(),
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **found, grid=grid, frames=chosen, identity=identity)
    return found


def _stored(path: Path, identity: str) -> dict[str, NDArray] | None:
    """Return the result in the file, if there is one with this identity."""
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                if stored["identity"].item() == identity:
                    return dict(stored)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            log.warning("%s is damaged and is made again", path)
    return None


def _mse(primal: Tensor, truth: Tensor) -> NDArray:
    return (primal - truth).double().square().mean(dim=1).cpu().numpy()


def certificate(found: dict[str, NDArray], tolerance: float) -> dict[str, Any]:
    """Return the row of optima.csv for the result of `frame_errors`, without the columns that name the operator."""
    nontrivial = found["iterations"] > 0
    return {
        "optimum_mse": float(found["optimum_errors"].mean()),
        "validation_optimum_mse": float(found["validation_optimum_errors"].mean()),
        "certified": float((found["optimum_gaps"] <= tolerance).mean()),
        "largest_optimum_gap": float(found["optimum_gaps"].max()),
        "median_iterations": float(np.median(found["iterations"][nontrivial])) if nontrivial.any() else 0.0,
        # of nontrivial frames: an objective that goes to 0 has no relative gap
        "median_gap": float(np.median(found["gaps"][nontrivial])) if nontrivial.any() else 0.0,
        "largest_gap": float(found["gaps"][nontrivial].max(initial=0.0)),
    }


def metrics(rows: list[Row], optima: list[Row]) -> dict[str, Any]:
    """Return the test MSE of each operator: classical (after L_training iterations) and at the certified optimum.

    Trained operators have N1 (see `pdunroll.evaluation.convergence`), too, if the curve comes that close.

    Args:
        rows: of evaluation.csv, the first one that of the quantized frames.
        optima: rows of optima.csv.
    """
    result: dict[str, Any] = {"quantized": rows[0]["mse"]}
    classical, speed = after_training_iterations(rows), by_operator(optima, "n1")
    for key, mse in by_operator(optima, "optimum_mse").items():
        n1 = {} if speed[key] is None else {"n1": speed[key]}
        result[key.name] = {"classical": classical[key], "optimality": mse, **n1} if key in classical else mse
    return result
