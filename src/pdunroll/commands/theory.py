"""Measure where the paper's theorems hold, on frames of speech.  python -m pdunroll theory [experiment=...].

Writes the tables of `pdunroll.evaluation.theorems` and their figures to outputs/<name>/theory/. The DCT is measured
with both norms of the step sizes, a trained operator with the norm of its training.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from pdunroll.commands.config import CONF, Config
from pdunroll.commands.entry import build, entry
from pdunroll.errors import InputError

if TYPE_CHECKING:
    from pdunroll.core.gradients import Backprop


@entry
def main(config: Config) -> None:
    """Measure the DCT and the trainings of `theory.runs`."""
    import torch

    from pdunroll.core.chambolle_pock import STEP_NORMS
    from pdunroll.core.problem import dct_operator
    from pdunroll.evaluation.theorems import Measured, measure
    from pdunroll.files import write_table
    from pdunroll.report.theory import draw
    from pdunroll.training.run_folder import RECORD, Run, origin, read_record

    options, runs = config.theory, []
    torch.set_num_threads(config.trainer.usable_threads)
    for name in options.runs:
        folder = Path(config.evaluation.runs) / name
        if not folder.is_dir():
            raise InputError(f"theory.runs: {folder} is not a training; name folders of {config.evaluation.runs}")
        runs.append(Run(folder, read_record(folder / RECORD)))
    common = (runs or [Run(config.outputs, {"settings": config.scientific})])[0]
    dct = dct_operator(*common.shape, dtype=torch.float64)
    operators = [Measured("dct", dct, {**common.initial_steps, "step_norm": norm}) for norm in STEP_NORMS]
    operators += [Measured(run.folder.name, torch.from_numpy(run.operator()).double(), run.steps) for run in runs]
    tables = measure(
        config.prepared, operators, modes(config), frames=options.frames,
        count_frames=options.count_frames, iterations=options.iterations, seed=options.seed,
    )  # fmt: skip
    folder = config.outputs / "theory"
    for name, rows in tables.items():
        write_table(folder / f"{name}.csv", rows)
    made_by = origin("theory", config.name, config.data.name, config.prepared)
    draw(folder, f"{made_by}   {options.frames} frames, seed {options.seed}")
    print(*sorted(str(path) for path in folder.iterdir()), sep="\n")


def modes(config: Config) -> dict[str, Backprop]:
    """Return the strategies of conf/backprop with each primal mask that they support, by label and mask."""
    from pdunroll.core.problem import PRIMAL_MASKS

    found: dict[str, Backprop] = {}
    for path in sorted(Path(CONF, "backprop").glob("*.yaml")):
        preset = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(preset, dict)
        for mask in dict.fromkeys([preset["primal_mask"], *PRIMAL_MASKS]):
            chosen = OmegaConf.create({**asdict(config), "backprop": {**preset, "primal_mask": mask}}).backprop
            try:
                found[f"{chosen.label}-{mask}"] = build(chosen.strategy)
            except InstantiationException:
                if mask == preset["primal_mask"]:
                    raise
    return found
