"""The paper's Figures 3 and 4 and a short table of results.  python -m pdunroll.figures [experiment=...]

Reads evaluation.csv, optima.csv, training.csv and provenance.json in outputs/<name>/, nothing else; writes
regimes.{png,svg} and interpretability.{png,svg} to outputs/<name>/figures/ and the table to results.txt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from pdunroll.config import CONF, one_line_errors, run, settings
from pdunroll.errors import InputError
from pdunroll.plotting import MASK_TITLES, save, set_style
from pdunroll.runs import PROVENANCE, RESULTS, atomic, read_json, read_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

NAMES = ("regimes", "interpretability")
# dark and light, so that they differ in greyscale, too
COLOURS = {"full": "#1f3a68", "truncated": "#e8871e"}
MARKERS = {"full": "o", "truncated": "s"}
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        config = settings(cfg)
        evaluation, optima, training = (read_results(config.outputs, name) for name in RESULTS)
        origin = footnote(read_json(config.outputs / "provenance.json", PROVENANCE))

        set_style()
        folder = config.outputs / "figures"
        drawn = (
            regimes(evaluation, training, config.figures.regime_borders),
            interpretability(evaluation, config.figures.l_training, optima),
        )
        for figure, name in zip(drawn, NAMES, strict=True):
            save(figure, folder / name, origin)
        lines = [summary(evaluation, training), origin, *(f"{folder}/{name}.png, .svg" for name in NAMES)]
        with atomic(config.outputs / "results.txt") as temporary:
            temporary.write_text("\n".join(lines) + "\n")
        print(*lines, sep="\n")


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


def masks(rows: list[Row]) -> list[str]:
    """The primal masks in a table, the paper's formula first."""
    return sorted({row["primal_mask"] for row in trained(rows)})


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


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def regimes(evaluation: list[Row], training: list[Row], borders: list[float]) -> Figure:
    """Figure 3: test MSE of classical (dashed) and optimality inference (solid), and runtime, against L in training."""
    import matplotlib.pyplot as plt

    rows = trained(evaluation)
    last = max(row["l_inference"] for row in rows)
    depths = sorted({row["l_training"] for row in rows})
    position = {depth: number for number, depth in enumerate(depths)}
    names = masks(evaluation)
    figure, axes = plt.subplots(
        1, len(names), figsize=(max(7.5, 1.5 + 4.6 * len(names)), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    runtime_axes: list[Axes] = []
    for ax, name in zip(axes[0], names, strict=True):
        runtime = ax.twinx()
        runtime_axes.append(runtime)
        ax.set_zorder(runtime.get_zorder() + 1)  # curves above the bars
        ax.patch.set_visible(False)
        runtime.grid(False)
        own = modes([row for row in rows if row["primal_mask"] == name])
        for number, mode in enumerate(own):
            look = style(mode, number)
            mine = [row for row in rows if row["primal_mask"] == name and (row["backprop"], row["b"]) == mode]
            kinds = (
                ("classical", "--", "none", [row for row in mine if row["l_inference"] == row["l_training"]]),
                ("optimality", "-", look["color"], [row for row in mine if row["l_inference"] == last]),
            )
            for kind, line, face, chosen in kinds:
                values = by_depth(chosen, "mse")
                centre = [mean(v) for v in values.values()]
                spread = [
                    [c - min(v) for c, v in zip(centre, values.values(), strict=True)],
                    [max(v) - c for c, v in zip(centre, values.values(), strict=True)],
                ]
                ax.errorbar(
                    [position[depth] for depth in values], centre, yerr=spread, linestyle=line, markersize=5,
                    markerfacecolor=face, capsize=2, label=f"{mode_label(mode)}, {kind}", **look,
                )  # fmt: skip
            times = by_depth(
                [r for r in training if r["primal_mask"] == name and (r["backprop"], r["b"]) == mode], "seconds"
            )
            width = 0.7 / len(own)
            runtime.bar(
                [position[depth] + (number - (len(own) - 1) / 2) * width for depth in times],
                [mean(v) for v in times.values()], width, color=look["color"], alpha=0.22,
                hatch="//" if number else None, edgecolor=look["color"], linewidth=0,
            )  # fmt: skip
        lines_without_training(ax, evaluation, last)
        mark_regimes(ax, depths, borders)
        ax.set_title(MASK_TITLES.get(name, name), pad=20)
        ax.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        ax.set_xlabel("iterations in training, L")
        ax.set_yscale("log")
        label_errors(ax)
    top = 1.6 * max(ax.get_ylim()[1] for ax in runtime_axes)
    for ax in runtime_axes:
        ax.set_ylim(0, top)
        ax.tick_params(labelsize=8)
    runtime_axes[-1].set_ylabel("runtime of training, s (bars)")
    axes[0][0].set_ylabel(r"test MSE, $10^{-3}$")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", borderaxespad=1.8, ncols=3, fontsize=8
    )
    figure.suptitle(f"Regimes: classical inference (L iterations) and optimality inference ({last:,} iterations)")
    return figure


def label_errors(ax: Axes) -> None:
    """A logarithmic error axis labelled in plain thousandths."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    low, high = ax.get_ylim()
    few, many = MaxNLocator(8, steps=[1, 2, 5, 10]), LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))
    ax.yaxis.set_major_locator(few if high < 2 * low else many)
    ax.yaxis.set_minor_locator(LogLocator(subs=()))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda mse, _: f"{1e3 * mse:.4g}"))


def lines_without_training(ax: Axes, evaluation: list[Row], last: int) -> None:
    """The DCT after `last` iterations as a horizontal line (the quantized frames lie far above)."""
    (dct,) = [row["mse"] for row in evaluation if row["backprop"] == "dct" and row["l_inference"] == last]
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


def interpretability(evaluation: list[Row], l_training: list[int] | None, optima: Sequence[Row] = ()) -> Figure:
    """Figure 4: test MSE after every number of iterations. A ring marks L_training on its curve, a stroke on the right
    the certified optimum that the curve tends to."""
    import matplotlib.pyplot as plt

    rows = trained(evaluation)
    depths = sorted({row["l_training"] for row in rows})
    if l_training is not None:
        if not (shown := [depth for depth in depths if depth in l_training]):
            raise InputError(
                f"figures.l_training={l_training} has none of the trained L, {depths}; set it to some of them"
            )
        depths = shown
    names = masks(evaluation)
    last = max(row["l_inference"] for row in rows)
    figure, axes = plt.subplots(
        1, len(names), figsize=(max(7.5, 1.2 + 4.6 * len(names)), 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, name in zip(axes[0], names, strict=True):
        for kind, label, line in (("none", "quantized", "--"), ("dct", "DCT (untrained)", "-")):
            mine = [row for row in evaluation if row["backprop"] == kind]
            ax.plot(*curve(mine), color="0.55", linestyle=line, linewidth=1.6, label=label)
            mark_optimum(ax, [row for row in optima if row["backprop"] == kind], last, "0.55")
        mine = [row for row in rows if row["primal_mask"] == name]
        for number, mode in enumerate(modes(mine)):
            look = style(mode, number)
            for dash, depth in enumerate(depths):
                same = [r for r in mine if (r["backprop"], r["b"]) == mode and r["l_training"] == depth]
                if not same:
                    continue
                counts, values = curve(same)
                ax.plot(
                    counts, values, color=look["color"], linestyle=DASHES[dash % len(DASHES)], linewidth=1.5,
                    label=f"{mode_label(mode)}, L = {depth}",
                )  # fmt: skip
                same = [r for r in optima if key(r)[:4] == (name, *mode, depth)]
                mark_optimum(ax, same, last, look["color"])
                ax.plot(
                    depth, values[counts.index(depth)], marker=look["marker"], markersize=7, markerfacecolor="white",
                    markeredgecolor=look["color"], markeredgewidth=1.6, linestyle="none",
                )  # fmt: skip
        ax.set_title(MASK_TITLES.get(name, name))
        ax.set_xscale("log")
        ax.set_yscale("log")
        label_errors(ax)
        ax.set_xlabel("iterations in inference")
    axes[0][0].set_ylabel(r"test MSE, $10^{-3}$")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", borderaxespad=1.8, ncols=4, fontsize=8
    )
    figure.suptitle("Interpretability: error against iterations in inference (ring: as in training, stroke: optimum)")
    return figure


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


def summary(evaluation: list[Row], training: list[Row]) -> str:
    """The results as a short table for the terminal."""
    last = max(row["l_inference"] for row in evaluation)
    end = {row["backprop"]: row["mse"] for row in evaluation if row["l_inference"] == last}
    lines = [
        f"test MSE   quantized {end['none']:.3e}   DCT after {last:,} iterations {end['dct']:.3e}",
        f"{'mask':<12}{'backprop':<22}{'L':>5}{'after L':>12}{f'after {last:,}':>15}{'training':>11}",
    ]
    seconds = {key(row): row["seconds"] for row in training}
    cells: dict[tuple, dict[int, float]] = defaultdict(dict)
    for row in trained(evaluation):
        cells[key(row)][row["l_inference"]] = row["mse"]
    for (name, backprop, b, depth, seed), values in cells.items():
        label = mode_label((backprop, b)) + (f", seed {seed}" if seed else "")
        lines.append(
            f"{name:<12}{label:<22}{depth:>5}{values[depth]:>12.3e}{values[last]:>15.3e}"
            f"{seconds[name, backprop, b, depth, seed]:>9.1f} s"
        )
    return "\n".join(lines)


def key(row: Row) -> tuple:
    return row["primal_mask"], row["backprop"], row["b"], row["l_training"], row["seed"]


if __name__ == "__main__":
    run(main)
