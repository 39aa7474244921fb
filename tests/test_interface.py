"""The Python interface refuses what it cannot take: `InputError`, in one line that names the argument."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pdunroll
from pdunroll.core.problem import Dequantization
from pdunroll.errors import require_choice, require_integer, require_positive

K, X = torch.eye(4), torch.full((2, 4), 0.3)


def solve(operator=K, observation=X, radius=1 / 16, **options):
    return pdunroll.solve(operator, observation, radius=radius, **options)


def with_sample(value: float) -> torch.Tensor:
    return X.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(value))


MISUSE = {
    "radius True": (lambda: solve(radius=True), "radius"),
    "radius text": (lambda: solve(radius="1"), "radius"),
    "radius None": (lambda: solve(radius=None), "radius"),
    "radius array": (lambda: solve(radius=np.ones((3, 3))), "radius"),
    "radius beyond floats": (lambda: solve(radius=10**400), "radius"),
    "tolerance True": (lambda: solve(tolerance=True), "tolerance"),
    "tolerance text": (lambda: solve(tolerance="1e-6"), "tolerance"),
    "max_iterations 1.5": (lambda: solve(max_iterations=1.5), "max_iterations"),
    "operator array": (lambda: solve(operator=np.eye(4)), "operator"),
    "observation array": (lambda: solve(observation=np.ones((2, 4))), "observation"),
    "observation list": (lambda: solve(observation=[[0.1] * 4]), "observation"),
    "operator sparse": (lambda: solve(operator=K.to_sparse()), "operator"),
    "observation sparse": (lambda: solve(observation=X.to_sparse()), "observation"),
    "operator of integers": (lambda: solve(operator=K.int()), "operator"),
    "observation of integers": (lambda: solve(observation=X.int()), "observation"),
    "observation complex": (lambda: solve(observation=X.to(torch.complex64)), "observation"),
    "operator elsewhere": (lambda: solve(operator=K.to("meta")), "operator"),
    "observation NaN": (lambda: solve(observation=with_sample(math.nan)), "observation"),
    "observation inf": (lambda: solve(observation=with_sample(math.inf)), "observation"),
    "observation -inf": (lambda: solve(observation=with_sample(-math.inf)), "observation"),
    "algorithm by name": (lambda: solve(algorithm="halpern"), "algorithm"),
    "algorithm as class": (lambda: solve(algorithm=pdunroll.RestartedHalpern), "algorithm"),
    "period 0": (lambda: pdunroll.RestartedHalpern(period=0), "period"),
    "smoothing text": (lambda: pdunroll.RestartedHalpern(smoothing="much"), "smoothing"),
    "problem True": (lambda: Dequantization(True), "radius"),
    "implicit -5": (lambda: pdunroll.Implicit(max_iterations=-5), "max_iterations"),
    "implicit True": (lambda: pdunroll.Implicit(tolerance=True), "tolerance"),
    "mask tensor": (lambda: pdunroll.Implicit(primal_mask=X), "primal_mask"),
    "DCT 0": (lambda: pdunroll.dct_operator(0, 5), "rows"),
    "DCT 2.5": (lambda: pdunroll.dct_operator(2.5, 5), "rows"),
    "DCT True": (lambda: pdunroll.dct_operator(5, True), "columns"),
    "DCT -1": (lambda: pdunroll.dct_operator(5, -1), "columns"),
    "DCT of integers": (lambda: pdunroll.dct_operator(5, 5, torch.int32), "dtype"),
    "DCT of NumPy's": (lambda: pdunroll.dct_operator(5, 5, np.float32), "dtype"),
    "positive": (lambda: require_positive("size", np.array([[1.0], [2.0]])), "size"),
    "integer": (lambda: require_integer("size", np.eye(40), 1), "size"),
    "choice": (lambda: require_choice("size", np.eye(40), ("small",)), "size"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_refused_in_one_line(case):
    attempt, named = MISUSE[case]
    with pytest.raises(pdunroll.InputError, match=named) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.float64(0.5), np.int64(3)])
def test_numbers_of_any_kind_are_taken(value):
    assert require_positive("size", value) == float(value)
    assert type(require_positive("size", value)) is float


def test_single_and_double_precision_may_be_mixed():
    found = pdunroll.solve(K.double(), X, radius=1 / 16)
    assert found.primal.dtype == torch.float32
    assert (found.gap <= 1e-6).all()
