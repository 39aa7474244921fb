"""The paper's Figures 3 and 4 and a short table of results.  python -m pdunroll figures [experiment=...].

Reads evaluation.csv, optima.csv, training.csv and provenance.json in outputs/<name>/, nothing else; writes to
outputs/<name>/figures/, each as png and svg:
    regimes           Figure 3
    interpretability  Figure 4
    bump              the curves of Figure 4 for one L of regime 1, for each norm of the step sizes
and the table to results.txt.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdunroll.errors import InputError
from pdunroll.evaluation.tables import read_provenance, read_results
from pdunroll.files import atomic
from pdunroll.report.style import save, set_style
from pdunroll.training.run_key import MASK_TITLES, NORM_TITLES, run_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

NAMES = ("regimes", "interpretability", "bump")
Setting = tuple[str, str]  # primal mask, norm of the step sizes
# dark and light, so that they differ in greyscale, too
COLOURS = {"full": "#1f3a68", "truncated": "#e8871e"}
MARKERS = {"full": "o", "truncated": "s"}
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))


def draw(
    folder: Path, *, regime_borders: list[int], l_training: list[int], step_norms: list[str] | None = None
) -> list[str]:
    """Draw the figures of the tables in `folder`, outputs/<name>/; return the lines of results.txt.

    Raises `InputError` naming the table at fault, or the setting if a norm of `step_norms` was not trained with.
    """
    evaluation, optima, training = read_results(folder).values()
    origin = footnote(read_provenance(folder))
    norms = sorted({row["step_norm"] for row in trained(evaluation)})
    if unknown := [norm for norm in step_norms or [] if norm not in norms]:
        raise InputError(
            f"figures.step_norms={step_norms}: no training has {unknown[0]!r}; set it to some of {', '.join(norms)}"
        )
    set_style()
    shown = [row for row in evaluation if row["step_norm"] in (step_norms or norms)]
    drawn = (
        regimes(shown, optima, training, regime_borders),
        interpretability([*shown, *untreated(evaluation)], l_training, optima),
        bump(evaluation, optima, regime_borders),
    )
    for figure, name in zip(drawn, NAMES, strict=True):
        save(figure, folder / "figures" / name, origin)
    lines = [summary(evaluation, optima, training), origin, *(f"{folder}/figures/{name}.png, .svg" for name in NAMES)]
    with atomic(folder / "results.txt") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return lines


def footnote(provenance: dict[str, Any]) -> str:
    """What made a figure, in one line."""
    seeds = ", ".join(map(str, provenance["seeds"]))
    return (
        f"{provenance['command']}   seed {seeds}   commit {provenance['commit'][:12]}   "
        f"data: {provenance['data'][:35]}   {provenance['test_frames']} test frames"
    )


def trained(rows: list[Row]) -> list[Row]:
    """The rows of trained operators."""
    return [row for row in rows if row["backprop"] not in ("none", "dct")]


def untreated(rows: list[Row]) -> list[Row]:
    """The rows of the quantized frames."""
    return [row for row in rows if row["backprop"] == "none"]


def setting(row: Row) -> Setting:
    """What decides a training's results: its primal mask and the norm of its step sizes."""
    return row["primal_mask"], row["step_norm"]


def settings_of(rows: list[Row]) -> list[Setting]:
    """The settings in a table: the published norm and the paper's formula first."""
    return sorted({setting(row) for row in trained(rows)}, key=lambda pair: (pair[1], pair[0]))


def title_of(pair: Setting) -> str:
    """Return the title of a panel: mask and norm in words."""
    return f"{MASK_TITLES.get(pair[0], pair[0])}\n{NORM_TITLES.get(pair[1], pair[1])}"


def panels(names: list[Setting], height: float, least: float) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each setting, two in a row, that share the error axis."""
    import matplotlib.pyplot as plt

    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    size = (max(7.5, least + 4.6 * columns), height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    flat = list(axes.ravel())
    for ax in flat[len(names) :]:
        ax.remove()
    for row in axes:
        row[0].set_ylabel(r"test MSE, $10^{-3}$")
    return figure, flat[: len(names)]


def modes(rows: list[Row]) -> list[tuple[str, int | None]]:
    """The backprop modes (name, b) in a table."""
    return sorted({(row["backprop"], row["b"]) for row in rows}, key=lambda mode: (mode[0], mode[1] or 0))


def mode_label(mode: tuple[str, int | None]) -> str:
    """Such as "truncated (b = 30)"."""
    return mode[0] if mode[1] is None else f"{mode[0]} (b = {mode[1]})"


def style(mode: tuple[str, int | None], number: int) -> dict[str, Any]:
    """Colour and marker of a mode; unknown modes get their own from matplotlib's cycle."""
    return {"color": COLOURS.get(mode[0], f"C{number + 2}"), "marker": MARKERS.get(mode[0], "D")}


def by_depth(rows: list[Row], value: str) -> dict[int, list[float]]:
    """L_training -> the values of all seeds."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        found[row["l_training"]].append(row[value])
    return dict(sorted(found.items()))


def pick(rows: list[Row], name: Setting, mode: tuple[str, int | None], depth: int | None = None) -> list[Row]:
    """The rows of one setting and mode, of one L_training or of all."""
    mine = [row for row in rows if setting(row) == name and (row["backprop"], row["b"]) == mode]
    return mine if depth is None else [row for row in mine if row["l_training"] == depth]


def mean(values: list[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def regimes(evaluation: list[Row], optima: list[Row], training: list[Row], borders: list[float]) -> Figure:
    """Draw Figure 3: test MSE and runtime against L in training.

    The error of classical inference is dashed, that at the certified optimum solid.
    """
    rows = trained(evaluation)
    depths = sorted({row["l_training"] for row in rows})
    position = {depth: number for number, depth in enumerate(depths)}
    names = settings_of(evaluation)
    figure, axes = panels(names, 4.4, 1.5)
    runtime_axes: list[Axes] = []
    for ax, name in zip(axes, names, strict=True):
        runtime = ax.twinx()
        runtime_axes.append(runtime)
        ax.set_zorder(runtime.get_zorder() + 1)  # curves above the bars
        ax.patch.set_visible(False)
        runtime.grid(False)
        own = modes([row for row in rows if setting(row) == name])
        for number, mode in enumerate(own):
            look = style(mode, number)
            after_l = [row for row in pick(rows, name, mode) if row["l_inference"] == row["l_training"]]
            kinds = (
                ("classical", "--", "none", by_depth(after_l, "mse")),
                ("optimality", "-", look["color"], by_depth(pick(optima, name, mode), "optimum_mse")),
            )
            for kind, line, face, values in kinds:
                centre = [mean(v) for v in values.values()]
                spread = [
                    [c - min(v) for c, v in zip(centre, values.values(), strict=True)],
                    [max(v) - c for c, v in zip(centre, values.values(), strict=True)],
                ]
                ax.errorbar(
                    [position[depth] for depth in values], centre, yerr=spread, linestyle=line, markersize=5,
                    markerfacecolor=face, capsize=2, label=f"{mode_label(mode)}, {kind}", **look,
                )  # fmt: skip
            times = by_depth(pick(training, name, mode), "seconds")
            width = 0.7 / len(own)
            runtime.bar(
                [position[depth] + (number - (len(own) - 1) / 2) * width for depth in times],
                [mean(v) for v in times.values()], width, color=look["color"], alpha=0.22,
                hatch="//" if number else None, edgecolor=look["color"], linewidth=0,
            )  # fmt: skip
        line_without_training(ax, optima)
        mark_regimes(ax, depths, borders)
        ax.set_title(title_of(name), pad=20)
        ax.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        ax.set_xlabel("iterations in training, L")
        ax.set_yscale("log")
        label_errors(ax)
    top = 1.6 * max(ax.get_ylim()[1] for ax in runtime_axes)
    for ax in runtime_axes:
        ax.set_ylim(0, top)
        ax.tick_params(labelsize=8)
    runtime_axes[-1].set_ylabel("runtime of training, s (bars)")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", borderaxespad=1.8, ncols=3, fontsize=8
    )
    figure.suptitle("Regimes: classical inference (L iterations) and optimality inference (certified optimum)")
    return figure


def label_errors(ax: Axes) -> None:
    """A logarithmic error axis labelled in plain thousandths."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    low, high = ax.get_ylim()
    few, many = MaxNLocator(8, steps=[1, 2, 5, 10]), LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))
    ax.yaxis.set_major_locator(few if high < 2 * low else many)
    ax.yaxis.set_minor_locator(LogLocator(subs=()))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda mse, _: f"{1e3 * mse:.4g}"))


def line_without_training(ax: Axes, optima: list[Row]) -> None:
    """The DCT's optimum as a horizontal line (the quantized frames lie far above)."""
    dct = next(row["optimum_mse"] for row in optima if row["backprop"] == "dct")
    ax.axhline(dct, color="0.35", linestyle=(0, (1, 2)), linewidth=1.2, label="DCT (untrained), optimality")


def mark_regimes(ax: Axes, depths: list[int], borders: list[float]) -> None:
    """Vertical lines between the regimes and their numbers above, on an axis of categories."""
    edges = [-0.5, *(sum(depth < border for depth in depths) - 0.5 for border in borders), len(depths) - 0.5]
    for number, (left, right) in enumerate(pairwise(edges), start=1):
        if right > left:
            ax.text((left + right) / 2, 1.01, f"regime {number}", transform=ax.get_xaxis_transform(), ha="center")
        if -0.5 < left < len(depths) - 0.5:
            ax.axvline(left, color="0.6", linewidth=0.8)
    ax.set_xlim(-0.6, len(depths) - 0.4)


def interpretability(evaluation: list[Row], l_training: list[int] | None, optima: list[Row]) -> Figure:
    """Draw Figure 4: test MSE after every number of iterations.

    A ring marks L_training on its curve, a stroke on the right the certified optimum that the curve tends to.
    """
    depths = sorted({row["l_training"] for row in trained(evaluation)})
    if l_training is not None:
        if not (shown := [depth for depth in depths if depth in l_training]):
            raise InputError(
                f"figures.l_training={l_training} has none of the trained L, {depths}; set it to some of them"
            )
        depths = shown
    names = settings_of(evaluation)
    figure, axes = panels(names, 4.8, 1.2)
    for ax, name in zip(axes, names, strict=True):
        draw_curves(ax, evaluation, optima, name, depths)
        ax.set_title(title_of(name))
    finish_curves(figure, axes)
    figure.suptitle("Interpretability: error against iterations in inference (ring: as in training, stroke: optimum)")
    return figure


def bump(evaluation: list[Row], optima: list[Row], borders: list[float]) -> Figure:
    """Draw the curves of Figure 4 for the largest L of regime 1, or the smallest L of all if there is none.

    They show whether the error rises after L_training iterations, and with which step sizes.
    """
    depths = sorted({row["l_training"] for row in trained(evaluation)})
    depth = max((depth for depth in depths if depth < borders[0]), default=depths[0])
    names = [
        name for name in settings_of(evaluation) if any(pick(evaluation, name, m, depth) for m in modes(evaluation))
    ]
    figure, axes = panels(names, 4.4, 1.2)
    for ax, name in zip(axes, names, strict=True):
        draw_curves(ax, evaluation, optima, name, [depth])
        ax.axvline(depth, color="0.6", linewidth=0.8)
        ax.set_title(title_of(name))
    finish_curves(figure, axes)
    figure.suptitle(f"Trained for L = {depth} iterations, run for more (ring: as in training, stroke: optimum)")
    return figure


def draw_curves(ax: Axes, evaluation: list[Row], optima: list[Row], name: Setting, depths: list[int]) -> None:
    """Error against iterations of the trainings with one setting, of the DCT, and the quantized frames' error."""
    last = max(row["l_inference"] for row in evaluation)
    for kind, norm, label, line in (("none", None, "quantized", "--"), ("dct", name[1], "DCT (untrained)", "-")):
        chosen = (kind, norm)
        mine = [row for row in evaluation if (row["backprop"], row["step_norm"]) == chosen]
        ax.plot(*curve(mine), color="0.55", linestyle=line, linewidth=1.6, label=label)
        mark_optimum(ax, [row for row in optima if (row["backprop"], row["step_norm"]) == chosen], last, "0.55")
    for number, mode in enumerate(modes([row for row in trained(evaluation) if setting(row) == name])):
        look = style(mode, number)
        for dash, depth in enumerate(depths):
            same = pick(evaluation, name, mode, depth)
            if not same:
                continue
            counts, values = curve(same)
            ax.plot(
                counts, values, color=look["color"], linestyle=DASHES[dash % len(DASHES)], linewidth=1.5,
                label=f"{mode_label(mode)}, L = {depth}",
            )  # fmt: skip
            mark_optimum(ax, pick(optima, name, mode, depth), last, look["color"])
            ax.plot(
                depth, values[counts.index(depth)], marker=look["marker"], markersize=7, markerfacecolor="white",
                markeredgecolor=look["color"], markeredgewidth=1.6, linestyle="none",
            )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("iterations in inference")


def finish_curves(figure: Figure, axes: list[Axes]) -> None:
    """Label the common error axis, once all is drawn, and put the first panel's legend below the figure."""
    for ax in axes:
        label_errors(ax)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", borderaxespad=1.8, ncols=4, fontsize=8
    )


def mark_optimum(ax: Axes, optima: list[Row], last: int, colour: str) -> None:
    """A stroke at the right end: the error of the certified optimum, mean over seeds."""
    if optima:
        ax.plot(1.25 * last, mean([row["optimum_mse"] for row in optima]), marker="_", markersize=9, color=colour)


def curve(rows: list[Row]) -> tuple[list[int], list[float]]:
    """Numbers of iterations and the mean error over seeds."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        found[row["l_inference"]].append(row["mse"])
    return sorted(found), [mean(found[count]) for count in sorted(found)]


def summary(evaluation: list[Row], optima: list[Row], training: list[Row]) -> str:
    """The results as a short table for the terminal."""
    end = {row["backprop"]: row["optimum_mse"] for row in optima}
    classical = {run_name(row): row["mse"] for row in evaluation if row["l_inference"] == row["l_training"]}
    seconds = {run_name(row): row["seconds"] for row in training}
    lines = [
        f"test MSE   quantized {untreated(evaluation)[0]['mse']:.3e}   DCT at the optimum {end['dct']:.3e}",
        f"{'mask':<12}{'step norm':<12}{'backprop':<22}{'L':>5}{'after L':>12}{'at the optimum':>16}{'training':>11}",
    ]
    for row in trained(optima):
        label = mode_label((row["backprop"], row["b"])) + (f", seed {row['seed']}" if row["seed"] else "")
        lines.append(
            f"{row['primal_mask']:<12}{row['step_norm']:<12}{label:<22}{row['l_training']:>5}"
            f"{classical[run_name(row)]:>12.3e}{row['optimum_mse']:>16.3e}{seconds[run_name(row)]:>9.1f} s"
        )
    return "\n".join(lines)
