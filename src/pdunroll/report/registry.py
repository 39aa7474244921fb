"""The registries of figures and of sections of the report: a decorated function for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Function = TypeVar("Function", bound=Callable[..., Any])


class Drawing(NamedTuple):
    """A figure: where it is written, what it shows, and the function that draws it.

    Attributes:
        stem: its path in outputs/<name>/ without the suffix; the folder is the command that draws it.
        caption: its title in report.html.
        tables: the tables that `draw` is given, in this order, each a list of rows.
        options: the settings `figures.*` that `draw` is given by name.
        every_norm: whether it shows all norms of the step sizes, whatever `figures.step_norms` selects.
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
    """Register a function that returns a section of report.html as HTML, given a `pdunroll.report.page.Experiment`.

    Args:
        name: the id of the section.
        title: its heading.

    Returns:
        A decorator. Sections stand in the order of their definition; one that is empty is left out.
    """

    def register(render: Function) -> Function:
        SECTIONS[name] = title, render
        return render

    return register
