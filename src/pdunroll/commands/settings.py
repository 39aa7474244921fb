"""Write the composed settings and digests of the code for DVC.  python -m pdunroll settings [experiment=...].

In conf/ the settings of a stage are spread over groups and presets. This command composes them and writes them to
outputs/<name>/settings.yaml. Its sections are the parameters of the stages of dvc.yaml, so that a changed setting
re-runs only the stages that depend on it. Audio in a folder is represented by a digest of its list of files.
outputs/<name>/code/ has a digest of the code of each stage, which ignores comments.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from yaml import YAMLError

from pdunroll.commands.config import CONF, Config
from pdunroll.commands.entry import entry
from pdunroll.errors import InputError
from pdunroll.files import atomic, digest
from pdunroll.training.code_digest import source_digest
from pdunroll.training.run_folder import STRATEGIES

STAGES = ("prepare", "train", "operators", "evaluate", "theory", "quality", "figures", "verdicts", "report")
BUILT = {"train": STRATEGIES, "theory": STRATEGIES}  # modules that a stage loads by name, without an import statement


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
    """Return the settings by sections; dvc.yaml says which stages depend on which section."""
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
    """Raise `InputError` if the settings file was edited, which has no effect."""
    if not path.is_file():
        return
    try:
        sections = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(sections, dict)
        unedited = sections.pop("checksum") == digest(sections)
    except (OSError, ValueError, AssertionError, KeyError, YAMLError):
        return  # a damaged file is overwritten
    if not unedited:
        raise InputError(
            f"{path} was changed by hand or by `dvc exp run -S`, which has no effect: it is made of conf/; set values "
            "there (`dvc exp run -S conf/...`), and remove this file"
        )


def modes() -> str:
    """Return a digest of conf/backprop/, since the theory compares all modes."""
    return digest({path.stem: path.read_text() for path in Path(CONF, "backprop").glob("*.yaml")})


def listing(root: str | None) -> str | None:
    """Return a digest of the names, sizes and times of the files in a folder, to detect changed audio."""
    if root is None or not Path(root).expanduser().is_dir():
        return None
    folder = Path(root).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return digest([[name, state.st_size, state.st_mtime_ns] for name, state in found])
