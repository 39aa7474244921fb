"""Write the composed configuration, split by what depends on it, for DVC.  python -m pdunroll.settings [experiment=...]

conf/ is the only source of parameters; what a stage depends on is spread there over groups and presets. This resolves
it into outputs/<name>/settings.yaml, whose sections the stages of dvc.yaml name as their parameters, so that
touching one setting re-runs just what depends on it.
"""

from __future__ import annotations

from dataclasses import asdict

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pdunroll.config import CONF, one_line_errors, run, settings
from pdunroll.runs import atomic


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        config = settings(cfg)
        sections = {
            "data": asdict(config.data),
            "training": {
                "seed": config.seed,
                "backprop": config.backprop,
                "network": asdict(config.network),
                "optimization": asdict(config.optimization),
                "sweep": dict(HydraConfig.get().sweeper.params or {}),
            },
            "evaluation": {**asdict(config.evaluation), "algorithm": config.algorithm},
            "theory": asdict(config.theory),
            "quality": {**asdict(config.quality), "algorithm": config.algorithm},
            "figures": asdict(config.figures),
            "verdicts": {**asdict(config.verdicts), "regime_borders": config.figures.regime_borders},
        }
        with atomic(config.outputs / "settings.yaml") as temporary:
            OmegaConf.save(OmegaConf.create(sections), temporary)


if __name__ == "__main__":
    run(main)
