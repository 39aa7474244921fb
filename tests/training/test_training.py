"""Training: schedule, order of the data, best K, divergence, and going on after a kill."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pdunroll import Full, Implicit, Piggyback, Truncated, quantize, unroll
from pdunroll.core.chambolle_pock import chambolle_pock, spectral_norm
from pdunroll.errors import DivergenceError, InputError
from pdunroll.speech.frames import Frames
from pdunroll.training.data import FrameData, shuffled
from pdunroll.training.fit import fit
from pdunroll.training.module import UnrolledTraining
from pdunroll.training.run_folder import STEPS

N, BITS = 16, 3


def frames(count: int, seed: int) -> Frames:
    """Smooth signals: sums of two of the same few sinusoids."""
    generator = np.random.default_rng(seed)
    time_axis = np.arange(N) / N
    tones = np.sin(2 * np.pi * (np.array([1.3, 2.1, 3.7])[:, None] * time_axis + 0.2))
    truth = (generator.uniform(-0.4, 0.4, (count, 3)) @ tones).clip(-1, 1).astype(np.float32)
    return Frames(truth, quantize(truth, BITS), np.zeros(count, dtype=np.int64))


def network(backprop=None, rows: int = N, iterations: int = 4, **options) -> UnrolledTraining:
    return UnrolledTraining(
        rows=rows, frame_length=N, radius=2.0**-BITS, iterations=iterations,
        backprop=backprop or Full(primal_mask="released"), **{"learning_rate": 1e-3, **options},
    )  # fmt: skip


def frame_data(seed: int = 0, **options) -> FrameData:
    return FrameData(frames(52, 0), frames(30, 1), seed=seed, **{"batch_size": 8, "validation_frames": 20, **options})


def trained(folder: Path, module: UnrolledTraining | None = None, epochs: int = 2, seed: int = 0, **options):
    module, data = module or network(), frame_data(seed, **options)
    module.hparams.decay = module.hparams.decay or epochs * data.steps_per_pass
    return module, fit(module, data, folder, epochs=epochs, title="test")


def test_equals_a_bare_loop(tmp_path):
    module, _ = trained(tmp_path, validations_per_epoch=3)

    train, operator = frames(52, 0), torch.nn.Parameter(network().network.operator.detach().clone())
    y, x = torch.from_numpy(train.truth), torch.from_numpy(train.observation)
    adam = torch.optim.Adam([operator], lr=1e-3)
    step, total = 0, 2 * math.ceil(52 / 8)
    for number in range(2):
        for chunk in shuffled(52, None, seed=number).split(8):
            adam.param_groups[0]["lr"] = 1e-3 + (1e-8 - 1e-3) * step / total
            adam.zero_grad()
            y_hat = unroll(operator, x[chunk], radius=2.0**-BITS, iterations=4, backprop=Full(primal_mask="released"))
            (0.5 * (y_hat - y[chunk]).square().sum()).backward()
            adam.step()
            step += 1
    assert module.global_step == total == step
    torch.testing.assert_close(module.network.operator, operator, rtol=1e-6, atol=1e-7)


def test_learned_steps_are_learned_and_kept_with_the_best_operator(tmp_path):
    module, _ = trained(tmp_path, network(Full(), learned_steps=True, learning_rate=5e-3), validations_per_epoch=3)
    start = network(Full(), learned_steps=True).network.steps
    ratio, scale = (value.item() for value in module.network.steps.values())
    assert [value.item() for value in start.values()] == pytest.approx([10.0, 0.99])
    assert abs(ratio - 10) > 0.1
    assert abs(scale - 0.99) > 1e-5
    best = dict(zip(STEPS, module.best_steps.tolist(), strict=True))
    validation, chosen = frames(30, 1), module.trainer.datamodule.val_dataloader()
    restored = [unroll(module.best_operator, x, radius=2.0**-BITS, iterations=4, **best) - y for y, x in chosen]
    assert len(validation.truth) > sum(map(len, restored)) == 20
    assert float(torch.cat(restored).square().mean()) == pytest.approx(module.best_mse.item(), rel=1e-4)


@pytest.mark.parametrize("rate", [1.0, 20.0])
def test_step_sizes_have_a_learning_rate_of_their_own(tmp_path, rate):
    start = network(Full(), learned_steps=True).network
    module, _ = trained(tmp_path, network(Full(), learned_steps=True, steps_rate=rate), epochs=1, batch_size=52)
    assert module.global_step == 1  # of Adam, whose first step is that of the learning rate, 1e-3
    moved = [
        abs(float(new.detach() - old.detach()))
        for new, old in zip(module.parameters(), start.parameters(), strict=True)
        if new.ndim == 0
    ]
    assert moved == pytest.approx([1e-3 * rate] * 2, rel=1e-3)
    largest = float((module.network.operator - start.operator).detach().abs().max())
    assert largest == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("value", [-50.0, -3.0, 0.0, 3.0, 50.0])
def test_learned_steps_are_convergent_whatever_is_learned(value):
    module = network(Full(), learned_steps=True, step_norm="spectral").network
    module.log_ratio.data.fill_(value / 10)
    module.scale_logit.data.fill_(value)
    steps = {name: step.item() for name, step in module.steps.items()}
    algorithm = chambolle_pock(module.operator, radius=2.0**-BITS, step_norm="spectral", **steps)
    assert algorithm.sigma * algorithm.tau * spectral_norm(module.operator) ** 2 < 0.999
    module(torch.zeros(2, N)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_learned_steps_need_a_mode_with_their_gradient():
    for strategy in (Implicit(), Piggyback()):
        with pytest.raises(InputError, match=r"network\.learned_steps .* does not give; take full"):
            network(strategy, learned_steps=True)


def test_rate_falls_over_the_steps_that_are_given(tmp_path):
    for steps_until_final in (14, 104):
        _, history = trained(tmp_path / str(steps_until_final), network(decay=steps_until_final))
        expected = 1e-3 + (1e-8 - 1e-3) * 14 / steps_until_final
        assert history.rows[-1]["learning_rate"] == pytest.approx(expected, rel=1e-9)


def test_history_has_a_row_before_the_first_step_and_one_each_validation(tmp_path):
    module, history = trained(tmp_path, validations_per_epoch=2)
    assert [row["step"] for row in history.rows] == [0, 3, 7, 10, 14]
    assert history.rows[0]["seconds"] == 0
    assert math.isnan(history.rows[0]["train_mse"])
    seconds = [row["seconds"] for row in history.rows]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0
    with (tmp_path / "training.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [0, 3, 7, 10, 14]
    y, x = module.trainer.datamodule.validation.tensors
    chosen = shuffled(30, None, seed=0)[:20]
    start = unroll(network().network.operator.detach(), x[chosen], radius=2.0**-BITS, iterations=4)
    assert history.rows[0]["validation_mse"] == pytest.approx(float((start - y[chosen]).square().mean()), rel=1e-6)


def test_times_leave_validation_out(tmp_path, monkeypatch):
    original = UnrolledTraining.validation_step

    def slow(self, batch, batch_index):
        time.sleep(0.5)
        original(self, batch, batch_index)

    monkeypatch.setattr(UnrolledTraining, "validation_step", slow)
    _, history = trained(tmp_path)
    assert history.seconds < 0.5


def test_keeps_the_best_operator_not_the_last(tmp_path):
    module, history = trained(tmp_path, network(learning_rate=0.2, final_learning_rate=0.2), epochs=1)
    errors = [row["validation_mse"] for row in history.rows]
    best = int(np.argmin(errors))
    assert best != len(errors) - 1, "the rate is meant to be too high"
    assert module.best_mse.item() == errors[best]
    assert module.best_step.item() == history.rows[best]["step"]
    assert best == 0
    torch.testing.assert_close(module.best_operator, network().network.operator.detach())


@pytest.mark.parametrize(
    ("broken", "symptom"),
    [
        (lambda K: K.fill_(math.inf), "entry of K inf"),
        (lambda K: K.fill_(math.nan), "entry of K nan"),
        (lambda K: K.zero_(), "entry of K 0"),
        (lambda K: K.mul_(1e30), "entry of K .*e[+]29"),
        (lambda K: K.mul_(1e-30), "entry of K .*e-31"),
        (lambda K: K.mul_(3e38), "entry of K .*e[+]38"),
        (lambda K: K[0].fill_(math.nan), "entry of K nan"),
    ],
)
def test_an_operator_that_went_wrong_is_noticed_at_the_next_step(tmp_path, broken, symptom):
    class Breaking(Full):
        calls = 0

        def gradient(self, engine, operator, kept, iterations, grad):
            Breaking.calls += 1
            if Breaking.calls == 3:
                broken(operator.data)
            return torch.zeros_like(operator)

    with pytest.raises(
        DivergenceError, match=rf"diverged at step 3 .*{symptom}.*optimization\.learning_rate"
    ) as caught:
        trained(tmp_path, network(Breaking()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_went_wrong_is_noticed_at_the_step(tmp_path, value):
    class Broken(Full):
        def gradient(self, engine, operator, kept, iterations, grad):
            return torch.full_like(operator, value)

    with pytest.raises(
        DivergenceError, match=r"diverged at step 0 .gradient norm (nan|inf).*optimization.learning_rate"
    ):
        trained(tmp_path, network(Broken()))


def test_an_operator_that_restores_nothing_is_noticed_at_the_validation(tmp_path):
    class Wild(Full):
        def gradient(self, engine, operator, kept, iterations, grad):
            operator.data.copy_(torch.eye(N))  # all samples are to be small
            return torch.zeros_like(operator)

    truth, observation = frame_data().validation.tensors
    unrestored = float((observation - truth).square().mean())
    with pytest.raises(DivergenceError, match=r"validation MSE \S+, \S+ at the start") as caught:
        trained(tmp_path, network(Wild(), iterations=20))
    found = float(str(caught.value).split("validation MSE ")[1].split(",")[0])
    assert found > unrestored


def test_learns_with_every_mode_and_shape(tmp_path):
    for number, (backprop, rows) in enumerate(
        [
            (Full(primal_mask="released"), N),
            (Truncated(primal_mask="released", iterations=4), N),
            (Full(primal_mask="released"), N - 4),
            (Full(primal_mask="released"), N + 4),
        ]
    ):
        module, history = trained(tmp_path / str(number), network(backprop, rows), epochs=40)
        assert module.best_operator.shape == (rows, N)
        assert module.best_mse.item() < 0.98 * history.rows[0]["validation_mse"]


def test_order_depends_on_seed_and_pass_only(tmp_path):
    first, _ = trained(tmp_path / "a", train_frames=24)
    again, _ = trained(tmp_path / "b", train_frames=24)
    other, _ = trained(tmp_path / "c", train_frames=24, seed=1)
    assert torch.equal(first.network.operator, again.network.operator)
    assert not torch.equal(first.network.operator, other.network.operator)
    assert first.global_step == 6
    assert not torch.equal(shuffled(52, None, seed=0), shuffled(52, None, seed=1))


@pytest.mark.parametrize("population", [1, 2, 52, 1000])
@pytest.mark.parametrize("buffer", [None, 1, 2, 7, 51, 52, 1000])
def test_the_order_is_a_permutation(population, buffer):
    order = shuffled(population, buffer, seed=5)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(population))
    assert torch.equal(order, shuffled(population, buffer, seed=5))


@pytest.mark.parametrize("buffer", [1, 2, 7, 100, 999])
def test_with_a_buffer_no_frame_is_drawn_before_it_is_held(buffer):
    order = shuffled(1000, buffer, seed=5)
    early = order - torch.arange(1000)  # how many places before its own each frame appears
    assert int(early.max()) < buffer
    assert buffer == 1 or int(early.max()) > 0.5 * (buffer - 1)  # the buffer is used
    assert buffer > 1 or torch.equal(order, torch.arange(1000))


@pytest.mark.parametrize("buffer", [None, 7, 100])
def test_other_seeds_give_other_orders(buffer):
    orders = [shuffled(500, buffer, seed=seed) for seed in range(4)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


@pytest.mark.parametrize("buffer", [52, 53, 10**9])
def test_a_buffer_that_holds_all_frames_is_none(buffer):
    assert torch.equal(shuffled(52, buffer, seed=3), shuffled(52, None, seed=3))


def test_each_held_frame_is_as_likely_to_be_drawn():
    first = torch.stack([shuffled(50, 5, seed=seed)[0] for seed in range(2000)])
    counts = torch.bincount(first, minlength=50)
    assert int(counts[5:].sum()) == 0
    assert ((counts[:5] - 400).abs() < 4 * (2000 * 0.2 * 0.8) ** 0.5).all()  # four standard deviations


def test_a_pass_takes_its_frames_in_the_order_of_the_buffer(tmp_path):
    taken = []

    class Watching(Full):
        def gradient(self, engine, operator, kept, iterations, grad):
            taken.append(kept[0])  # x
            return super().gradient(engine, operator, kept, iterations, grad)

    trained(tmp_path, network(Watching()), seed=1, shuffle_buffer=5)
    observation = torch.from_numpy(frames(52, 0).observation)
    for number in range(2):
        order = shuffled(52, 5, seed=(1 << 20) + number)
        assert torch.equal(torch.cat(taken[7 * number : 7 * number + 7]), observation[order])


def test_epsilon_reaches_the_optimizer(tmp_path):
    operators = {}
    for epsilon in (1e-8, 1e-7, 1.0):
        module, _ = trained(tmp_path / str(epsilon), network(adam_epsilon=epsilon))
        (group,) = module.optimizers().param_groups
        assert group["eps"] == epsilon
        operators[epsilon] = module.network.operator.detach() - network().network.operator.detach()
    assert not torch.equal(operators[1e-8], operators[1e-7])
    assert operators[1.0].norm() < 0.5 * operators[1e-8].norm()  # gradients below it move less


ARGUMENTS = (
    "experiment=smoke", "backprop=truncated", "network.iterations=40", "tracking=off", "seed=3",
    "optimization.epochs=12", "optimization.train_frames=512", "optimization.validations_per_epoch=4",
)  # fmt: skip


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "pdunroll", "train", *ARGUMENTS],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_killed_training_goes_on_bit_for_bit(smoke, call, tmp_path):
    cells = {}
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        shutil.copytree(smoke / "outputs/smoke/prepared", folder / "outputs/smoke/prepared")
        cells[name] = folder / "outputs/smoke/truncated30-active_set-frobenius-L40-seed3"
    process = start(tmp_path / "killed")
    for line in process.stdout:
        if "step 80 of 192" in line:
            os.killpg(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (cells["killed"] / "operator.npy").exists()

    for name in cells:
        done = call("train", *ARGUMENTS, cwd=tmp_path / name)
        assert done.status == 0, done.err
        assert ("step 4 of 192" in done.out) == (name == "undisturbed")  # the other one went on

    def results(cell: Path) -> tuple[bytes, list[dict[str, str]]]:
        with (cell / "training.csv").open() as file:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
        return (cell / "operator.npy").read_bytes(), rows

    assert results(cells["killed"]) == results(cells["undisturbed"])
