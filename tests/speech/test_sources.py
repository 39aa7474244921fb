"""The sources of speech give the right samples in the right splits, and bad input is one line that names it."""

from __future__ import annotations

import gc
import hashlib
import random
import socket
import struct
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from itertools import chain
from math import gcd
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from pdunroll.errors import InputError
from pdunroll.speech.espeak import compose, speak
from pdunroll.speech.sources import IEEE, SPLITS, Folder, Synthetic, read_audio


def refusal(source) -> str:
    """The one line with which a source refuses its settings or files."""
    with pytest.raises(InputError) as caught:
        list(source.recordings())
    return one_line(caught)


def one_line(caught) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def noise(seed: int, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**15), 2**15, count).astype(np.int16)


def tones(rate: int) -> np.ndarray:
    """Two channels of a 440 Hz tone, of amplitude 0.6 and 0.2: 0.4 when mixed to mono.  (samples, 2)"""
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    return np.stack([0.6 * tone, 0.2 * tone], axis=1)


# --- sentences and the synthesizer


def test_sentences_differ_and_end_with_a_full_stop():
    generator = random.Random(0)
    sentences = [compose(generator) for _ in range(300)]
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        assert sentence.startswith("The ")
        assert sentence.endswith(".")
        assert sentence.count(".") == 1
        _, first, subject, _, _, second, thing, *_ = sentence.split()
        assert first != second
        assert subject != thing
    assert compose(random.Random(7)) == compose(random.Random(7))


VOICES = {"train": ["en-us+f1", "en+m3"], "validation": ["en-us+m5"], "test": ["en-us+steph"]}


@pytest.fixture(scope="module")
def spoken():
    return list(Synthetic(0.3, VOICES).recordings())


def test_synthetic_is_the_same_in_every_process(spoken):
    again = list(Synthetic(0.3, VOICES).recordings())
    assert [recording[:2] for recording in again] == [recording[:2] for recording in spoken]
    for one, other in zip(spoken, again, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)


def test_synthetic_fills_each_split_with_its_own_voices(spoken):
    assert {recording.split for recording in spoken} == set(SPLITS)
    for split, share in (("train", 0.70), ("validation", 0.15), ("test", 0.15)):
        for voice in VOICES[split]:
            own = [recording for recording in spoken if recording.name.split("/")[0] == voice]
            assert {recording.split for recording in own} == {split}
            wanted = 0.3 * 60 * share / len(VOICES[split]) * 16_000
            lengths = [len(recording.samples) for recording in own]
            assert sum(lengths) >= wanted - 1
            assert sum(lengths[:-1]) < wanted
    assert len({recording.name for recording in spoken}) == len(spoken)


def test_synthetic_speech_is_16_bit_and_16_khz(spoken):
    for recording in spoken:
        assert recording.samples.dtype == np.int16
        assert recording.samples.ndim == 1
        assert np.abs(recording.samples.astype(int)).max() > 2000


def test_synthetic_speech_is_that_of_the_synthesizer(spoken):
    rate, speech = speak({"en-us+f1": 0.1}, 0)
    (sentence,) = speech["en-us+f1"]
    expected = resample_poly(sentence.astype(float), 16_000 // gcd(16_000, rate), rate // gcd(16_000, rate))
    assert spoken[0].name.startswith("en-us+f1/")
    assert len(spoken[0].samples) == len(expected)
    np.testing.assert_allclose(spoken[0].samples, expected, atol=0.5 + 1e-6)


def test_synthetic_depends_on_the_seed(spoken):
    other = list(Synthetic(0.01, VOICES, seed=1).recordings())
    assert other[0].name == spoken[0].name
    assert not np.array_equal(other[0].samples, spoken[0].samples)


@pytest.mark.parametrize(
    "voices",
    [
        VOICES | {"test": ["en-us+f1"]},
        VOICES | {"train": ["en+m3", "en+m3"]},
        VOICES | {"test": []},
        {split: VOICES[split] for split in ("train", "validation")},
        VOICES | {"dev": ["en-gb-x-rp+m2"]},
        {},
    ],
    ids=["in two splits", "twice in a split", "empty split", "missing split", "unknown split", "none"],
)
def test_synthetic_refuses_voices(voices):
    assert "data.source.voices" in refusal(Synthetic(0.3, voices))


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), "long"])
def test_synthetic_refuses_minutes(minutes):
    text = refusal(Synthetic(minutes, VOICES))
    assert "data.source.minutes" in text
    assert repr(minutes) in text


@pytest.mark.parametrize("voice", ["xx-nonsense", "en-us+nosuchvariant"])
def test_synthetic_refuses_an_unknown_voice(voice):
    text = refusal(Synthetic(0.01, VOICES | {"test": [voice]}))
    assert voice in text
    assert "data.source.voices" in text


# --- the IEEE corpus, with three files instead of 720

NAMES = {"train_data/a.wav": "train", "dev_data/b.wav": "validation", "test_data/c.wav": "test"}


def test_list_of_the_ieee_corpus():
    lines = (resources.files("pdunroll.speech") / "ieee.sha256").read_text().splitlines()
    sums, names = zip(*(line.split() for line in lines), strict=True)
    assert len(lines) == len(set(names)) == 720
    assert len(set(sums)) == 720
    assert Counter(name.split("/")[0] for name in names) == {"train_data": 504, "dev_data": 108, "test_data": 108}
    assert all(name.endswith(".wav") and name.count("/") == 1 for name in names)
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in sums)
    assert set(IEEE.FOLDERS) == {name.split("/")[0] for name in names}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A folder with the three files, whose sums stand in for those of the package."""
    folder = tmp_path / "corpus"
    for seed, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True)
        soundfile.write(folder / name, noise(seed), 16_000)
    package = tmp_path / "package"
    package.mkdir()
    (package / "ieee.sha256").write_text(
        "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in NAMES)
    )
    monkeypatch.setattr("pdunroll.speech.sources.resources", SimpleNamespace(files=lambda name: package))
    return folder


def assert_is_the_corpus(recordings):
    recordings = list(recordings)
    assert [(recording.split, recording.name) for recording in recordings] == [(s, n) for n, s in NAMES.items()]
    for seed, recording in enumerate(recordings):
        assert recording.samples.dtype == np.int16
        np.testing.assert_array_equal(recording.samples, noise(seed))


def test_ieee_from_a_folder(corpus):
    soundfile.write(corpus / "train_data" / "other.wav", noise(9), 16_000)
    assert_is_the_corpus(IEEE(str(corpus), "http://unused.invalid/").recordings())


@pytest.mark.parametrize("name", NAMES)
def test_ieee_refuses_a_changed_file(corpus, name):
    soundfile.write(corpus / name, noise(9), 16_000)
    assert str(corpus / name) in refusal(IEEE(str(corpus), ""))


@pytest.mark.parametrize("name", NAMES)
def test_ieee_refuses_a_missing_file(corpus, name):
    (corpus / name).unlink()
    text = refusal(IEEE(str(corpus), ""))
    assert str(corpus / name) in text
    assert "data.root" in text


def test_ieee_gives_nothing_before_all_is_checked(corpus):
    (corpus / "test_data/c.wav").unlink()
    with pytest.raises(InputError):
        next(iter(IEEE(str(corpus), "").recordings()))


def test_ieee_refuses_a_root_that_does_not_exist(corpus):
    for root in (corpus / "nowhere", corpus / "train_data/a.wav"):
        text = refusal(IEEE(str(root), ""))
        assert "data.root" in text
        assert str(root) in text


class Server:
    """Serves a folder on this machine and counts what is asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments) -> None:
                super().__init__(*arguments, directory=str(folder))

            def do_GET(self):
                asked[self.path.removeprefix("/")] += 1
                super().do_GET()

            def log_message(self, *arguments) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for downloads, and no waiting between attempts."""
    monkeypatch.setenv("PDUNROLL_CACHE", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    yield tmp_path / "cache"
    gc.collect()  # see `answers`


# pooch does not close the connection when the server answers that it has no such file
answers = pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")


@pytest.fixture
def server(corpus):
    server = Server(corpus)
    yield server
    server.stop()


def test_download_once(server, cache):
    assert_is_the_corpus(IEEE(None, server.url).recordings())
    assert server.asked == dict.fromkeys(NAMES, 1)
    assert {path.relative_to(cache).as_posix() for path in cache.rglob("*.wav")} == set(NAMES)
    server.stop()
    assert_is_the_corpus(IEEE(None, server.url).recordings())


def test_download_with_no_slash_at_the_end_of_the_address(server, cache):
    assert_is_the_corpus(IEEE(None, server.url.rstrip("/")).recordings())


@answers
def test_download_goes_on_where_it_stopped(server, corpus, cache):
    gone = corpus / "dev_data/b.wav"
    content = gone.read_bytes()
    gone.unlink()
    text = refusal(IEEE(None, server.url))
    assert "dev_data/b.wav" in text
    assert server.url in text
    assert server.asked["train_data/a.wav"] == 1
    assert "test_data/c.wav" not in server.asked
    assert not (cache / "dev_data/b.wav").exists()

    gone.write_bytes(content)
    server.asked.clear()
    assert_is_the_corpus(IEEE(None, server.url).recordings())
    assert server.asked == {"dev_data/b.wav": 1, "test_data/c.wav": 1}


def test_download_replaces_a_damaged_file(server, cache):
    list(IEEE(None, server.url).recordings())
    (cache / "dev_data/b.wav").write_bytes(b"half a file")
    server.asked.clear()
    assert_is_the_corpus(IEEE(None, server.url).recordings())
    assert server.asked == {"dev_data/b.wav": 1}


@answers
def test_download_tries_again_when_a_connection_fails(server, cache, monkeypatch):
    fails = iter([True, False])
    send_head = SimpleHTTPRequestHandler.send_head

    def flaky(handler):
        if handler.path.endswith("b.wav") and next(fails, False):
            return handler.send_error(503)
        return send_head(handler)

    monkeypatch.setattr(SimpleHTTPRequestHandler, "send_head", flaky)
    assert_is_the_corpus(IEEE(None, server.url).recordings())
    assert server.asked == dict.fromkeys(NAMES, 1) | {"dev_data/b.wav": 2}


def test_download_offline(corpus, cache):
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        text = refusal(IEEE(None, f"http://127.0.0.1:{closed.getsockname()[1]}/"))
    assert "train_data/a.wav" in text
    assert "data.root" in text


def test_download_refuses_other_bytes(server, corpus, cache):
    soundfile.write(corpus / "test_data/c.wav", noise(9), 16_000)
    text = refusal(IEEE(None, server.url))
    assert f"{server.url}test_data/c.wav" in text
    assert not (cache / "test_data/c.wav").exists()


def test_download_into_a_cache_that_cannot_be_a_folder(server, cache):
    cache.write_text("a file")
    assert str(cache) in refusal(IEEE(None, server.url))


# --- any folder


@pytest.fixture
def folder(tmp_path):
    """A folder with 20 short recordings, four of them in subfolders."""
    folder = tmp_path / "audio"
    (folder / "sub" / "deep").mkdir(parents=True)
    for number in range(20):
        place = folder / ("sub/deep" if number < 2 else "sub" if number < 4 else ".")
        soundfile.write(place / f"{number:02d}.wav", noise(number), 16_000)
    return folder


def by_split(source: Folder) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for recording in source.recordings():
        found[recording.split].append(recording.name)
    return found


def test_folder_splits_by_file(folder):
    splits = by_split(Folder(str(folder)))
    assert {split: len(names) for split, names in splits.items()} == {"train": 14, "validation": 3, "test": 3}
    names = sorted(chain.from_iterable(splits.values()))
    expected = [f"{number:02d}.wav" for number in range(4, 20)]
    assert names == [*expected, "sub/02.wav", "sub/03.wav", "sub/deep/00.wav", "sub/deep/01.wav"]


def test_folder_splits_depend_on_the_seed_alone(folder):
    first = by_split(Folder(str(folder)))
    assert by_split(Folder(str(folder))) == first
    others = [by_split(Folder(str(folder), seed=seed)) for seed in (1, 2)]
    assert first not in others
    assert others[0] != others[1]
    soundfile.write(folder / "05.wav", noise(99), 16_000)
    assert by_split(Folder(str(folder))) == first


def test_folder_shares(folder):
    splits = by_split(Folder(str(folder), validation_share=0.3, test_share=0.1))
    assert {split: len(names) for split, names in splits.items()} == {"train": 12, "validation": 6, "test": 2}
    for name in ("validation_share", "test_share"):
        for share in (0, -0.1, float("nan")):
            assert f"data.source.{name}" in refusal(Folder(str(folder), **{name: share}))


def test_folder_refuses_shares_that_leave_no_training(folder):
    text = refusal(Folder(str(folder), validation_share=0.6, test_share=0.5))
    assert "validation_share" in text


def test_folder_gives_exact_samples(folder):
    for recording in Folder(str(folder)).recordings():
        assert recording.samples.dtype == np.int16
        np.testing.assert_array_equal(recording.samples, noise(int(recording.name[-6:-4])))


def test_folder_of_three_files_has_one_a_split(tmp_path):
    for number, name in enumerate(("a.wav", "B.WAV", "c.Wav")):
        soundfile.write(tmp_path / name, noise(number), 16_000)
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "wav").write_text("no suffix")
    (tmp_path / "a.wav.bak").write_text("another suffix")
    splits = by_split(Folder(str(tmp_path)))
    assert {split: len(names) for split, names in splits.items()} == dict.fromkeys(SPLITS, 1)
    assert sorted(chain.from_iterable(splits.values())) == ["B.WAV", "a.wav", "c.Wav"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_folder_refuses_fewer_than_three_files(tmp_path, count):
    for number in range(count):
        soundfile.write(tmp_path / f"{number}.wav", noise(number), 16_000)
    text = refusal(Folder(str(tmp_path)))
    assert str(tmp_path) in text
    assert f" {count} audio files" in text


@pytest.mark.parametrize("root", [None, "", "nowhere"])
def test_folder_refuses_a_root_that_does_not_exist(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    text = refusal(Folder(root))
    assert "data.root" in text
    assert repr(root) in text


def test_folder_names_the_file_that_cannot_be_read(folder):
    (folder / "sub" / "03.wav").write_text("no audio")
    assert str(folder / "sub" / "03.wav") in refusal(Folder(str(folder)))


@pytest.mark.parametrize("suffix", Folder("").suffixes)
def test_every_suffix_can_be_read(tmp_path, suffix):
    names = {"opus": ("OGG", "OPUS"), "aif": ("AIFF", None)}
    kind, subtype = names.get(suffix, (suffix.upper(), None))
    soundfile.write(tmp_path / f"a.{suffix}", tones(16_000)[:, 0], 16_000, format=kind, subtype=subtype)
    samples = read_audio(tmp_path / f"a.{suffix}")
    assert len(samples) == pytest.approx(16_000, abs=1200)


# --- one file


@pytest.mark.parametrize("rate", [44_100, 22_050, 8_000])
@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 2e-4),
        ("a.wav", "PCM_24", 1e-4),
        ("a.wav", "FLOAT", 1e-4),
        ("a.flac", "PCM_16", 2e-4),
        ("a.flac", "PCM_24", 1e-4),
    ],
)
def test_other_formats_become_mono_at_16_khz(tmp_path, name, subtype, tolerance, rate):
    soundfile.write(tmp_path / name, tones(rate), rate, subtype=subtype)
    samples = read_audio(tmp_path / name)
    assert samples.dtype == np.float32
    assert samples.shape == (16_000,)
    expected = tones(16_000).mean(axis=1)
    middle = slice(1000, -1000)  # the resampler's filter has its edges
    np.testing.assert_allclose(samples[middle], expected[middle], atol=tolerance)


def test_float_samples_at_16_khz_stay_as_they_are(tmp_path):
    wave = np.random.default_rng(0).normal(size=500).astype(np.float32)  # beyond [-1, 1], too
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), wave)


def test_stereo_at_16_khz_is_averaged(tmp_path):
    left, right = noise(0), noise(1)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000)
    expected = (left.astype(float) + right.astype(float)) / 2**16
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff"])
def test_16_bit_mono_at_16_khz_stays_as_it_is(tmp_path, name):
    soundfile.write(tmp_path / name, noise(0), 16_000, subtype="PCM_16")
    samples = read_audio(tmp_path / name)
    assert samples.dtype == np.int16
    np.testing.assert_array_equal(samples, noise(0))


def wav(data: bytes, *, length: int | None = None, before: bytes = b"", after: bytes = b"") -> bytes:
    """A WAV file, 16 bit mono at 16 kHz, byte by byte."""
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    body = form + before + b"data" + struct.pack("<I", len(data) if length is None else length) + data + after
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


LIST = b"LIST" + struct.pack("<I", 5) + b"INFOx" + b"\0"  # of odd size, hence padded


@pytest.mark.parametrize(
    "content",
    [
        wav(noise(0).tobytes()),
        wav(noise(0).tobytes(), before=LIST),
        wav(noise(0).tobytes(), after=LIST),
        wav(noise(0).tobytes(), length=0xFFFFFFFF),
    ],
    ids=["plain", "chunk before", "chunk after", "stream"],
)
def test_whole_wav_files(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_audio(path), noise(0))


def unreadable(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_audio(path)
    text = one_line(caught)
    assert str(path) in text
    return text


@pytest.mark.parametrize(
    "content",
    [
        wav(noise(0).tobytes())[:-100],
        wav(noise(0).tobytes())[:-1],
        wav(noise(0).tobytes(), before=LIST)[:-100],
        wav(noise(0).tobytes())[:40],
        wav(noise(0).tobytes())[:20],
        wav(noise(0).tobytes())[:12],
        np.random.default_rng(0).bytes(3000),
        b"",
        b"some text\non two lines\n",
    ],
    ids="cut,last byte,cut after chunk,in data header,in format,header only,garbage,empty,text".split(","),
)
def test_damaged_wav_files(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    unreadable(path)


def test_a_cut_file_says_what_is_missing(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(noise(0).tobytes(), before=LIST)[:-100])
    assert " 100 bytes " in unreadable(path)


@pytest.mark.parametrize("name", ["a.flac", "a.aiff", "a.au"])
def test_cut_files_of_other_formats(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, noise(0, 16_000), 16_000, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    unreadable(path)


def test_no_file(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    unreadable(tmp_path / "folder.wav")
    unreadable(tmp_path / "missing.wav")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_samples_that_are_no_numbers(tmp_path, bad, rate, channels):
    wave = np.full((1000, channels), 0.1, np.float32)
    wave[500, -1] = bad
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    assert "finite" in unreadable(tmp_path / "a.wav")
