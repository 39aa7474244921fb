"""Sources of speech: each yields the recordings of the three splits, mono at 16 kHz.

A new source is a class with a method `recordings()` and a file in conf/data/.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pdunroll.errors import InputError, require_integer, require_positive

SAMPLE_RATE = 16_000  # Hz
RATES = 1_000, 768_000  # Hz, the accepted range of sample rates
SPLITS = ("train", "validation", "test")
log = logging.getLogger(__name__)


class Recording(NamedTuple):
    """One file of speech."""

    split: str  # one of SPLITS
    name: str  # unique within the source
    samples: NDArray  # (samples,), mono at 16 kHz; int16 as recorded where possible, else float32


class Source(Protocol):
    """A source of speech."""

    def recordings(self) -> Iterator[Recording]:
        """Yield all recordings, in a fixed order.

        Raises:
            InputError: naming the file or setting at fault.
        """
        ...


@dataclass(frozen=True)
class Synthetic:
    """Random sentences spoken by espeak-ng; no voice is in two splits.

    Attributes:
        minutes: minutes of speech in all splits, 70% of them for training.
        voices: the names of espeak voices for each split.
        seed: the seed of the sentences.
    """

    minutes: float
    voices: dict[str, list[str]]
    seed: int = 0

    SHARES: ClassVar = {"train": 0.70, "validation": 0.15, "test": 0.15}

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording for each sentence."""
        import librosa

        from pdunroll.speech.espeak import speak

        require_positive("data.source.minutes", self.minutes)
        require_integer("data.source.seed", self.seed, 0)
        split_of = {voice: split for split in SPLITS for voice in self.voices.get(split, ())}
        if sum(map(len, self.voices.values())) != len(split_of) or set(split_of.values()) != set(SPLITS):
            raise InputError(f"data.source.voices needs voices for each of {', '.join(SPLITS)}, none of them twice")
        log.info("espeak-ng speaks %g minutes with %d voices", self.minutes, len(split_of))
        seconds = {
            voice: 60 * self.minutes * self.SHARES[split] / len(self.voices[split]) for voice, split in split_of.items()
        }
        rate, speech = speak(seconds, self.seed)
        for voice, sentences in speech.items():
            for number, sentence in enumerate(sentences):
                # polyphase filtering in float64, rounded to 16 bits, gives the same samples on all machines
                wave = librosa.resample(
                    sentence.astype(np.float64), orig_sr=rate, target_sr=SAMPLE_RATE, res_type="polyphase"
                )
                samples = np.rint(wave).clip(-32768, 32767).astype(np.int16)
                yield Recording(split_of[voice], f"{voice}/{number:04d}", samples)


@dataclass(frozen=True)
class IEEE:
    """The paper's corpus of IEEE (Harvard) sentences: 504 training, 108 development and 108 test files.

    Each file is checked against its SHA-256 sum, which is part of the package.

    Attributes:
        root: the folder with train_data, dev_data and test_data; if None, the corpus is downloaded into a cache.
        url: the address of the corpus.
    """

    root: str | None
    url: str

    FOLDERS: ClassVar = {"train_data": "train", "dev_data": "validation", "test_data": "test"}

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording for each file of the corpus."""
        sums = dict(
            line.split()[::-1] for line in (resources.files("pdunroll.speech") / "ieee.sha256").read_text().splitlines()
        )
        folder = self._downloaded(sums) if self.root is None else existing_folder("data.root", self.root)
        for name, expected in sums.items():
            path = folder / name
            if not path.is_file():
                raise InputError(
                    f"{path} is missing; data.root must hold the IEEE corpus (train_data, dev_data, test_data)"
                )
            if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                raise InputError(f"{path} differs from the IEEE corpus (SHA-256); replace it by the published file")
        for name in sums:
            yield Recording(self.FOLDERS[name.split("/")[0]], name, read_audio(folder / name))

    def _downloaded(self, sums: dict[str, str]) -> Path:
        """Return the cache folder with all files, after downloading those that are not there yet."""
        import pooch
        import requests
        from tqdm import tqdm

        home = pooch.create(
            path=pooch.os_cache("pdunroll") / "ieee_corpus",
            base_url=self.url,
            registry={name: f"sha256:{digest}" for name, digest in sums.items()},
            env="PDUNROLL_CACHE",
            retry_if_failed=2,
        )
        pooch.get_logger().setLevel("WARNING")
        log.info("downloading the IEEE corpus from %s to %s", self.url, home.abspath)
        name = ""
        try:
            for name in tqdm(sums, desc="IEEE corpus", unit="file"):
                home.fetch(name)
        except requests.RequestException as error:
            raise InputError(
                f"cannot download {name} from {self.url} ({type(error).__name__}); go online and repeat, "
                "or give a copy by data.root=FOLDER"
            ) from None
        except OSError as error:
            raise InputError(f"cannot store {name} in {home.abspath} ({error}); set PDUNROLL_CACHE") from None
        except ValueError:  # pooch: the sum does not match
            raise InputError(f"{self.url}{name} differs from the IEEE corpus (SHA-256); set data.source.url") from None
        return Path(home.abspath)


@dataclass(frozen=True)
class Folder:
    """Any folder of audio files: mixed to mono, resampled to 16 kHz, split by file at random.

    Attributes:
        root: the folder; files in folders below it are read, too.
        validation_share: the share of validation files, > 0.
        test_share: the share of test files, > 0; both shares add up to less than 1.
        seed: the seed of the split.
        suffixes: the suffixes of audio files, without the dot.
    """

    root: str
    validation_share: float = 0.15
    test_share: float = 0.15
    seed: int = 0
    suffixes: list[str] = field(default_factory=lambda: ["wav", "flac", "ogg", "opus", "mp3", "aiff", "aif", "au"])

    def recordings(self) -> Iterator[Recording]:
        """Yield one recording for each file."""
        folder = existing_folder("data.root", self.root)
        require_integer("data.source.seed", self.seed, 0)
        shares = {"validation": self.validation_share, "test": self.test_share}
        for name, share in shares.items():
            require_positive(f"data.source.{name}_share", share)
        if sum(shares.values()) >= 1:
            raise InputError(
                "data.source.validation_share and data.source.test_share must add up to less than 1, "
                f"got {self.validation_share} and {self.test_share}"
            )
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in self.suffixes)
        counts = {split: max(1, round(share * len(paths))) for split, share in shares.items()}
        counts["train"] = len(paths) - sum(counts.values())
        if counts["train"] < 1:
            raise InputError(
                f"{folder} holds {len(paths)} audio files ({', '.join(self.suffixes)}); at least one each for "
                "training, validation and test is needed"
            )
        splits = [split for split in SPLITS for _ in range(counts[split])]
        random.Random(self.seed).shuffle(splits)
        for split, path in zip(splits, paths, strict=True):
            yield Recording(split, path.relative_to(folder).as_posix(), read_audio(path))


def existing_folder(setting: str, root: object) -> Path:
    """Return `root` as a path; raise `InputError` naming the setting if it is not an existing folder."""
    if not root or not Path(str(root)).expanduser().is_dir():
        raise InputError(f"{setting} must be an existing folder, got {root!r}")
    return Path(str(root)).expanduser()


def read_audio(path: Path) -> NDArray:
    """Return the samples of an audio file, mono at 16 kHz.

    Args:
        path: in any format that libsndfile reads.

    Returns:
        The samples, (samples,): the int16 numbers of a 16-bit mono file at 16 kHz; of any other file float32, the mean
        of its channels, resampled by librosa.

    Raises:
        InputError: naming the file if it is no audio, damaged, not finite, or cut short (as far as its format shows
            that; mp3 and ogg do not).
    """
    import librosa
    import soundfile

    if not path.is_file():  # reading from a pipe might block
        raise InputError(f"{path} is not a regular file; rename or remove it")
    try:
        require_whole(path)
        name = file_name(path)
        info = soundfile.info(name)
        if (info.channels, info.samplerate, info.subtype) == (1, SAMPLE_RATE, "PCM_16"):
            return soundfile.read(name, dtype="int16")[0]
        if not RATES[0] <= info.samplerate <= RATES[1]:  # resampling could need too much memory
            raise InputError(f"{path} has a rate of {info.samplerate} Hz, not of {RATES[0]} to {RATES[1]}; remove it")
        channels, rate = soundfile.read(name, dtype="float32", always_2d=True)
        samples = librosa.resample(channels.mean(axis=1), orig_sr=rate, target_sr=SAMPLE_RATE)
    except InputError:
        raise
    except Exception as error:  # decoders raise various types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as audio ({reason}); replace or remove it") from None
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds samples that are NaN or infinite; replace or remove it")
    return samples


def file_name(path: Path) -> Any:
    """Return the name of a file as bytes, for soundfile, which cannot open names that are not UTF-8 as text."""
    return os.fsencode(path)


def require_whole(path: Path) -> None:
    """Raise `InputError` if a WAV, AIFF or AU file ends before its header says.

    libsndfile reads such a file without an error.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        form = file.read(4)
        if form == b".snd":
            start, length = (int.from_bytes(file.read(4), "big") for _ in range(2))
        elif form in (b"RIFF", b"FORM"):
            order, wanted = ("little", b"data") if form == b"RIFF" else ("big", b"SSND")
            file.seek(12)
            while (chunk := file.read(8))[:4] != wanted:
                if len(chunk) < 8:
                    raise InputError(f"{path} is cut short, it has no audio; replace or remove it")
                length = int.from_bytes(chunk[4:], order)
                file.seek(length + length % 2, 1)
            start, length = file.tell(), int.from_bytes(chunk[4:], order)
        else:
            return
    missing = start + length - size
    if missing > 0 and length < 0xFFFFFF00:  # larger values mean that the length is unknown
        raise InputError(f"{path} is cut short, {missing} bytes of audio are missing; replace or remove it")
