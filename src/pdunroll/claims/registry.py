"""The registry of claims, the data on which they are judged, and the text of their evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pdunroll.evaluation.statistics import Interval, Verdict, simultaneous
from pdunroll.training.run_key import Setting

Row = dict[str, Any]
Values = NDArray[np.float64]
Key = tuple[str, int]  # mode, L_training
Name = TypeVar("Name")

WORDS = {True: "holds", False: "does not hold", None: "undecided"}
KINDS = ("classical", "optimality")
MODES = ("full", "truncated")
ERROR = "% of the error"


class Curves(NamedTuple):
    """Test MSE of all trainings with one setting, in the sample and in each resample (see `statistics`).

    Attributes:
        grid: the numbers of iterations in inference.
        mse: the MSE for each mode and L, (len(grid), 1 + resamples).
        dct: the same for the untrained DCT.
        optimum: the MSE at the certified optimum for each mode and L, (1 + resamples,).
        dct_optimum: the same for the untrained DCT.
        certified: the smallest share of frames with a certified optimum.
        validation: the mean validation MSE for each kind of inference, mode and L.
        untrained: the trainings that kept their initial operator.
        basis: the seeds and frames in words.
    """

    grid: list[int]
    mse: dict[Key, Values]
    dct: Values
    optimum: dict[Key, Values]
    dct_optimum: Values
    certified: float
    validation: dict[str, dict[Key, float]]
    untrained: list[Key]
    basis: str

    def at(self, mode: str, depth: int, kind: str) -> Values:
        """Return the MSE (1 + resamples,) after L iterations (classical) or at the certified optimum (optimality)."""
        return self.mse[mode, depth][self.grid.index(depth)] if kind == "classical" else self.optimum[mode, depth]

    def depths(self, *modes: str) -> list[int]:
        """Return the values of L_training that all these modes have."""
        return sorted(set.intersection(*({depth for own, depth in self.mse if own == mode} for mode in modes)))


class Thresholds(NamedTuple):
    """The thresholds of the verdicts.

    Attributes:
        margin: the difference that counts as none, in % of the error.
        confidence: the confidence level of the intervals.
        low: the border of regimes 1 and 2, in L.
        high: the border of regimes 2 and 3, in L.
        time_margin: the share by which a time may differ from the claimed one; None if times are not judged.
        memory_margin: the share of full's growth below which memory counts as constant.
    """

    margin: float
    confidence: float
    low: float
    high: float
    time_margin: float | None
    memory_margin: float

    def regime(self, depth: int) -> int:
        """Return the number of the regime of an L_training, 1 to 3."""
        return 1 + (depth > self.low) + (depth > self.high)


class Case(NamedTuple):
    """The data on which a claim is judged: the trainings of its modes with one setting, and other measurements.

    Attributes:
        setting: the primal mask and the norm of the step sizes.
        curves: the errors of the trainings that are compared; at each L all modes have the same seeds.
        training: the rows of training.csv with this setting.
        b: the b of the compared trainings of `truncated`.
        theory: the tables of the theory by their names, with the rows of this setting.
        memory: the rows of benchmark/memory.csv; empty if memory was not measured.
        thresholds: the thresholds of the verdicts.
    """

    setting: Setting
    curves: Curves
    training: list[Row]
    b: int | None
    theory: dict[str, list[Row]]
    memory: list[Row]
    thresholds: Thresholds


class Finding(NamedTuple):
    """The result of a claim's function.

    Attributes:
        verdict: whether the claim holds; None for undecided.
        interval: the decisive estimate and its interval; None if there is none.
        evidence: the numbers in words, or a note on what was not measured.
    """

    verdict: Verdict
    interval: Interval | None
    evidence: str


class Claim(NamedTuple):
    """A claim of the slides; see `claim`."""

    name: str
    statement: str
    unit: str
    about: tuple[str, ...]
    compares: bool
    kinds: tuple[str | None, ...]
    judge: Callable[..., Finding]


CLAIMS: list[Claim] = []
Judge = TypeVar("Judge", bound=Callable[..., Finding])


def claim(
    name: str, statement: str, *, unit: str, about: tuple[str, ...] = MODES, compares: bool = False,
    each_kind: bool = False,
) -> Callable[[Judge], Judge]:  # fmt: skip
    """Register a function that judges a claim, given a `Case`.

    Args:
        name: the value of the column `claim`.
        statement: the claim as a sentence, in which {margin}, {low}, {high} and {memory_margin} stand for the
            thresholds, {iterations} for the most iterations in inference and {kind} for the kind of inference.
        unit: the unit of the estimate.
        about: the modes of backpropagation whose trainings the case has.
        compares: whether the claim compares these modes; unless all of them were trained with the setting, it is then
            undecided and the function is not called.
        each_kind: whether the claim is made for classical and for optimality inference; the function is then called
            with "classical" and with "optimality" as its second argument, and the kind is appended to the name.

    Returns:
        A decorator.
    """

    def register(judge: Judge) -> Judge:
        CLAIMS.append(Claim(name, statement, unit, about, compares, KINDS if each_kind else (None,), judge))
        return judge

    return register


def verdicts(
    claims: list[Claim], setting: Setting, cases: dict[tuple[str, ...], Case | None], thresholds: Thresholds
) -> list[Row]:
    """Return the rows of verdicts.csv for one setting.

    Args:
        claims: the claims; in the result, those about a kind of inference come first, kind by kind.
        setting: the primal mask and the norm of the step sizes.
        cases: the cases by the modes that claims are about; None if no such mode was trained.
        thresholds: the thresholds of the verdicts.
    """
    rows = []
    for kind in (*KINDS, None):
        for claim in claims:
            if kind in claim.kinds:
                case = cases[claim.about]
                finding = _finding(claim, case, kind)
                interval = finding.interval
                rows.append({
                    "claim": "-".join(filter(None, (claim.name, kind))), **setting._asdict(),
                    "verdict": WORDS[finding.verdict],
                    "estimate": interval and interval.estimate, "low": interval and interval.low,
                    "high": interval and interval.high, "unit": claim.unit,
                    "statement": claim.statement.format(
                        **thresholds._asdict(), kind=kind, iterations=case.curves.grid[-1] if case else "many"
                    ),
                    "evidence": finding.evidence,
                })  # fmt: skip
    return rows


def _finding(claim: Claim, case: Case | None, kind: str | None) -> Finding:
    """Judge a claim, or leave it undecided if its modes were not trained."""
    missing = [mode for mode in claim.about if case is None or not case.curves.depths(mode)]
    if case is None or (missing and claim.compares):
        return Finding(None, None, f"No training with this mask and norm: {', '.join(missing)}.")
    return claim.judge(case, kind) if kind else claim.judge(case)


def intervals(values: dict[Name, Values], thresholds: Thresholds) -> dict[Name, Interval]:
    """Return simultaneous intervals of named quantities."""
    return dict(zip(values, simultaneous(np.stack(list(values.values())), thresholds.confidence), strict=True))


def listed(numbers: Iterable[int]) -> str:
    """Return numbers separated by commas."""
    return ", ".join(map(str, numbers))


def evidence(curves: Curves, found: dict[str, Interval], keys: Iterable[Key]) -> str:
    """Return the numbers in words, with their frames and seeds, and the trainings that kept the initial operator."""
    numbers = "; ".join(f"{name}: {i.estimate:+.3g} % [{i.low:+.3g}, {i.high:+.3g}]" for name, i in found.items())
    idle = [f"{mode} L = {depth}" for mode, depth in curves.untrained if (mode, depth) in set(keys)]
    note = f"; {', '.join(idle)} kept the untrained operator: no step was better in validation" if idle else ""
    return f"{numbers}; {curves.basis}{note}."
