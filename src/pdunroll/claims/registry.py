"""What all claims share: the errors they are computed from, what decides, and their row in the table of verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pdunroll.evaluation.statistics import Answer, Interval, simultaneous
from pdunroll.training.run_key import Setting

Row = dict[str, Any]
Values = NDArray[np.float64]
Key = tuple[str, int]  # mode, L_training
Name = TypeVar("Name")

WORDS = {True: "holds", False: "does not hold", None: "undecided"}
KINDS = ("classical", "optimality")
MODES = ("full", "truncated")
ERROR = "% of the error"


def verdict(
    claim: str, setting: Setting, statement: str, answer: Answer, interval: Interval | None, unit: str, evidence: str
) -> Row:
    """A row of verdicts.csv; estimate, low and high are empty where nothing could be computed."""
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {
        "claim": claim, **setting._asdict(), "verdict": WORDS[answer],
        "estimate": interval.estimate if interval else None, "low": low, "high": high, "unit": unit,
        "statement": statement, "evidence": evidence,
    }  # fmt: skip


def undecided(claim: str, setting: Setting, statement: str, unit: str, reason: str) -> Row:
    """A claim that what has been run says nothing about."""
    return verdict(claim, setting, statement, None, None, unit, reason)


def listed(numbers: list[int]) -> str:
    """Return numbers separated by commas."""
    return ", ".join(map(str, numbers))


class Curves(NamedTuple):
    """Test MSE of all trainings with one setting, in the sample and in each resample (see `statistics`)."""

    setting: Setting
    grid: list[int]  # numbers of iterations in inference
    mse: dict[Key, Values]  # (len(grid), 1 + resamples)
    dct: Values  # the untrained DCT's, as one of `mse`
    optimum: dict[Key, Values]  # (1 + resamples,), at certified optima
    dct_optimum: Values
    certified: float  # the smallest share of frames with a certified optimum
    validation: dict[str, dict[Key, float]]  # kind of inference -> mean validation MSE
    untrained: list[Key]  # that kept the operator they started from
    basis: str  # seeds and frames, in words

    def at(self, mode: str, depth: int, kind: str) -> Values:
        """MSE (1 + resamples,) after L_training iterations (classical) or at the certified optimum (optimality)."""
        return self.mse[mode, depth][self.grid.index(depth)] if kind == "classical" else self.optimum[mode, depth]

    def depths(self, *modes: str) -> list[int]:
        """The L_training that all these modes have."""
        return sorted(set.intersection(*({depth for own, depth in self.mse if own == mode} for mode in modes)))


class Thresholds(NamedTuple):
    """The margin, the confidence and the borders of the regimes by which claims are judged."""

    margin: float  # in % of the error
    confidence: float
    borders: tuple[float, float]  # in L, between the paper's regimes

    def regime(self, depth: int) -> int:
        """Return the number of the regime of an L_training, 1 to 3."""
        return 1 + sum(depth > border for border in self.borders)


def intervals(values: dict[Name, Values], thresholds: Thresholds) -> dict[Name, Interval]:
    """Simultaneous intervals of named quantities."""
    return dict(zip(values, simultaneous(np.stack(list(values.values())), thresholds.confidence), strict=True))


def text(found: dict[str, Interval]) -> str:
    """Return estimates and their intervals in words."""
    return "; ".join(f"{name}: {i.estimate:+.3g} % [{i.low:+.3g}, {i.high:+.3g}]" for name, i in found.items())


def evidence(curves: Curves, found: dict[str, Interval], keys: Iterable[Key]) -> str:
    """The numbers, how many frames and seeds are behind them, and which trainings came to nothing."""
    idle = [f"{mode} L = {depth}" for mode, depth in curves.untrained if (mode, depth) in set(keys)]
    note = f"; {', '.join(idle)} kept the untrained operator: no step was better in validation" if idle else ""
    return f"{text(found)}; {curves.basis}{note}."
