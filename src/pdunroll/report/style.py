"""The style of all figures, and how they are written to files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdunroll.files import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def set_style() -> None:
    """Set matplotlib to draw without a screen and to give the same bytes each time."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "pdunroll", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25})


def footnote(provenance: dict[str, Any]) -> str:
    """Return the line that says how a figure was made."""
    seeds = ", ".join(map(str, provenance["seeds"]))
    return (
        f"{provenance['command']}   seed {seeds}   commit {provenance['commit'][:12]}   "
        f"data: {provenance['data'][:35]}   {provenance['test_frames']} test frames"
    )


def save(figure: Figure, stem: Path, origin: str) -> None:
    """Write a figure as stem.png and stem.svg, with its origin as a footnote."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(rect=(0, 0.04, 1, 0.96))  # room for the footnote; the legends keep clear by borderaxespad
    figure.text(0.5, 0.006, origin, fontsize=6, color="0.4", ha="center")
    figure.draw_without_rendering()  # lays the figure out, once for both files
    figure.set_layout_engine("none")
    for kind, metadata in (("png", None), ("svg", {"Date": None})):
        with atomic(stem.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)
    plt.close(figure)


def diverging(values: NDArray) -> NDArray:
    """Return a matrix as a picture (m, n, 4), uint8: from blue (negative) to red, full at the largest modulus."""
    import matplotlib
    import numpy as np

    return matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * values / (np.abs(values).max() or 1.0), bytes=True)
