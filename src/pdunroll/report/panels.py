"""Shared parts of the figures of the results: panels, axes, and the rows and styles of curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from pdunroll.training.run_key import Mode, RunKey, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

# dark and light, so that they also differ in greyscale
COLOURS = {"full": "#1f3a68", "truncated": "#e8871e"}
MARKERS = {"full": "o", "truncated": "s"}


def trained(rows: list[Row]) -> list[Row]:
    """Return the rows of trained operators."""
    return [row for row in rows if RunKey.from_row(row).trained]


def panels(names: list[Setting], height: float, least: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel for each setting, two in a row, that share the error axis."""
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


def modes(rows: list[Row]) -> list[Mode]:
    """Return the modes of backpropagation in a table, in their order."""
    return sorted({Mode(row["backprop"], row["b"]) for row in rows}, key=lambda mode: mode.order)


def style(mode: Mode, number: int) -> dict[str, Any]:
    """Return the colour and marker of a mode; further modes get colours of matplotlib's cycle."""
    return {"color": COLOURS.get(mode.backprop, f"C{number + 2}"), "marker": MARKERS.get(mode.backprop, "D")}


def of_setting(rows: list[Row], setting: Setting) -> list[Row]:
    """Return the rows of one setting."""
    return [row for row in rows if (row["primal_mask"], row["step_norm"]) == setting]


def pick(rows: list[Row], setting: Setting, mode: Mode, depth: int | None = None) -> list[Row]:
    """Return the rows of one setting and mode, of one L_training or of all."""
    mine = [row for row in of_setting(rows, setting) if (row["backprop"], row["b"]) == mode]
    return mine if depth is None else [row for row in mine if row["l_training"] == depth]


def over_seeds(rows: list[Row], by: str, value: str) -> pd.DataFrame:
    """Return the mean, min and max of a column over the seeds, for each value of the column `by`, ascending."""
    return pd.DataFrame(rows, columns=[by, value]).groupby(by)[value].agg(["mean", "min", "max"])


def label_errors(ax: Axes) -> None:
    """Label a logarithmic error axis in plain thousandths."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    low, high = ax.get_ylim()
    few, many = MaxNLocator(8, steps=[1, 2, 5, 10]), LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))
    ax.yaxis.set_major_locator(few if high < 2 * low else many)
    ax.yaxis.set_minor_locator(LogLocator(subs=()))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda mse, _: f"{1e3 * mse:.4g}"))


def labels_of(axes: list[Axes]) -> tuple[list[Any], list[str]]:
    """Return handles and labels of a legend for all panels, each label once."""
    found = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return [*found.values()], [*found]


def finish_curves(figure: Figure, axes: list[Axes]) -> None:
    """Label the common error axis and put the legend of all panels below the figure; call this last."""
    for ax in axes:
        label_errors(ax)
    figure.legend(*labels_of(axes), loc="outside lower center", borderaxespad=1.8, ncols=4, fontsize=8)
