"""The errors of each frame for one operator, along the iterations and at the certified optimum."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdunroll.core.algorithms import Algorithm
from pdunroll.core.chambolle_pock import chambolle_pock
from pdunroll.core.problem import Box
from pdunroll.core.solve import solve
from pdunroll.evaluation.curves import error_curve
from pdunroll.files import atomic, digest
from pdunroll.processes import end_with_parent
from pdunroll.training.code_digest import WITHOUT, source_digest
from pdunroll.training.run_key import RunKey, after_training_iterations, by_operator

log = logging.getLogger(__name__)

Row = dict[str, Any]


def frame_errors(
    path: Path, key: RunKey, operator: NDArray, test: Sequence[Any], validation: Sequence[Any], grid: NDArray,
    chosen: NDArray, *, steps: Mapping[str, Any], algorithm: Algorithm, tolerance: float, max_iterations: int,
    batch_size: int, device: str,
) -> dict[str, NDArray]:  # fmt: skip
    """Return the errors of each frame for one operator, as far as possible from a file.

    Args:
        path: outputs/<name>/errors/<run>.npz, which is read if it exists, and written if it lacks something.
        key: the key of the operator.
        operator: K, (m, n).
        test: y of the test frames, (frames, n), and their `Box`.
        validation: y and box of the validation frames.
        grid: the numbers of iterations, ascending.
        chosen: the numbers of the test frames in their split, which are stored with the errors.
        steps: the step sizes and the extrapolation, as arguments of `pdunroll.unroll`.
        algorithm: the solver for certified optima.
        tolerance: the relative duality gap of the optima.
        max_iterations: the limit of iterations of the solver.
        batch_size: the number of frames that are iterated together.
        device: the device of the curves, such as "cpu".

    Returns:
        errors (len(grid), frames) and gaps (frames,) of the last iterate; optimum_errors, optimum_gaps and iterations
        (frames,) of the certified optimum; of the validation frames the mean errors validation_errors (len(grid),) and
        validation_optimum_errors (frames,).
    """
    end_with_parent()
    (truth, box), (validation_truth, validation_box) = test, validation
    arrays = [operator, truth, validation_truth, *map(np.asarray, (*box.tensors(), *validation_box.tensors()))]
    identity = digest(
        {
            "arrays": [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in arrays],
            **steps,
            "curves": ["test", "validation", int(grid[-1])],
            "solve": [repr(algorithm), tolerance, max_iterations],
            "code": source_digest("evaluation.curves", "core.solve", type(algorithm).__module__, without=WITHOUT),
        }
    )
    found = _stored(path, identity)
    if found is not None and np.array_equal(found["grid"], grid):
        return found
    torch.set_num_threads(1)
    K = torch.from_numpy(operator)
    K_there, y = K.to(device), torch.from_numpy(np.concatenate([truth, validation_truth])).to(device)
    boxes, unrolled = joined(box, validation_box).to(device), chambolle_pock(K_there, **steps)

    def curves(counts: NDArray) -> dict[str, NDArray]:
        errors, gaps = error_curve(unrolled, K_there, y, boxes, counts.tolist(), batch_size)
        test, validation = np.split(errors, [len(truth)], axis=1)
        means = validation.mean(axis=1, dtype=np.float64)
        return {"grid": counts, "errors": test, "validation_errors": means, "gaps": gaps[: len(truth)]}

    if found is None:
        # on the CPU: its cores solve as many operators at once, each about as fast as a GPU
        solved = partial(solve, K, tolerance=tolerance, max_iterations=max_iterations, algorithm=algorithm)
        optimum = solved(box)
        found = {
            **curves(grid),
            "optimum_errors": _mse(optimum.primal, truth),
            "validation_optimum_errors": _mse(solved(validation_box).primal, validation_truth),
            "optimum_gaps": optimum.gap.numpy(),
            "iterations": optimum.iterations.numpy(),
            "frames": chosen,
            "identity": np.array(identity),
        }
    else:  # a sweep with another L asks for other numbers of iterations, but for the same last one
        missing = np.setdiff1d(grid, found["grid"])
        found |= _on_grid(grid, [found, curves(missing)] if len(missing) else [found])
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **found)
    return found


def joined(first: Box, second: Box) -> Box:
    """Return the box of the frames of two boxes of the same prepared folder."""
    radii = [radius for radius in (first.radius, second.radius) if isinstance(radius, Tensor)]  # of single samples
    radius = torch.cat(radii) if radii else first.radius
    return Box(torch.cat([first.centre, second.centre]), radius, torch.cat([first.start, second.start]))


def _on_grid(grid: NDArray, parts: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray]:
    """Return the errors after the numbers of iterations `grid`, each of which is in the grid of one of the parts."""
    counts = np.concatenate([part["grid"] for part in parts])
    rows = [np.flatnonzero(counts == count)[0] for count in grid]
    return {
        name: np.concatenate([part[name] for part in parts])[rows] for name in ("grid", "errors", "validation_errors")
    }


def _stored(path: Path, identity: str) -> dict[str, Any] | None:
    """Return the result in a file if it has this identity."""
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                if stored["identity"].item() == identity:
                    return dict(stored)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            log.warning("%s is damaged and is made again", path)
    return None


def _mse(primal: Tensor, truth: NDArray) -> NDArray:
    return (primal - torch.from_numpy(truth)).double().square().mean(dim=1).numpy()


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


def metrics(rows: list[Row], optima: list[Row], observed: str) -> dict[str, Any]:
    """Return the test MSE of each operator: classical (after L_training iterations) and at the certified optimum.

    Trained operators have N1 (see `pdunroll.evaluation.convergence`), too, if the curve comes that close.

    Args:
        rows: the rows of evaluation.csv, first that of the unrestored frames.
        optima: rows of optima.csv.
        observed: the name of these frames, such as "quantized".
    """
    result: dict[str, Any] = {observed: rows[0]["mse"]}
    classical, speed = after_training_iterations(rows), by_operator(optima, "n1")
    for key, mse in by_operator(optima, "optimum_mse").items():
        n1 = {} if speed[key] is None else {"n1": speed[key]}
        result[key.name] = {"classical": classical[key], "optimality": mse, **n1} if key in classical else mse
    return result
