"""Files of trained operators with their provenance; some come with the package.

An operator file is an npz with `operator`, K (m, n) in float32 or float16, and `provenance`, a JSON object as a string.
The command `operators` makes such files; in Python they are made by

    from pdunroll.restore import operator_file as operators
    operators.save("mine.npz", operators.from_run("multirun/mine/RUN", command="python -m pdunroll train ..."))
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdunroll.errors import InputError
from pdunroll.files import atomic, check, read_array, read_json
from pdunroll.speech.sources import SAMPLE_RATE
from pdunroll.training.run_folder import OPERATOR, RECORD
from pdunroll.training.schema import Provenance, Record

SHIPPED = Path(str(resources.files("pdunroll.restore") / "operator.npz"))
LISTENING = SHIPPED.with_name("listening.npz")


class Operator(NamedTuple):
    """A trained operator and its provenance."""

    matrix: NDArray  # (m, n), float32 or float64
    provenance: dict[str, Any]  # data, bits, sample_rate, settings and more; {} if nothing is known


def load(path: str | Path) -> Operator:
    """Read an operator file, or the operator.npy of a training, whose provenance is in the run.json beside it.

    Raises:
        InputError: if the file is missing or damaged, or has no finite, nonzero floating-point matrix.

    Examples:
        >>> from pdunroll.restore import operator_file
        >>> matrix, provenance = operator_file.load(operator_file.SHIPPED)
        >>> matrix.shape, provenance["bits"], provenance["sample_rate"]
        ((320, 320), 4, 16000)
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; an operator is the operator.npy of a training or an npz made of it")
    stored = read_array(path)
    if isinstance(stored, np.ndarray):
        matrix, record = stored, path.with_name(RECORD)
        provenance = _provenance(record) if path.name == OPERATOR and record.is_file() else {}
    else:
        try:
            matrix, provenance = stored["operator"], json.loads(stored["provenance"].item())
            check(Provenance, provenance)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as an operator ({error}); replace it") from None
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind != "f":
        raise InputError(f"{path} holds a {matrix.dtype} array of shape {matrix.shape}, not an operator (m, n)")
    with np.errstate(over="ignore"):  # long doubles may be too large
        matrix = matrix.astype(np.float32 if matrix.dtype.itemsize <= 4 else np.float64)
    if not np.isfinite(matrix).all() or not matrix.any():
        raise InputError(f"{path} holds an operator that is zero or not finite; replace it")
    return Operator(matrix, provenance)


def from_run(folder: str | Path, command: str) -> Operator:
    """Return the operator of a finished training.

    Args:
        folder: multirun/<name>/<run>.
        command: the command that trained it, for the provenance.

    Raises:
        InputError: if the training is not finished.
    """
    folder = Path(folder)
    return Operator(load(folder / OPERATOR).matrix, {"command": command, **_provenance(folder / RECORD)})


def save(path: str | Path, operator: Operator, *, small: bool = False) -> None:
    """Write an operator file, with the matrix in float32, or in float16 if it is to be small."""
    with atomic(Path(path)) as temporary, temporary.open("wb") as file:
        provenance = json.dumps(operator.provenance)
        matrix = operator.matrix.astype(np.float16 if small else np.float32)
        np.savez_compressed(file, operator=matrix, provenance=np.array(provenance))


def _provenance(path: Path) -> dict[str, Any]:
    """Return the provenance of a finished training's operator, from its run.json."""
    record = read_json(path, kind=Record)  # of any version, since an optimum does not depend on the step sizes
    if record["status"] != "finished":
        raise InputError(f"{path.parent} is not a finished training; run its command again")
    settings = record["settings"]
    return {
        "data": f"{settings['data']['name']}, sha256 {record['data']}",
        "sample_rate": SAMPLE_RATE,
        "bits": settings["data"]["bits"],
        "seed": settings["seed"],
        "validation_mse": record["results"]["validation_mse"],
        "commit": record["environment"].get("commit", "unknown"),
        "torch": record["environment"].get("torch", "unknown"),
        "settings": settings,
    }
