# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first look, in a minute
#
# This notebook trains an operator on four minutes of synthetic speech and shows what the paper is about: the learned
# operator, the rise of the error after the training iterations (the "bump"), the gradients of the modes and their
# limit, and a restored sentence. It is the script `examples/notebook.py`, which Jupyter opens by means of jupytext.

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Audio, display

import pdunroll
from pdunroll.speech import frames
from pdunroll.speech.sources import Synthetic

warnings.filterwarnings("ignore", message="IProgress not found")
torch.manual_seed(0)
torch.set_num_threads(1)  # more threads are no faster for matrices as small as these
plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.25, "figure.dpi": 110})

# %% [markdown]
# ## Speech
#
# espeak-ng synthesizes sentences; no voice is in two splits. Every file is scaled to peak 1, cut into frames of 320
# samples (20 ms) and quantized to 4 bits: `y` is the ground truth, `x` the observation, and `|y - x| <= 1/16`.

# %%
BITS, RADIUS = 4, 1 / 16
voices = {"train": ["en-us+f1", "en-us+m1"], "validation": ["en+linda"], "test": ["en-us+steph"]}
with tempfile.TemporaryDirectory() as folder:
    prepared = Path(folder) / "prepared"
    frames.prepare(Synthetic(minutes=4, voices=voices).recordings(), prepared, frame_length=320, bits=BITS)
    train, test = frames.load(prepared, "train"), frames.load(prepared, "test")
y_train, x_train = torch.from_numpy(train.truth), torch.from_numpy(train.observation)
y_test, x_test = (torch.from_numpy(array[::15]) for array in (test.truth, test.observation))
print(f"{len(y_train)} training frames, {len(y_test)} test frames")
print(f"MSE of the quantized test frames: {(x_test - y_test).square().mean():.2e}")

# %% [markdown]
# ## Training
#
# The network runs 30 iterations of the Chambolle-Pock algorithm; it learns only the operator `K`, which starts
# as the DCT. `backprop` chooses the backward pass: here full backpropagation with the mask of the released code.

# %%
ITERATIONS = 30
dct = pdunroll.dct_operator(320, 320)
operator = dct.clone().requires_grad_()
optimizer = torch.optim.Adam([operator], lr=3e-4)
for step in range(400):
    chosen = torch.randint(len(x_train), (32,))
    restored = pdunroll.unroll(
        operator, x_train[chosen], radius=RADIUS, iterations=ITERATIONS, backprop=pdunroll.Full(primal_mask="released")
    )
    loss = (restored - y_train[chosen]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: MSE of the batch {loss.item():.2e}")
learned = operator.detach()

# %% [markdown]
# ## The operator before and after training

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for ax, matrix, title in zip(axes, (dct, learned, learned - dct), ("DCT", "learned", "difference"), strict=True):
    limit = matrix.abs().max()
    picture = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set(title=title, xlabel="sample", ylabel="row of K")
    ax.grid(False)
    figure.colorbar(picture, ax=ax, shrink=0.8)
plt.show()

# %% [markdown]
# ## The bump
#
# Inference may run for any number of iterations. With the published step sizes (Frobenius norm) the learned operator
# has its smallest error after the 30 iterations that it was trained for; then its error rises. The iterations tend to
# the optimum that `pdunroll.solve` computes and certifies.


# %%
def error(K: torch.Tensor, iterations: int, step_norm: str) -> float:
    """Return the test MSE after a number of iterations."""
    restored = pdunroll.unroll(K, x_test, radius=RADIUS, iterations=iterations, step_norm=step_norm)
    return float((restored - y_test).square().mean())


counts = np.unique([*np.geomspace(1, 500, 16).round().astype(int), ITERATIONS])
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for K, name, colour in ((dct, "DCT", "0.5"), (learned, "learned", "#1f3a68")):
    for step_norm, style in (("frobenius", "o-"), ("spectral", "o:")):
        errors = [error(K, int(count), step_norm) for count in counts]
        ax.loglog(counts, errors, style, markersize=3, color=colour, label=f"{name}, {step_norm}")
    optimum = pdunroll.solve(K, x_test, radius=RADIUS).primal
    ax.axhline(float((optimum - y_test).square().mean()), color=colour, linewidth=0.8, linestyle="--")
ax.axvline(ITERATIONS, color="0.7")
ax.set(xlabel="iterations in inference", ylabel="test MSE", title="Dashed: at the certified optimum")
ax.legend()
plt.show()

# %% [markdown]
# ## The gradients compared with their limit
#
# As the number of iterations grows, the gradient tends to a limit that depends on the optimal solutions alone.
# `Implicit` computes this limit by a linear solve for each frame. The figure shows the cosine between it and the
# gradients of the modes, with the mask of the paper's formula and the largest steps that the theory allows.

# %%
x, y = x_test[:32], y_test[:32]


def gradient(backprop: pdunroll.Backprop, iterations: int) -> torch.Tensor:
    """Return the gradient of half the squared error at the DCT."""
    K = dct.clone().requires_grad_()
    restored = pdunroll.unroll(K, x, radius=RADIUS, iterations=iterations, backprop=backprop, step_norm="spectral")
    (0.5 * (restored - y).square().sum()).backward()
    return K.grad


limit = gradient(pdunroll.Implicit(tolerance=1e-6), 1)
modes = {
    "full": lambda L: pdunroll.Full(),
    "truncated, b = 30": lambda L: pdunroll.Truncated(iterations=30),
    "truncated, b = L": lambda L: pdunroll.Truncated(iterations=L),
}
depths = [10, 30, 100, 300, 1000, 3000]
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for name, mode in modes.items():
    gradients = [gradient(mode(L), L) for L in depths]
    cosines = [float(torch.cosine_similarity(found.flatten(), limit.flatten(), dim=0)) for found in gradients]
    ax.semilogx(depths, cosines, "o-", label=name)
ax.set(xlabel="iterations L", ylabel="cosine to the limit gradient", ylim=(-0.1, 1))
ax.legend()
plt.show()

# %% [markdown]
# ## A restored sentence to listen to

# %%
sentence = test.file == 1
clean, quantized = (torch.from_numpy(array[sentence]) for array in (test.truth, test.observation))
versions = {"original": clean, "quantized to 4 bits": quantized}
for name, K in (("DCT", dct), ("learned", learned)):
    versions[f"restored, {name}"] = pdunroll.solve(K, quantized, radius=RADIUS).primal
for name, signal in versions.items():
    noise = float((signal - clean).square().sum())
    print(name if noise == 0 else f"{name}: SDR {10 * np.log10(float(clean.square().sum()) / noise):.2f} dB")
    display(Audio(signal.flatten().numpy(), rate=16_000))
