"""Test error of every trained operator after every number of iterations.  python -m pdunroll evaluate [experiment=...].

Writes evaluation.csv, optima.csv, training.csv, metrics.json, provenance.json and errors/ to outputs/<name>/; see
`pdunroll.evaluation.evaluate`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, build, given, one_line_errors, settings


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    """Evaluate the finished trainings of `evaluation.runs`."""
    with one_line_errors():
        config = settings(cfg)
        from pdunroll.evaluation.evaluate import evaluate
        from pdunroll.speech.frames import read_manifest
        from pdunroll.training.run_folder import finished_runs

        options = asdict(config.evaluation)
        data = read_manifest(config.prepared)["digest"]
        runs = finished_runs(Path(options.pop("runs")), data, config.name, given(config))
        device = "cuda" if config.trainer.accelerator == "gpu" else "cpu"
        evaluate(runs, config.prepared, config.outputs, algorithm=build(config.algorithm), device=device, **options)
