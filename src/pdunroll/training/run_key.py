"""The keys of trainings and other operators: their columns in tables, folder names and labels in figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

MASK_TITLES = {"active_set": "active-set mask (the paper's formula)", "released": "released mask (the authors' code)"}
NORM_TITLES = {"frobenius": "Frobenius step sizes (as published)", "spectral": "spectral step sizes (largest allowed)"}


class Setting(NamedTuple):
    """The primal mask and the norm of the step sizes; each setting has a panel in figures and a column in verdicts."""

    primal_mask: str
    step_norm: str

    @property
    def titles(self) -> tuple[str, str]:
        """The mask and the norm in words.

        >>> Setting("released", "spectral").titles
        ("released mask (the authors' code)", 'spectral step sizes (largest allowed)')
        """
        return MASK_TITLES.get(self.primal_mask, self.primal_mask), NORM_TITLES.get(self.step_norm, self.step_norm)

    @property
    def order(self) -> tuple[str, str]:
        """The sort key: the published norm and the paper's formula come first."""
        return self.step_norm, self.primal_mask


class Mode(NamedTuple):
    """A mode of backpropagation, with b if it has one; a variant of the loss is appended to it, as in "full+warm"."""

    backprop: str
    b: int | None

    @property
    def label(self) -> str:
        """The mode in words, such as "truncated (b = 30)" or "truncated (b = 30) + warm"."""
        name, _, variant = self.backprop.partition("+")
        b = "" if self.b is None else f" (b = {self.b})"
        return f"{name}{b}" + (f" + {variant.replace('_', ' ')}" if variant else "")

    @property
    def name(self) -> str:
        """The mode in file names, such as "truncated30" or "truncated30+warm"."""
        name, plus, variant = self.backprop.partition("+")
        return f"{name}{self.b or ''}{plus}{variant}"

    @property
    def order(self) -> tuple[str, int]:
        """The sort key: modes by name, then by b."""
        return self.backprop, self.b or 0


class RunKey(NamedTuple):
    """The columns that identify a training, the untrained DCT with a norm, or the observed frames ("none").

    Attributes:
        backprop: the mode of a training, with the variant of its loss if it has one ("full+warm"), "dct" or "none".
        primal_mask: the mask of a training.
        step_norm: the norm of the step sizes, of a training or of the DCT.
        l_training: L of a training.
        seed: the seed of a training.
        b: b of a training, if its mode has one.

    >>> key = RunKey("truncated", "released", "frobenius", 100, 0, 30)
    >>> key.name
    'truncated30-released-frobenius-L100-seed0'
    >>> key.label
    'truncated30 released frobenius L=100 seed 0'
    >>> RunKey("dct", step_norm="spectral").name
    'dct-spectral'
    """

    backprop: str
    primal_mask: str | None = None
    step_norm: str | None = None
    l_training: int | None = None
    seed: int | None = None
    b: int | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the key of a row, which may have further columns."""
        return cls(*(row[column] for column in cls._fields))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the key of a training from its run.json."""
        own = record["settings"]
        backprop, network = own["backprop"], own["network"]
        mode = backprop["name"] + own.get("objective", {}).get("label", "")
        return cls(
            mode, backprop["primal_mask"], network["step_norm"], network["iterations"], own["seed"],
            backprop.get("iterations"),
        )  # fmt: skip

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that identify the operator, with their values."""
        return self._asdict()

    @property
    def trained(self) -> bool:
        """Whether the operator was trained."""
        return self.backprop not in ("none", "dct")

    @property
    def setting(self) -> Setting:
        """The setting of a training.

        Raises:
            ValueError: if the operator was not trained.
        """
        if self.primal_mask is None or self.step_norm is None:
            raise ValueError(f"{self.backprop} has no primal mask")
        return Setting(self.primal_mask, self.step_norm)

    @property
    def mode(self) -> Mode:
        """The mode of a training, with its b."""
        return Mode(self.backprop, self.b)

    @property
    def name(self) -> str:
        """The name of the operator's files: a training's folder, "dct-" and the norm of the step sizes, or "none"."""
        return "-".join(self._words("L", "seed"))

    @property
    def label(self) -> str:
        """The operator in words, such as "truncated30 released frobenius L=100 seed 0" or "dct frobenius"."""
        return " ".join(self._words("L=", "seed "))

    @property
    def order(self) -> tuple[Any, ...]:
        """The sort key of the trainings in a table: norm, mask, mode, b, L, seed."""
        return *self.setting.order, *self.mode.order, self.l_training, self.seed

    def _words(self, depth: str, seed: str) -> Iterable[str]:
        if self.l_training is None:
            return filter(None, (self.backprop, self.step_norm))
        return (self.mode.name, *self.setting, f"{depth}{self.l_training}", f"{seed}{self.seed}")


def settings_in(rows: Iterable[Mapping[str, Any]]) -> list[Setting]:
    """Return the settings of the trainings in a table, in their order."""
    keys = {RunKey.from_row(row) for row in rows}
    return sorted({key.setting for key in keys if key.trained}, key=lambda setting: setting.order)


def by_operator(rows: Iterable[Mapping[str, Any]], column: str) -> dict[RunKey, Any]:
    """Return the values of a column of a table that has one row for each operator, such as optima.csv."""
    return {RunKey.from_row(row): row[column] for row in rows}


def after_training_iterations(evaluation: Iterable[Mapping[str, Any]]) -> dict[RunKey, float]:
    """Return each training's test MSE after as many iterations as it was trained with, from rows of evaluation.csv."""
    return by_operator((row for row in evaluation if row["l_inference"] == row["l_training"]), "mse")
