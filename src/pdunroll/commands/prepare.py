"""Make the dataset: cut speech into frames and degrade it.  python -m pdunroll prepare [data=...] [experiment=...]."""

from __future__ import annotations

from contextlib import suppress

from pdunroll.commands.config import Config
from pdunroll.commands.entry import build, entry


@entry
def main(config: Config) -> None:
    """Prepare the frames and print their statistics."""
    from pdunroll.speech import frames
    from pdunroll.speech.degradation import Degradation

    manifest = frames.prepare(
        build(config.data.source).recordings(),
        config.prepared,
        frame_length=config.data.frame_length,
        bits=config.data.bits,
        level=config.data.level,
        missing=config.data.missing,
    )
    name = Degradation.of(manifest["settings"]).name
    print(f"{config.data.name} speech at {config.data.bits} bit, frames of {config.data.frame_length} samples")
    print(f"{'split':<12}{'files':>7}{'frames':>9}{f'{name} MSE':>{max(15, len(name) + 6)}}{'SNR':>10}{'trivial':>9}")
    for split, content in manifest["splits"].items():
        print(
            f"{split:<12}{len(content['files']):>7}{content['frames']:>9}{content['quantized_mse']:>15.3e}"
            f"{content['quantized_snr_db']:>7.2f} dB{content['trivial_share']:>9.1%}"
        )
    with suppress(FileNotFoundError):  # another process may be replacing it
        size = sum(path.stat().st_size for path in config.prepared.iterdir())
        print(f"{config.prepared}: {size / 1e6:.1f} MB")
