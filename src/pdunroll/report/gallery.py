"""All figures of an experiment, for the report and the dashboard."""

from __future__ import annotations

from pathlib import Path

from pdunroll.report import figures, registry, theory  # noqa: F401 (both register their figures)


def figures_in(folder: Path, suffix: str) -> dict[registry.Drawing, Path]:
    """Return the figures whose files exist, with their files.

    Args:
        folder: outputs/<name>/.
        suffix: the suffix of the files, ".svg" or ".png".
    """
    paths = {drawing: folder / f"{drawing.stem}{suffix}" for drawing in registry.FIGURES.values()}
    return {drawing: path for drawing, path in paths.items() if path.is_file()}
