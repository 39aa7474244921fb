"""Write the composed settings, split by what depends on them, for DVC.  python -m pdunroll settings [experiment=...].

conf/ is the only source of parameters; what a stage depends on is spread there over groups and presets. This resolves
it into outputs/<name>/settings.yaml, whose sections the stages of dvc.yaml name as their parameters, so that
touching one setting re-runs just what depends on it. The same for code: outputs/<name>/code/ has a file for each stage
with a digest of what its modules do, on which the stage depends, so that a comment re-runs nothing; and for audio in a
folder, by a digest of its files' list.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from yaml import YAMLError

from pdunroll.commands.entry import entry
from pdunroll.config import CONF, Config
from pdunroll.errors import InputError
from pdunroll.files import atomic, digest
from pdunroll.training.code_digest import source_digest
from pdunroll.training.run_folder import STRATEGIES

STAGES = ("prepare", "train", "operators", "evaluate", "theory", "quality", "figures", "verdicts", "report")
BUILT = {"train": STRATEGIES, "theory": STRATEGIES}  # what stages build by its name, and so do not import


@entry
def main(config: Config) -> None:
    """Write settings.yaml and the digests of the code."""
    sections = sections_of(config)
    path = config.outputs / "settings.yaml"
    require_unedited(path)
    with atomic(path) as temporary:
        OmegaConf.save(OmegaConf.create({**sections, "checksum": digest(sections)}), temporary)
    for stage in STAGES:
        with atomic(config.outputs / "code" / stage) as temporary:
            temporary.write_text(source_digest(f"commands.{stage}", *BUILT.get(stage, ())) + "\n")


def sections_of(config: Config) -> dict[str, Any]:
    """Return the settings by the sections that the stages depend on."""
    return {
        "data": {**asdict(config.data), "files": listing(config.data.root)},
        "training": {**config.scientific, "sweep": dict(HydraConfig.get().sweeper.params or {})},
        "evaluation": {**asdict(config.evaluation), "algorithm": config.algorithm},
        "theory": {**asdict(config.theory), "modes": modes()},
        "quality": {**asdict(config.quality), "algorithm": config.algorithm},
        "figures": asdict(config.figures),
        "verdicts": {**asdict(config.verdicts), "regime_borders": config.figures.regime_borders},
    }


def require_unedited(path: Path) -> None:
    """Raise `InputError` if the file is there and was changed since it was written here: that would have no effect."""
    if not path.is_file():
        return
    try:
        sections = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(sections, dict)
        unedited = sections.pop("checksum") == digest(sections)
    except (OSError, ValueError, AssertionError, KeyError, YAMLError):
        return  # it is written again
    if not unedited:
        raise InputError(
            f"{path} was changed by hand or by `dvc exp run -S`, which has no effect: it is made of conf/; set values "
            "there (`dvc exp run -S conf/...`), and remove this file"
        )


def modes() -> str:
    """Return a digest of the presets of backpropagation, all of which the theory compares."""
    return digest({path.stem: path.read_text() for path in Path(CONF, "backprop").glob("*.yaml")})


def listing(root: str | None) -> str | None:
    """A digest of names, sizes and times of the files in a folder, so that changed audio is noticed."""
    if root is None or not Path(root).expanduser().is_dir():
        return None
    folder = Path(root).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return digest([[name, state.st_size, state.st_mtime_ns] for name, state in found])
