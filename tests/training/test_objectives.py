"""The losses of a training beside the plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from scipy import linalg, signal

from conftest import settings_of
from pdunroll import Full, Implicit, InputError, Truncated, dct_operator, quantize, unroll
from pdunroll.core.unrolled_halpern import unroll_halpern
from pdunroll.speech.frames import Frames
from pdunroll.training.data import FrameData
from pdunroll.training.fit import fit
from pdunroll.training.module import UnrolledTraining
from pdunroll.training.network import UnrolledNetwork
from pdunroll.training.objectives import (
    AtDepth,
    HalpernDepth,
    KeptPairs,
    Objective,
    RandomDepth,
    SeveralDepths,
    WarmStarts,
)
from pdunroll.training.perceptual import PerceptuallyWeighted

N, ETA, L = 16, 1 / 8, 12
OBJECTIVES = [
    AtDepth(),
    RandomDepth(lowest=2, seed=5),
    SeveralDepths(depths=(3, 7), optimum_iterations=50),
    WarmStarts(advance=4, validation_iterations=30),
    HalpernDepth(),
    PerceptuallyWeighted(order=4),
]


def frames(count: int, seed: int) -> Frames:
    truth = np.random.default_rng(seed).normal(0, 0.3, (count, N)).clip(-1, 1).astype(np.float32)
    return Frames(truth, quantize(truth, 3), np.zeros(count, dtype=np.int64))


def batch(B: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    own = frames(B, 2)
    return torch.from_numpy(own.truth).double(), torch.from_numpy(own.observation).double()


def network(**options) -> UnrolledNetwork:
    own = UnrolledNetwork(
        rows=N, frame_length=N, radius=ETA, iterations=L, **{"backprop": Full(), "step_norm": "spectral", **options}
    ).double()
    noise = 0.05 * torch.randn(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own.operator.data = dct_operator(N, N, torch.float64) + noise
    return own


def gradient(loss: torch.Tensor, own: UnrolledNetwork) -> torch.Tensor:
    return torch.autograd.grad(loss, own.operator)[0]


def error(own: UnrolledNetwork, iterations: int, **options) -> torch.Tensor:
    y, x = batch()
    restored = unroll(own.operator, x, radius=ETA, iterations=iterations, **{"step_norm": "spectral", **options})
    return 0.5 * (restored - y).square().sum()


def test_the_plain_loss_is_the_error_after_all_iterations():
    own = network()
    assert AtDepth().loss(own, batch(), 3, None) == error(own, L)


def test_a_depth_is_log_uniform_and_depends_on_seed_and_step_only():
    draws = np.array([RandomDepth(lowest=10, seed=1).depth(step, 1000) for step in range(4000)])
    assert draws.min() == 10
    assert draws.max() > 980
    for low, high in ((10, 31.6), (31.6, 100), (100, 316), (316, 1000)):
        assert np.mean((low < draws) & (draws <= high)) == pytest.approx(0.25, abs=0.04)
    assert draws[7] == RandomDepth(lowest=10, seed=1).depth(7, 1000)
    other = [RandomDepth(lowest=10, seed=2).depth(step, 1000) for step in range(100)]
    assert np.mean(draws[:100] == other) < 0.2


def test_the_loss_at_a_random_depth_is_the_error_there():
    own, objective = network(), RandomDepth(lowest=2, seed=5)
    for step in range(5):
        assert objective.loss(own, batch(), step, None) == error(own, objective.depth(step, L))
    with pytest.raises(InputError, match="iterations"):
        RandomDepth(lowest=L + 1).loss(own, batch(), 0, None)


def test_the_loss_at_several_depths_is_the_mean_of_errors_and_gradients():
    own = network(backprop=Truncated(iterations=9))
    losses = [error(own, depth, backprop=Truncated(iterations=9)) for depth in (3, 7, L)]
    losses.append(error(own, 50, backprop=Implicit()))
    found = SeveralDepths(depths=(3, 7), optimum_iterations=50).loss(own, batch(), 0, None)
    assert found.item() == pytest.approx(sum(loss.item() for loss in losses) / 4, rel=1e-12)
    torch.testing.assert_close(gradient(found, own), sum(gradient(loss, own) for loss in losses) / 4)


@pytest.mark.parametrize("strategy", [Full(), Full(checkpoint_every=5)])
def test_a_warm_start_has_the_gradient_of_the_iterations_after_it(strategy):
    own, (y, x) = network(backprop=strategy), batch()
    primal, dual = x + 0.1 * torch.rand_like(x) - 0.05, torch.rand_like(x) - 0.5
    numbers, kept = (
        torch.tensor([7, 1, 2, 0, 5, 9]),
        KeptPairs(torch.zeros(10, N).double(), torch.zeros(10, N).double()),
    )
    kept.primal[numbers], kept.dual[numbers] = primal, dual
    found = WarmStarts(advance=4).loss(own, (y, x, numbers), 0, kept)

    K = own.operator.detach().clone().requires_grad_()
    norm = float(torch.linalg.matrix_norm(K.detach(), ord=2))
    sigma, tau = 9.9 / norm, 0.099 / norm

    def iterated(K, primal, dual, count):
        bar = primal
        for _ in range(count):
            dual = (dual + sigma * bar @ K.T).clamp(-1, 1)
            before, primal = primal, (primal - tau * dual @ K - x).clamp(-ETA, ETA) + x
            bar = 2 * primal - before
        return primal, dual

    primal, dual = iterated(K.detach(), primal, dual, 4)
    torch.testing.assert_close(kept.primal[numbers], primal)
    torch.testing.assert_close(kept.dual[numbers], dual)
    assert not kept.primal[[3, 4, 6, 8]].any()
    loss = 0.5 * (iterated(K, primal, dual, L)[0] - y).square().sum()
    assert found.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient(found, own), torch.autograd.grad(loss, K)[0])


def test_the_loss_after_halpern_iterations_is_the_error_of_their_result():
    own, (y, x) = network(), batch()
    restored = unroll_halpern(own.operator, x, radius=ETA, iterations=L, step_norm="spectral")
    assert HalpernDepth().loss(own, (y, x), 0, None) == 0.5 * (restored - y).square().sum()


def test_halpern_iterations_learn_no_step_sizes():
    own, (y, x) = network(learned_steps=True), batch()
    with pytest.raises(InputError, match="learned_steps=false"):
        HalpernDepth().loss(own, (y, x), 0, None)


def test_the_perceptual_weight_is_that_of_linear_prediction():
    """Against the autocorrelation and the normal equations written out, and the filters' response by SciPy."""
    generator = np.random.default_rng(0)
    frame = signal.lfilter([1.0], [1.0, -1.6, 0.9], generator.normal(size=N))
    weights = PerceptuallyWeighted(order=4).weights(torch.from_numpy(frame[None]))[0].numpy()
    windowed = frame * signal.get_window("hann", N)
    r = np.array([windowed[: N - lag] @ windowed[lag:] for lag in range(5)])
    a = np.r_[1.0, -linalg.solve_toeplitz(np.r_[r[0] * 1.001, r[1:4]], r[1:])]
    above, below = (a * share ** np.arange(5) for share in (0.9, 0.6))
    response = np.abs(signal.freqz(above, below, worN=np.pi * np.arange(N + 1) / N)[1]) ** 2
    np.testing.assert_allclose(weights, response / response.mean(), rtol=1e-6)


def test_the_perceptual_loss_of_equal_weights_is_half_the_squared_error(monkeypatch):
    own, (y, x) = network(), batch()
    monkeypatch.setattr(PerceptuallyWeighted, "weights", lambda self, truth: torch.ones(1, N + 1, dtype=truth.dtype))
    loss, plain = (kind().loss(own, (y, x), 0, None) for kind in (PerceptuallyWeighted, AtDepth))
    torch.testing.assert_close(loss, plain)


def test_a_warm_start_that_does_not_fit_is_refused():
    own, (_, x) = network(backprop=Implicit()), batch()
    x = torch.cat([x, torch.full((1, N), ETA / 2).double()])  # trivial: not iterated
    with pytest.raises(InputError, match="warm start"):
        own(x, start=own.advanced(x, primal=x, dual=torch.zeros_like(x), count=2))


def module(objective: Objective) -> UnrolledTraining:
    return UnrolledTraining(
        frame_length=N, radius=ETA, iterations=L, objective=objective, learning_rate=1e-3, decay=40,
        backprop=Full(primal_mask="released"),
    )  # fmt: skip


def data(objective: Objective) -> FrameData:
    return FrameData(frames(40, 0), frames(20, 1), batch_size=8, seed=3, numbered=objective.keeps_pairs)


class Interrupted(pl.Callback):
    """Fails in the third pass."""

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise OSError("interrupted")


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_an_interrupted_training_goes_on_bit_for_bit(objective, tmp_path: Path):
    whole = module(objective)
    fit(whole, data(objective), tmp_path / "whole", epochs=4, title="test")
    with pytest.raises(OSError, match="interrupted"):
        fit(module(objective), data(objective), tmp_path / "cut", epochs=4, title="test", callbacks=[Interrupted()])
    resumed = module(objective)
    fit(resumed, data(objective), tmp_path / "cut", epochs=4, title="test")
    assert resumed.global_step == whole.global_step == 20
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    loaded = UnrolledTraining.load_from_checkpoint(tmp_path / "whole/last.ckpt", weights_only=True)
    assert loaded.objective == objective


def test_the_losses_lead_to_different_operators(tmp_path):
    found = []
    for objective in OBJECTIVES:
        own = module(objective)
        fit(own, data(objective), tmp_path / type(objective).__name__, epochs=2, title="test")
        found.append(own.network.operator.detach())
    distances = [float((one - other).norm()) for i, one in enumerate(found) for other in found[:i]]
    assert min(distances) > 1e-4


def test_pairs_need_numbered_frames(tmp_path):
    own = module(WarmStarts())
    with pytest.raises(InputError, match="numbered=True"):
        fit(own, data(AtDepth()), tmp_path, epochs=1, title="test")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RandomDepth(lowest=0), lambda: SeveralDepths(depths=(10, 0)), lambda: WarmStarts(advance=0),
        lambda: SeveralDepths(optimum_iterations=0), lambda: WarmStarts(validation_iterations=0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match="objective"):
        wrong()


def test_a_variant_is_part_of_the_identity_and_the_plain_loss_is_not():
    plain, warm = settings_of(), settings_of("objective=warm")
    assert "objective" not in plain.scientific
    assert plain.run == "full-active_set-frobenius-L10-seed0"
    assert warm.scientific["objective"]["loss"]["advance"] == 30
    assert warm.run == "full+warm-active_set-frobenius-L10-seed0"
    drawn = settings_of("objective=random_depth", "backprop=truncated", "seed=3")
    assert drawn.scientific["objective"]["loss"]["seed"] == 3
    assert drawn.run == "truncated30+random_depth-active_set-frobenius-L10-seed3"
