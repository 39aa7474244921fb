"""Make the dataset: speech -> frames -> quantized.  python -m pdunroll prepare [data=...] [experiment=...]."""

from __future__ import annotations

from contextlib import suppress

import hydra
from omegaconf import DictConfig

from pdunroll.commands.config import CONF, build, one_line_errors, settings


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> None:
    """Prepare the frames and say what they are."""
    with one_line_errors():
        config = settings(cfg)
        from pdunroll.speech import frames

        manifest = frames.prepare(
            build(config.data.source).recordings(),
            config.prepared,
            frame_length=config.data.frame_length,
            bits=config.data.bits,
        )
        print(f"{config.data.name} speech at {config.data.bits} bit, frames of {config.data.frame_length} samples")
        print(f"{'split':<12}{'files':>7}{'frames':>9}{'quantized MSE':>15}{'SNR':>10}{'trivial':>9}")
        for split, content in manifest["splits"].items():
            print(
                f"{split:<12}{len(content['files']):>7}{content['frames']:>9}{content['quantized_mse']:>15.3e}"
                f"{content['quantized_snr_db']:>7.2f} dB{content['trivial_share']:>9.1%}"
            )
        with suppress(FileNotFoundError):  # another process may be replacing it
            size = sum(path.stat().st_size for path in config.prepared.iterdir())
            print(f"{config.prepared}: {size / 1e6:.1f} MB")
