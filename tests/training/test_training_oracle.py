"""Twenty steps of training against a transcription of the paper: loops over frames and iterations, column vectors.

It shares no code with the package nor with `oracles`; the arithmetic is NumPy's, in float64.
"""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from pdunroll import Full, Truncated, quantize
from pdunroll.speech.frames import Frames
from pdunroll.training.data import FrameData
from pdunroll.training.fit import fit
from pdunroll.training.module import UnrolledTraining

N, BITS, ETA = 16, 3, 1 / 8
FRAMES, BATCH, EPOCHS = 37, 8, 4  # five steps an epoch, the last one with five frames
L = 12
FIRST, LAST = 1e-3, 1e-5  # learning rates


class Case(NamedTuple):
    """The settings of one training."""

    mode: str
    mask: str
    norm: str
    rows: int  # m
    theta: float
    ratio: float
    epsilon: float
    counts: str
    b: int  # backward iterations of the truncated mode; min(L, b) with the released mask


PROTOCOL = {"rows": N, "theta": 1.0, "ratio": 10.0, "epsilon": 1e-7, "counts": "steps", "b": 15}  # b > L
OTHER = {"rows": 13, "theta": 0.8, "ratio": 4.0, "epsilon": 1e-3, "counts": "frames", "b": 7}  # b < L
SETTINGS = [*product(("full", "truncated"), ("active_set", "released"), ("frobenius", "spectral"))]
CASES = [Case(*setting, **options) for options in (PROTOCOL, OTHER) for setting in SETTINGS]
CASES += [
    Case(*setting, **{**PROTOCOL, "epsilon": epsilon, "counts": counts})
    for epsilon, counts in ((1e-8, "steps"), (1e-8, "frames"), (1e-7, "frames"))
    for setting in (("full", "released", "frobenius"), ("truncated", "active_set", "spectral"))
]


# ---------------------------------------------------------------- the transcription


def step_sizes(K: np.ndarray, case: Case) -> tuple[float, float]:
    if case.norm == "frobenius":
        size = np.sqrt(sum(K[i, j] ** 2 for i in range(K.shape[0]) for j in range(K.shape[1])))
    else:
        size = np.sqrt(np.linalg.eigvalsh(K.T @ K)[-1])
    return 0.99 * case.ratio / size, 0.99 / (case.ratio * size)


def gradient(K: np.ndarray, x: np.ndarray, truth: np.ndarray, case: Case) -> np.ndarray:
    """The gradient of half the squared error of one frame, by Algorithm 1, Algorithm 2 and the lemma."""
    sigma, tau = step_sizes(K, case)
    y, ybar, psi = {0: x}, {0: x}, {0: np.zeros(len(K))}
    z_dual, z_primal = {}, {}
    for l in range(L):
        z_dual[l + 1] = psi[l] + sigma * K @ ybar[l]
        psi[l + 1] = np.minimum(1, np.maximum(-1, z_dual[l + 1]))
        z_primal[l + 1] = y[l] - tau * K.T @ psi[l + 1]
        y[l + 1] = np.minimum(ETA, np.maximum(-ETA, z_primal[l + 1] - x)) + x
        ybar[l + 1] = y[l + 1] + case.theta * (y[l + 1] - y[l])

    def mask_dual(l: int) -> np.ndarray:
        return np.where(np.abs(z_dual[l]) <= 1, 1.0, 0.0)

    def mask_primal(l: int) -> np.ndarray:
        if case.mask == "released":
            return np.where(np.abs(z_primal[l] - 2 * x) <= 1, 1.0, 0.0)
        return np.where(np.abs(z_primal[l] - x) <= ETA, 1.0, 0.0)

    delta_primal, delta_dual = y[L] - truth, np.zeros(len(K))
    delta_dual_bar = np.zeros(len(K))
    total, sum_primal, sum_dual = np.zeros_like(K), np.zeros(N), np.zeros(len(K))
    frozen = [L] * (min(L, case.b) if case.mask == "released" else case.b)  # the masks stay those of L
    for l in range(L, 0, -1) if case.mode == "full" else frozen:
        delta_primal = mask_primal(l) * (delta_primal + sigma * K.T @ delta_dual_bar)
        before = delta_dual
        delta_dual = mask_dual(l) * (before - tau * K @ delta_primal)
        delta_dual_bar = delta_dual + case.theta * (delta_dual - before)
        total += sigma * np.outer(delta_dual, ybar[l - 1]) - tau * np.outer(psi[l], delta_primal)
        sum_primal, sum_dual = sum_primal + delta_primal, sum_dual + delta_dual
    if case.mode == "full":
        return total
    return sigma * np.outer(sum_dual, y[L]) - tau * np.outer(psi[L], sum_primal)


def dct(rows: int) -> np.ndarray:
    """The first rows of the orthonormal DCT-II."""
    K = np.array([[np.cos(np.pi * (j + 0.5) * i / N) for j in range(N)] for i in range(rows)]) * np.sqrt(2 / N)
    K[0] /= np.sqrt(2)
    return K


def trained_by_hand(case: Case, batches: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """K after each step of Adam (Kingma and Ba, Algorithm 1) with a rate that falls linearly."""
    K, history = dct(case.rows), []
    m, v = np.zeros_like(K), np.zeros_like(K)
    decay = EPOCHS * FRAMES if case.counts == "frames" else len(batches)
    for t, (truths, observations) in enumerate(batches, start=1):
        g = np.zeros_like(K)
        for truth, x in zip(truths, observations, strict=True):  # the batch's sum, not its mean
            g += gradient(K, x, truth, case)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = FIRST + (LAST - FIRST) * min((t - 1) / decay, 1.0)
        K = K - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + case.epsilon)
        history.append(K)
    return history


# ---------------------------------------------------------------- the package


def frames(count: int, seed: int) -> Frames:
    """Sums of three sinusoids and some noise, in float64."""
    generator = np.random.default_rng(seed)
    tones = np.sin(2 * np.pi * (np.array([1.3, 2.1, 3.7])[:, None] * np.arange(N) / N + 0.2))
    truth = generator.uniform(-0.4, 0.4, (count, 3)) @ tones + 0.05 * generator.normal(size=(count, N))
    truth = truth.clip(-1, 1)
    return Frames(truth, quantize(truth, BITS), np.zeros(count, dtype=np.int64))


def trained(case: Case, folder: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """The batches that the project's training took, in order, and K after each of its steps."""
    batches, operators = [], []

    class Watching(UnrolledTraining):
        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_index: int) -> torch.Tensor:
            batches.append(tuple(part.numpy().copy() for part in batch))
            return super().training_step(batch, batch_index)

        def on_train_batch_end(self, *given: object) -> None:
            operators.append(self.network.operator.detach().numpy().copy())

    strategies = {"full": Full(primal_mask=case.mask), "truncated": Truncated(primal_mask=case.mask, iterations=case.b)}
    data = FrameData(
        frames(FRAMES, 0), frames(9, 1), batch_size=BATCH, seed=3, shuffle_buffer=10, validation_frames=8
    )  # fmt: skip
    counted = data.frames_per_pass if case.counts == "frames" else data.steps_per_pass
    module = Watching(
        rows=case.rows, frame_length=N, radius=ETA, iterations=L, backprop=strategies[case.mode],
        step_ratio=case.ratio, extrapolation=case.theta, step_norm=case.norm,
        learning_rate=FIRST, final_learning_rate=LAST, adam_epsilon=case.epsilon, decay=EPOCHS * counted,
    )  # fmt: skip
    module.network.operator.data = torch.from_numpy(dct(case.rows))  # its own is rounded to float32
    fit(module, data, folder, epochs=EPOCHS, title="test")
    return batches, operators


def name(case: Case) -> str:
    return f"{case.mode}-{case.mask}-{case.norm}-m{case.rows}-epsilon{case.epsilon:g}-{case.counts}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_step_is_that_of_the_transcription(case, tmp_path):
    batches, operators = trained(case, tmp_path)
    assert [len(truth) for truth, _ in batches] == EPOCHS * [8, 8, 8, 8, 5]
    assert all(part.dtype == np.float64 for batch in batches for part in batch)
    for taken in (batches[:5], batches[5:10]):  # each frame once an epoch
        rows, whole = np.concatenate([truth for truth, _ in taken]), frames(FRAMES, 0).truth
        np.testing.assert_array_equal(rows[rows[:, 0].argsort()], whole[whole[:, 0].argsort()])
    expected = trained_by_hand(case, batches)
    assert len(operators) == len(expected) == 20
    start = dct(case.rows)
    for number, (ours, theirs) in enumerate(zip(operators, expected, strict=True), start=1):
        # Adam divides by the root of v, so an entry with a tiny gradient has a relative error of its own; the bound is
        # therefore relative to the largest change of K. The differences measured are below 2e-13 of it.
        atol = 1e-10 * np.abs(theirs - start).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=f"after step {number}")


def test_each_setting_leads_to_another_operator():
    """Or else the tests above would not tell them apart."""
    data = frames(FRAMES, 0)
    batches = [(data.truth[k : k + BATCH], data.observation[k : k + BATCH]) for k in range(0, FRAMES, BATCH)] * EPOCHS
    for options in (PROTOCOL, OTHER):
        found = {setting: trained_by_hand(Case(*setting, **options), batches)[-1] for setting in SETTINGS}
        for one, other in combinations(SETTINGS, 2):
            assert np.abs(found[one] - found[other]).max() > 1e-5, (one, other)
    case = CASES[0]
    last = trained_by_hand(case, batches)[-1]
    for change in ({"epsilon": 1e-8}, {"counts": "frames"}, {"theta": 0.8}, {"ratio": 4.0}):
        assert np.abs(trained_by_hand(case._replace(**change), batches)[-1] - last).max() > 1e-9, change
    for mask, ahead in (("active_set", True), ("released", False)):  # does b = 15 differ from b = L = 12?
        case = Case("truncated", mask, "frobenius", **PROTOCOL)
        last = {b: trained_by_hand(case._replace(b=b), batches)[-1] for b in (7, L, 15)}
        assert np.abs(last[7] - last[L]).max() > 1e-5
        assert (np.abs(last[15] - last[L]).max() > 1e-5) == ahead
