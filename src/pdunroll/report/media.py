"""Pictures for an HTML page: SVG elements and data URIs."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray


def inline(text: str, prefix: str, title: str) -> str:
    """Return an SVG document as an element of a page.

    Args:
        text: the document.
        prefix: a prefix for the ids in it, since Matplotlib uses the same ids in each file.
        title: a description for screen readers.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def image(picture: NDArray) -> str:
    """Return a picture (height, width, 4), uint8, as a PNG data URI."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    plt.imsave(buffer, picture, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def spectrogram(path: Path) -> str:
    """Return 80 dB of short-time spectra (32 ms windows, 8 ms steps), as a PNG data URI."""
    import matplotlib
    import numpy as np
    import soundfile
    from scipy.signal import stft

    samples, rate = soundfile.read(path)
    window = round(0.032 * rate)
    power = np.abs(stft(samples, rate, nperseg=window, noverlap=window - round(0.008 * rate))[2]) ** 2
    decibels = 10 * np.log10(power + 1e-12)
    level = 1 + (decibels[::-1] - decibels.max()) / 80  # 0 for -80 dB and below
    return image(matplotlib.colormaps["magma"](level.clip(0, 1), bytes=True))
