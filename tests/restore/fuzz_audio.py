"""Feed the readers of audio with files grown under the guidance of coverage:  pip install atheris, then

    python tests/restore/fuzz_audio.py -max_total_time=300

Anything but samples or an `InputError` of one line that names the file is a crash, and kept as crash-*.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
import soundfile

with atheris.instrument_imports(include=["pdunroll"]):
    from pdunroll.errors import InputError
    from pdunroll.restore import grid as levels
    from pdunroll.restore import recordings
    from pdunroll.speech import sources as speech

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
PATH = FOLDER / "x.wav"


def outcome(read: Callable[[Path], object]) -> tuple[object, str]:
    try:
        return read(PATH), str(PATH)
    except InputError as error:
        return None, str(error)


def test_one(content: bytes) -> None:
    PATH.write_bytes(content)
    samples, message = outcome(speech.read_audio)
    assert samples is None or (samples.ndim == 1 and np.isfinite(samples).all())
    grids, other = outcome(lambda path: recordings.cells(recordings.scan(path), None))
    assert grids is None or all(isinstance(grid, levels.Grid) for grid in grids)
    for line in (message, other):
        assert str(PATH) in line and "\n" not in line, line  # noqa: PT018


def seeds(folder: Path) -> None:
    """One small file of each format and kind of sample."""
    wave = np.round(np.sin(np.arange(200) / 9) * 8) / 8 * 0.9
    wav = [("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "ULAW")]
    kinds = [*wav, *((kind, "PCM_16") for kind in ("AIFF", "AU", "FLAC", "WAVEX", "RF64"))]
    folder.mkdir()
    for number, (kind, subtype) in enumerate(kinds):
        for rate, channels in ((16000, 1), (8000, 2)):
            buffer = io.BytesIO()
            soundfile.write(buffer, np.repeat(wave[:, None], channels, axis=1), rate, format=kind, subtype=subtype)
            (folder / f"{number}-{rate}").write_bytes(buffer.getvalue())


if __name__ == "__main__":
    seeds(FOLDER / "corpus")
    atheris.Setup([*sys.argv, str(FOLDER / "corpus"), "-max_len=4096", "-timeout=20"], test_one)
    atheris.Fuzz()
