"""Evaluate the test error of every trained operator.  python -m pdunroll evaluate [experiment=...].

Writes evaluation.csv, optima.csv, training.csv, metrics.json, provenance.json and errors/ to outputs/<name>/; see
`pdunroll.evaluation.evaluate`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pdunroll.commands.config import Config
from pdunroll.commands.entry import build, entry, given


@entry
def main(config: Config) -> None:
    """Evaluate the finished trainings of `evaluation.runs`."""
    from pdunroll.evaluation.evaluate import evaluate
    from pdunroll.speech.frames import read_manifest
    from pdunroll.training.run_folder import finished_runs

    options = asdict(config.evaluation)
    data = read_manifest(config.prepared)["digest"]
    runs = finished_runs(Path(options.pop("runs")), data, config.name, given(config))
    device = "cuda" if config.trainer.accelerator == "gpu" else "cpu"
    evaluate(runs, config.prepared, config.outputs, algorithm=build(config.algorithm), device=device, **options)
