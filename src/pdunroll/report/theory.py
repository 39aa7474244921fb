"""Figures of the theorems, drawn only from the tables that `pdunroll theory` has written."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdunroll.files import read_table
from pdunroll.processes import command
from pdunroll.report import registry
from pdunroll.report.style import save, set_style
from pdunroll.training.run_key import MASK_TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

DARK, LIGHT, GREY = "#1f3a68", "#e8871e", "0.55"
MASK_COLOURS = {"active_set": DARK, "released": LIGHT}


def draw(folder: Path, origin: str) -> None:
    """Draw the figures of the theory as .png and .svg beside the tables in `folder`, outputs/<name>/theory/."""
    set_style()
    drawings = registry.drawn_by("theory")
    names = dict.fromkeys(name for drawing in drawings for name in drawing.tables)
    tables = {name: read_table(folder / f"{name}.csv", command("theory")) for name in names}
    for row in (row for rows in tables.values() for row in rows):  # each operator and norm has a row of panels
        row["operator"] = f"{row['operator']}, {row['step_norm']}" if row["operator"] == "dct" else row["operator"]
    for drawing in drawings:
        save(drawing.draw(*(tables[name] for name in drawing.tables)), folder / Path(drawing.stem).name, origin)


def panels(rows: list[Row], columns: int, **options: Any) -> tuple[Figure, Any, list[str]]:
    """Return a figure with one row of axes for each operator of a table, and the operators' names."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["operator"] for row in rows))
    size = (1 + 3.8 * columns, 0.9 + 2.9 * len(names))
    figure, axes = plt.subplots(len(names), columns, figsize=size, squeeze=False, layout="constrained", **options)
    return figure, axes, names


@registry.figure("theory/fidelity", "How close gradients come to their exact limit", tables=("fidelity",))
def fidelity(rows: list[Row]) -> Figure:
    """Draw the cosine to the exact limit gradient: Full over L, Truncated over b; and of Truncated to Full."""
    depths = sorted({row["l"] for row in rows if row["backprop"] == "truncated"})
    figure, axes, names = panels(rows, 3, sharey=True)
    for line, name in zip(axes, names, strict=True):
        mine = [row for row in rows if row["operator"] == name]
        titles = ("full, over L, to the limit", "truncated, over b, to the limit", "truncated, over b, to full")
        for ax, title in zip(line, titles, strict=True):
            ax.set(xscale="log", ylim=(-0.25, 1.05), title=f"{name}\n{title}")
            ax.axhline(1, color=GREY, linewidth=0.8)
        for mask, colour in MASK_COLOURS.items():
            chosen = [row for row in mine if row["primal_mask"] == mask]
            full = [row for row in chosen if row["backprop"] == "full"]
            line[0].plot([r["l"] for r in full], [r["limit_cosine"] for r in full], "o-", color=colour, label=mask)
            for depth, dash in zip(depths, ("-", "--", ":"), strict=False):
                some = [row for row in chosen if row["backprop"] == "truncated" and row["l"] == depth]
                for ax, value in ((line[1], "limit_cosine"), (line[2], "full_cosine")):
                    ax.plot(
                        [r["b"] for r in some], [r[value] for r in some], linestyle=dash, marker="s", markersize=4,
                        color=colour, label=f"{mask}, L = {depth:,}",
                    )  # fmt: skip
        line[0].set_ylabel("cosine")
    for ax, label in zip(axes[-1], ("L", "b", "b"), strict=True):
        ax.set_xlabel(label)
    axes[0][0].legend(fontsize=7)
    axes[0][1].legend(fontsize=7)
    figure.suptitle("How close the gradients come to the exact limit for L to infinity")
    return figure


@registry.figure("theory/modes", "The modes of backpropagation beside each other", tables=("modes",))
def modes(rows: list[Row]) -> Figure:
    """Draw the cosine of each mode's gradient to the exact limit, its time and its memory, for each operator and L."""
    figure, axes, names = panels(rows, 3, sharey=True)
    labels = list(dict.fromkeys(row["mode"] for row in rows))
    quantities = {"limit_cosine": "cosine to the limit", "seconds": "seconds, both passes", "kept_bytes": "bytes kept"}
    for line, name in zip(axes, names, strict=True):
        for ax, (quantity, title) in zip(line, quantities.items(), strict=True):
            for depth, colour in zip(sorted({row["l"] for row in rows}), (DARK, LIGHT), strict=False):
                some = [row for row in rows if row["operator"] == name and row["l"] == depth]
                heights = [labels.index(row["mode"]) for row in some]
                ax.plot([row[quantity] for row in some], heights, "o", color=colour, label=f"L = {depth:,}")
            ax.set(title=f"{name}\n{title}", xscale="linear" if quantity == "limit_cosine" else "log")
        line[0].set(xlim=(-0.25, 1.05), yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    axes[0][0].legend(fontsize=7)
    figure.set_figheight((1.2 + 0.22 * len(labels)) * len(names) + 0.6)
    figure.suptitle("How close the modes of backpropagation come to the exact limit, and what they cost")
    return figure


@registry.figure("theory/decay", "The backward recursion, counted backwards", tables=("decay", "fits"))
def decay(rows: list[Row], fits: list[Row]) -> Figure:
    """Draw the norms in the backward recursion, counted backwards, for each mask (columns) and operator (rows)."""
    look = {
        "delta_primal": (DARK, "-", r"$\|\delta_P\|$"),
        "delta_dual": (DARK, "--", r"$\|\delta_D\|$"),
        "k_delta_primal": (LIGHT, "-", r"$\|\tilde K \delta_P\|$"),
        "kt_delta_dual": (LIGHT, "--", r"$\|\tilde K^T \delta_D\|$"),
        "kernel_distance": (GREY, "-", "distance to the kernels"),
        "sum_delta_primal": ("0.2", "-.", r"$\|\sum \delta_P\|$"),
        "sum_delta_dual": ("0.2", ":", r"$\|\sum \delta_D\|$"),
    }
    figure, axes, names = panels(rows, 2, sharey="row", sharex=True)
    for line, name in zip(axes, names, strict=True):
        for ax, mask in zip(line, MASK_TITLES, strict=True):
            held = [row["holds"] for row in fits if row["operator"] == name and row["primal_mask"] == mask]
            curves: dict[str, list[Row]] = defaultdict(list)
            for row in rows:
                if row["operator"] == name and row["primal_mask"] == mask:
                    curves[row["quantity"]].append(row)
            for quantity, (colour, dash, label) in look.items():
                some = curves[quantity]
                x = [row["count"] for row in some]
                ax.plot(x, [row["median"] for row in some], color=colour, linestyle=dash, label=label)
                ax.fill_between(
                    x, [row["p10"] for row in some], [row["p90"] for row in some], color=colour, alpha=0.08, linewidth=0
                )
            ax.set(xscale="log", yscale="log")
            ax.set_title(f"{name}, {mask} mask\ngeometric decay in {sum(held)} of {len(held)} frames", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("backward iterations")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", borderaxespad=1.8, ncols=7, fontsize=8
    )
    figure.suptitle("Backward recursion with settled masks: median over frames, 10% to 90% shaded")
    return figure


@registry.figure("theory/settling", "Iterations until the masks of a frame change no more", tables=("settling",))
def settling(rows: list[Row]) -> Figure:
    """Draw the share of frames whose masks have settled, over the number of iterations."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    names = list(dict.fromkeys(row["operator"] for row in rows))
    for name, dash in zip(names, ("-", "--", ":", "-.") * len(names), strict=False):
        after = sorted(row["settled_after"] for row in rows if row["operator"] == name)
        ax.step(after, [(k + 1) / len(after) for k in range(len(after))], where="post", linestyle=dash, label=name)
    ax.set(xscale="log", xlabel="iterations", ylabel="share of frames", ylim=(0, 1.02))
    ax.set_title("Frames whose masks change no more (as far as seen)")
    ax.legend(fontsize=8)
    return figure
