"""Write trained operators with their provenance to files for `restore`.  python -m pdunroll operators [experiment=...].

Writes outputs/<name>/operators/<run>.npz, which `pdunroll restore --operator` takes, and which DVC can push and pull.
"""

from __future__ import annotations

from pathlib import Path

from pdunroll.commands.config import Config
from pdunroll.commands.entry import entry


@entry
def main(config: Config) -> None:
    """Write the operators of the finished trainings of `evaluation.runs`."""
    from pdunroll.processes import command
    from pdunroll.restore import operator_file
    from pdunroll.speech.frames import read_manifest
    from pdunroll.training.run_folder import finished_runs

    data = read_manifest(config.prepared)["digest"]
    made_by = command("train", config.name, "-m")
    for run in finished_runs(Path(config.evaluation.runs), data, config.name):
        path = config.outputs / "operators" / f"{run.folder.name}.npz"
        operator_file.save(path, operator_file.from_run(run.folder, made_by))
        print(path)
