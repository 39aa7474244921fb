"""Synthetic speech: sentences of our own composition, spoken by espeak-ng.

espeak-ng is a formant synthesizer that comes as a wheel with its voices (espeakng-loader). Its noise generator runs
on from sentence to sentence, so the speech is the same on every run only if one fresh process says everything in a
fixed order; `speak` starts that process. (And only with voices that do not breathe: see conf/data/synthetic.yaml.)
"""

from __future__ import annotations

import ctypes
import random
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path

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
    """One sentence, such as "The pale donkey carries a thick quilt near the icy shore."."""
    subject, thing = generator.sample(_NOUNS, 2)
    first, second = generator.sample(_ADJECTIVES, 2)
    verb, place = generator.choice(_VERBS), generator.choice(_PLACES)
    return f"The {first} {subject} {verb} the {second} {thing} {place}."


def speak(seconds: dict[str, float], seed: int) -> tuple[int, dict[str, list[NDArray[np.int16]]]]:
    """Say new sentences until each voice has spoken for its `seconds`; in one fresh process.

    Returns the sample rate in Hz and, for each voice (an espeak name such as "en-us+f2"), one array a sentence.
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an exception could not leave the callback below
    end_with_parent()
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
    heard: list[NDArray[np.int16]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def listen(samples, count, events):
        if samples and count > 0:
            heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(listen)
    generator = random.Random(seed)
    said: set[str] = set()
    speech: dict[str, list[NDArray[np.int16]]] = {}
    for voice, wanted in seconds.items():
        variant = voice.partition("+")[2]  # an unknown variant would be passed over in silence
        if library.espeak_SetVoiceByName(voice.encode()) != 0 or not (Path(data) / "voices" / "!v" / variant).exists():
            raise InputError(
                f"data.source.voices: espeak-ng has no voice {voice!r}; languages are in {data}/lang, "
                f"variants (after the +) in {data}/voices/!v"
            )
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
                raise InputError(f"espeak-ng said nothing with voice {voice!r}; choose another one")
            speech[voice].append(np.concatenate(heard))
            spoken += len(speech[voice][-1])
    library.espeak_Terminate()
    return rate, speech
