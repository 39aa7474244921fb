"""The registries of figures and of sections of the report, which are decorated functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Function = TypeVar("Function", bound=Callable[..., Any])


class Drawing(NamedTuple):
    """A figure: its file, its title, and the function that draws it.

    Attributes:
        stem: the path in outputs/<name>/ without the suffix; the folder is named as the command that draws the figure.
        caption: the title in report.html.
        tables: the tables that `draw` is given, in this order, each a list of rows.
        options: the settings `figures.*` that `draw` is given by name.
        every_norm: whether the figure ignores `figures.step_norms` and shows all norms of the step sizes.
        draw: the function.
    """

    stem: str
    caption: str
    tables: tuple[str, ...]
    options: tuple[str, ...]
    every_norm: bool
    draw: Callable[..., Figure]


FIGURES: dict[str, Drawing] = {}
SECTIONS: dict[str, tuple[str, Callable[[Any], str]]] = {}


def figure(
    stem: str, caption: str, *, tables: tuple[str, ...], options: tuple[str, ...] = (), every_norm: bool = False
) -> Callable[[Function], Function]:
    """Register a function that draws a figure from tables; see `Drawing` for the arguments.

    The commands `figures` and `theory` draw the figures of their folders; the report and the dashboard show all.
    """

    def register(draw: Function) -> Function:
        FIGURES[stem] = Drawing(stem, caption, tables, options, every_norm, draw)
        return draw

    return register


def drawn_by(stage: str) -> list[Drawing]:
    """Return the figures that the command `stage` draws, in the order of their definition."""
    return [drawing for drawing in FIGURES.values() if drawing.stem.startswith(f"{stage}/")]


def section(name: str, title: str) -> Callable[[Function], Function]:
    """Register a function that returns a section of report.html as HTML, given an `Experiment` of `sections`.

    Args:
        name: the id of the section.
        title: its heading.

    Returns:
        A decorator. The report has the sections in the order of their definition, without empty ones.
    """

    def register(render: Function) -> Function:
        SECTIONS[name] = title, render
        return render

    return register
