"""Synthetic speech: random sentences spoken by espeak-ng.

espeak-ng is a formant synthesizer that comes as a wheel with its voices (espeakng-loader). The state of its noise
generator carries over from sentence to sentence. To give the same speech in every run, `speak` synthesizes all
sentences in a fixed order in a new process, and conf/data/synthetic.yaml has no breathy voices.
"""

from __future__ import annotations

import ctypes
import random
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdunroll.errors import InputError
from pdunroll.processes import end_with_parent

# Words that cover the consonants and vowels of English; nouns and verbs have one to three syllables.
_ADJECTIVES = (
    "azure brisk careful deep eager faint gentle heavy icy jolly keen loud muddy narrow orange pale quiet rough "
    "shallow thick upper vivid woolly young zigzag charming huge frozen smooth bitter hollow ancient"
).split()
_NOUNS = (
    "acorn bridge carpet donkey engine feather garden harbor island judge kettle lantern meadow needle oyster "
    "pigeon quilt river sailor thimble umbrella valley window yacht zebra church shepherd orchard measure thunder "
    "voyage beach"
).split()
_VERBS = (
    "avoids brings carries draws enjoys follows guards hides imagines joins keeps lifts mends notices opens paints "
    "questions reaches shakes throws understands visits watches yields chases touches measures sharpens"
).split()
_PLACES = (
    "above the old mill|behind a tall fence|near the icy shore|under the copper roof|beyond five small hills|"
    "across the village square|inside a warm kitchen|along the winding path|before the early train|"
    "after the long winter|during the loud concert|beside the church tower"
).split("|")

_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1  # constants of speak_lib.h


def compose(generator: random.Random) -> str:
    """Return a sentence of random words.

    Examples:
        >>> import random
        >>> from pdunroll.speech.espeak import compose
        >>> compose(random.Random(0))
        'The careful zebra questions the quiet shepherd along the winding path.'
    """
    subject, thing = generator.sample(_NOUNS, 2)
    first, second = generator.sample(_ADJECTIVES, 2)
    verb, place = generator.choice(_VERBS), generator.choice(_PLACES)
    return f"The {first} {subject} {verb} the {second} {thing} {place}."


def speak(seconds: dict[str, float], seed: int) -> tuple[int, dict[str, list[NDArray[np.int16]]]]:
    """Synthesize random sentences in a new process until each voice has spoken for its time.

    Args:
        seconds: for each voice, an espeak name such as "en-us+f2", how long it is to speak.
        seed: the seed of the sentences.

    Returns:
        The sample rate in Hz and, for each voice, one array per sentence.

    Raises:
        InputError: for voices that espeak-ng does not have, and where it cannot be loaded.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(_speak_here, seconds, seed)
        try:
            return future.result()
        except KeyboardInterrupt:
            for process in active_children():
                process.kill()  # the pool would wait for it
            raise


def _speak_here(seconds: dict[str, float], seed: int) -> tuple[int, dict[str, list[NDArray[np.int16]]]]:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # KeyboardInterrupt cannot pass through the callback
    end_with_parent()
    library, data, rate = _load()
    heard: list[NDArray[np.int16]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def listen(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(listen)
    generator = random.Random(seed)
    said: set[str] = set()
    speech: dict[str, list[NDArray[np.int16]]] = {}
    for voice, wanted in seconds.items():
        _choose(library, data, voice)
        speech[voice] = []
        spoken = 0
        while spoken < wanted * rate:
            while (sentence := compose(generator)) in said:
                pass
            said.add(sentence)
            heard.clear()
            text = sentence.encode() + b"\0"
            library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 0, 0, _UTF8, None, None)
            library.espeak_Synchronize()
            if not heard:
                raise InputError(f"espeak-ng produced no speech with voice {voice!r}; choose another one")
            speech[voice].append(np.concatenate(heard))
            spoken += len(speech[voice][-1])
    library.espeak_Terminate()
    return rate, speech


def _load() -> tuple[ctypes.CDLL, Path, int]:
    """Return the library, the folder of its data and its sample rate in Hz."""
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"espeak-ng cannot be loaded on this platform ({error}); use data=ieee or data=folder"
        ) from None
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _DO_NOT_EXIT)
    if rate <= 0:
        raise InputError(
            f"espeak-ng cannot read its voices in {data}; install into a folder with a path of under 100 characters"
        )
    return library, Path(data), rate


def _choose(library: ctypes.CDLL, data: Path, voice: str) -> None:
    variant = voice.partition("+")[2]  # espeak-ng ignores unknown variants without an error
    if library.espeak_SetVoiceByName(voice.encode()) != 0 or not (data / "voices" / "!v" / variant).exists():
        raise InputError(
            f"data.source.voices: espeak-ng has no voice {voice!r}; languages are in {data}/lang, "
            f"variants (after the +) in {data}/voices/!v"
        )
