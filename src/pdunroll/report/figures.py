"""Draw the paper's Figures 3 and 4 and write a table of results.  python -m pdunroll figures [experiment=...].

Reads only evaluation.csv, optima.csv, training.csv and provenance.json in outputs/<name>/. Writes the table to
results.txt, and the figure of each function below with the decorator `registry.figure` to figures/, as png and svg:
    regimes           Figure 3
    interpretability  Figure 4
    bump              the curves of Figure 4 for one L of regime 1, for each norm of the step sizes
    speed             the error at the optimum against the iterations until near it, a point for each training
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pdunroll.errors import InputError
from pdunroll.evaluation.convergence import convergence_iterations
from pdunroll.evaluation.tables import read_provenance, read_results
from pdunroll.files import atomic
from pdunroll.report import registry
from pdunroll.report.panels import (
    finish_curves,
    label_errors,
    labels_of,
    modes,
    of_setting,
    over_seeds,
    panels,
    pick,
    style,
    trained,
)
from pdunroll.report.results import goal, summary
from pdunroll.report.style import footnote, save, set_style
from pdunroll.training.run_key import MASK_TITLES, RunKey, Setting, by_operator, settings_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))


def draw(
    folder: Path,
    *,
    regime_borders: Sequence[float],
    l_training: Sequence[int] | None,
    step_norms: list[str] | None = None,
    runtime: bool = True,
) -> list[str]:
    """Draw the figures of the tables in `folder`, outputs/<name>/; return the lines of results.txt.

    Args:
        folder: the folder of the tables and the figures.
        regime_borders: the borders of the regimes, in L.
        l_training: the L whose curves Figure 4 shows; all if None.
        step_norms: the norms whose trainings are shown; all if None.
        runtime: whether Figure 3 has bars of the seconds that trainings took.

    Raises:
        InputError: naming the invalid table, or the setting if there is no training with a norm of `step_norms`.
    """
    tables = read_results(folder)
    provenance = read_provenance(folder)
    origin, observed = footnote(provenance), provenance.get("observed", "quantized")
    evaluation = tables["evaluation"]
    norms = sorted({setting.step_norm for setting in settings_in(evaluation)})
    if unknown := [norm for norm in step_norms or [] if norm not in norms]:
        raise InputError(
            f"figures.step_norms={step_norms}: no training has {unknown[0]!r}; set it to some of {', '.join(norms)}"
        )
    set_style()
    shown = [row for row in evaluation if row["step_norm"] in (*(step_norms or norms), None)]
    options = {"regime_borders": regime_borders, "l_training": l_training, "observed": observed, "runtime": runtime}
    drawings = registry.drawn_by("figures")
    for drawing in drawings:
        given = tables if drawing.every_norm else {**tables, "evaluation": shown}
        figure = drawing.draw(
            *(given[name] for name in drawing.tables), **{name: options[name] for name in drawing.options}
        )
        save(figure, folder / drawing.stem, origin)
    results = [summary(*tables.values(), observed=observed), *goal(evaluation, tables["optima"])]
    lines = [*results, origin, *(f"{folder}/{drawing.stem}.png, .svg" for drawing in drawings)]
    with atomic(folder / "results.txt") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return lines


@registry.figure(
    "figures/regimes",
    "Test error, and training time, against the number of iterations in training",
    tables=("evaluation", "optima", "training"),
    options=("regime_borders", "runtime"),
)
def regimes(
    evaluation: list[Row], optima: list[Row], training: list[Row], regime_borders: Sequence[float], runtime: bool = True
) -> Figure:
    """Draw Figure 3: test MSE and, as bars, runtime against L in training.

    The error of classical inference is dashed, that at the certified optimum solid.
    """
    rows = trained(evaluation)
    depths = sorted({row["l_training"] for row in rows})
    position = {depth: number for number, depth in enumerate(depths)}
    names = settings_in(evaluation)
    figure, axes = panels(names, 4.4, 1.5)
    runtime_axes: list[Axes] = []
    for ax, name in zip(axes, names, strict=True):
        if runtime:
            runtime_axes.append(ax.twinx())
            draw_times(runtime_axes[-1], training, name, position)
            ax.set_zorder(runtime_axes[-1].get_zorder() + 1)  # curves above the bars
            ax.patch.set_visible(False)
        draw_errors(ax, rows, optima, name, position)
        line_without_training(ax, optima)
        mark_regimes(ax, depths, regime_borders)
        ax.set_title("\n".join(name.titles), pad=20)
        ax.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        ax.set_xlabel("iterations in training, L")
        ax.set_yscale("log")
        label_errors(ax)
    if runtime:
        top = 1.6 * max(ax.get_ylim()[1] for ax in runtime_axes)
        for ax in runtime_axes:
            ax.set_ylim(0, top)
            ax.grid(False)
            ax.tick_params(labelsize=8)
        runtime_axes[-1].set_ylabel("runtime of training, s (bars)")
    figure.legend(*labels_of(axes), loc="outside lower center", borderaxespad=1.8, ncols=3, fontsize=8)
    figure.suptitle("Regimes: classical inference (L iterations) and optimality inference (certified optimum)")
    return figure


def draw_errors(ax: Axes, rows: list[Row], optima: list[Row], name: Setting, position: dict[int, int]) -> None:
    """Draw the errors of a setting's modes against L: means over the seeds, with bars from least to largest."""
    for number, mode in enumerate(modes(of_setting(rows, name))):
        look = style(mode, number)
        after_l = [row for row in pick(rows, name, mode) if row["l_inference"] == row["l_training"]]
        kinds = (
            ("classical", "--", "none", over_seeds(after_l, "l_training", "mse")),
            ("optimality", "-", look["color"], over_seeds(pick(optima, name, mode), "l_training", "optimum_mse")),
        )
        for kind, line, face, values in kinds:
            ax.errorbar(
                [position[depth] for depth in values.index], values["mean"],
                yerr=[values["mean"] - values["min"], values["max"] - values["mean"]], linestyle=line,
                markersize=5, markerfacecolor=face, capsize=2, label=f"{mode.label}, {kind}", **look,
            )  # fmt: skip


def draw_times(ax: Axes, training: list[Row], name: Setting, position: dict[int, int]) -> None:
    """Draw the training times of a setting's modes against L as bars beside each other."""
    own = modes(of_setting(training, name))
    width = 0.7 / len(own)
    for number, mode in enumerate(own):
        look = style(mode, number)
        times = over_seeds(pick(training, name, mode), "l_training", "seconds")["mean"]
        ax.bar(
            [position[depth] + (number - (len(own) - 1) / 2) * width for depth in times.index], times, width,
            color=look["color"], alpha=0.22, hatch="//" if number else None, edgecolor=look["color"], linewidth=0,
        )  # fmt: skip


def line_without_training(ax: Axes, optima: list[Row]) -> None:
    """Draw the DCT's optimum as a horizontal line (the quantized frames lie far above)."""
    dct = next(row["optimum_mse"] for row in optima if row["backprop"] == "dct")
    ax.axhline(dct, color="0.35", linestyle=(0, (1, 2)), linewidth=1.2, label="DCT (untrained), optimality")


def mark_regimes(ax: Axes, depths: list[int], borders: Sequence[float]) -> None:
    """Draw lines between the regimes and write their numbers above, on an axis of categories."""
    edges = [-0.5, *(sum(depth < border for depth in depths) - 0.5 for border in borders), len(depths) - 0.5]
    for number, (left, right) in enumerate(pairwise(edges), start=1):
        if right > left:
            ax.text((left + right) / 2, 1.01, f"regime {number}", transform=ax.get_xaxis_transform(), ha="center")
        if -0.5 < left < len(depths) - 0.5:
            ax.axvline(left, color="0.6", linewidth=0.8)
    ax.set_xlim(-0.6, len(depths) - 0.4)


@registry.figure(
    "figures/interpretability",
    "Test error against the number of iterations in inference",
    tables=("evaluation", "optima"),
    options=("l_training", "observed"),
)
def interpretability(
    evaluation: list[Row], optima: list[Row], l_training: Sequence[int] | None = None, observed: str = "quantized"
) -> Figure:
    """Draw Figure 4: test MSE after every number of iterations.

    A ring on a curve marks L_training, and a stroke on the right its limit, the certified optimum.
    """
    depths = sorted({row["l_training"] for row in trained(evaluation)})
    if l_training is not None:
        if not (shown := [depth for depth in depths if depth in l_training]):
            raise InputError(
                f"figures.l_training={l_training} has none of the trained L, {depths}; set it to some of them"
            )
        depths = shown
    names = settings_in(evaluation)
    figure, axes = panels(names, 4.8, 1.2)
    for ax, name in zip(axes, names, strict=True):
        draw_curves(ax, evaluation, optima, name, depths, observed)
        ax.set_title("\n".join(name.titles))
    finish_curves(figure, axes)
    figure.suptitle("Interpretability: error against iterations in inference (ring: as in training, stroke: optimum)")
    return figure


@registry.figure(
    "figures/bump",
    "Trained for few iterations, run for more: the error against the iterations, for each step size",
    tables=("evaluation", "optima"),
    options=("regime_borders", "observed"),
    every_norm=True,
)
def bump(
    evaluation: list[Row], optima: list[Row], regime_borders: Sequence[float], observed: str = "quantized"
) -> Figure:
    """Draw the curves of Figure 4 for the largest L of regime 1, or the smallest L of all if there is none.

    They show whether the error rises after L_training iterations, and with which step sizes.
    """
    depths = sorted({row["l_training"] for row in trained(evaluation)})
    depth = max((depth for depth in depths if depth < regime_borders[0]), default=depths[0])
    names = [
        name for name in settings_in(evaluation) if any(pick(evaluation, name, m, depth) for m in modes(evaluation))
    ]
    figure, axes = panels(names, 4.4, 1.2)
    for ax, name in zip(axes, names, strict=True):
        draw_curves(ax, evaluation, optima, name, [depth], observed)
        ax.axvline(depth, color="0.6", linewidth=0.8)
        ax.set_title("\n".join(name.titles))
    finish_curves(figure, axes)
    figure.suptitle(f"Trained for L = {depth} iterations, run for more (ring: as in training, stroke: optimum)")
    return figure


def draw_curves(
    ax: Axes, evaluation: list[Row], optima: list[Row], name: Setting, depths: list[int], observed: str
) -> None:
    """Draw the error against iterations: of one setting's trainings, of the DCT, and of the observed frames."""
    last = max(row["l_inference"] for row in evaluation)
    for kind, norm, label, line in (("none", None, observed, "--"), ("dct", name[1], "DCT (untrained)", "-")):
        chosen = (kind, norm)
        mine = [row for row in evaluation if (row["backprop"], row["step_norm"]) == chosen]
        mse = over_seeds(mine, "l_inference", "mse")["mean"]
        ax.plot(mse.index, mse, color="0.55", linestyle=line, linewidth=1.6, label=label)
        mark_optimum(ax, [row for row in optima if (row["backprop"], row["step_norm"]) == chosen], last, "0.55")
    for number, mode in enumerate(modes(of_setting(trained(evaluation), name))):
        look = style(mode, number)
        for dash, depth in enumerate(depths):
            mse = over_seeds(pick(evaluation, name, mode, depth), "l_inference", "mse")["mean"]
            if mse.empty:
                continue
            ax.plot(
                mse.index, mse, color=look["color"], linestyle=DASHES[dash % len(DASHES)], linewidth=1.5,
                label=f"{mode.label}, L = {depth}",
            )  # fmt: skip
            mark_optimum(ax, pick(optima, name, mode, depth), last, look["color"])
            ax.plot(
                depth, mse[depth], marker=look["marker"], markersize=7, markerfacecolor="white",
                markeredgecolor=look["color"], markeredgewidth=1.6, linestyle="none",
            )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("iterations in inference")


def mark_optimum(ax: Axes, optima: list[Row], last: int, colour: str) -> None:
    """Draw the mean error of the certified optimum over the seeds as a stroke at the right end."""
    if optima:
        ax.plot(1.25 * last, fmean(row["optimum_mse"] for row in optima), marker="_", markersize=9, color=colour)


@registry.figure(
    "figures/speed",
    "Test error at the optimum against the iterations until within 1 % of it, for every training",
    tables=("evaluation", "optima"),
    every_norm=True,
)
def speed(evaluation: list[Row], optima: list[Row]) -> Figure:
    """Draw every training as a point: N1, the iterations until within 1 % of the optimum's error, and that error.

    There is a panel for each mask. Markers are filled for spectral step sizes, and the numbers beside them are L in
    training. Trainings that do not come that close are at the last number of iterations, with a ">".
    """
    import matplotlib.pyplot as plt

    last = max(row["l_inference"] for row in evaluation)
    found, errors = convergence_iterations(evaluation, optima), by_operator(optima, "optimum_mse")
    masks = sorted({setting.primal_mask for setting in settings_in(optima)})
    size = (max(7.5, 1.2 + 4.6 * len(masks)), 5.2)
    figure, axes = plt.subplots(
        1, len(masks), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for ax, mask in zip(axes[0], masks, strict=True):
        for number, mode in enumerate(modes(trained(optima))):
            look = style(mode, number)
            for norm in sorted({setting.step_norm for setting in settings_in(optima)}):
                keys = [RunKey.from_row(row) for row in pick(optima, Setting(mask, norm), mode)]
                for key in keys:
                    text = f"{key.l_training}" if found[key] else f"> {key.l_training}"
                    point = found[key] or last, errors[key]
                    ax.annotate(text, point, xytext=(4, 3), textcoords="offset points", fontsize=6, color="0.4")
                ax.plot(
                    [found[key] or last for key in keys], [errors[key] for key in keys], linestyle="none", markersize=6,
                    markerfacecolor=look["color"] if norm == "spectral" else "none", label=f"{mode.label}, {norm}",
                    **look,
                )  # fmt: skip
        untrained = [key for key in found if not key.trained]
        points = [found[key] or last for key in untrained], [errors[key] for key in untrained]
        ax.plot(*points, "*", color="0.4", label="DCT (untrained)")
        ax.set_title(MASK_TITLES.get(mask, mask))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("N1: iterations until within 1 % of the optimum's error")
    axes[0, 0].set_ylabel(r"test MSE at the optimum, $10^{-3}$")
    finish_curves(figure, list(axes[0]))
    figure.suptitle("Interpretability and speed: one point a training (numbers: L; filled: spectral step sizes)")
    return figure
