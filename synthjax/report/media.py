"""Audio as FLAC and spectrograms as PNG, which every browser reads."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.audio.mel import SCALE
from data_pipeline.audio.spectrogram import DYNAMIC_RANGE_DB

FULL_SCALE = 32767.0
# Below any power of 16-bit audio; it keeps the logarithm of silence finite.
MIN_POWER = 1e-20
COLOURS = (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255.0).round().astype(np.uint8)
TICKS_HZ = (500, 1000, 2000, 5000, 10000, 20000)


def common_gain(sounds: Sequence[NDArray[np.floating]]) -> float:
    """The factor, at most 1, that brings the loudest of these sounds (2, T) to full scale at most.

    It is one factor for all sounds, so their relative loudness stays.
    """
    peak = max((float(np.abs(sound).max()) for sound in sounds), default=0.0)
    return 1.0 / peak if peak > 1.0 else 1.0


def flac(audio: NDArray[np.floating]) -> bytes:
    """A 16-bit FLAC file at 44.1 kHz of audio (2, T) within [-1, 1]; lossless but for the rounding to 16 bits."""
    file = io.BytesIO()
    samples = np.rint(audio.T * FULL_SCALE).astype(np.int16)
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def spectrograms(sounds: Sequence[NDArray[np.floating]]) -> list[bytes]:
    """One PNG for each sound (2, T), all with the same scales of time and level.

    Each shows the mel power of ``data_pipeline.audio.mel``, averaged over both channels: a mix of the channels would
    cancel parts with opposite signs. 0 dB is the loudest point of all sounds. Short sounds are padded with silence.
    A pixel is one of 128 bands, the lowest at the bottom, in one frame of 10 ms.
    """
    if not sounds:
        return []
    longest = max(sound.shape[1] for sound in sounds)
    powers = [_mean_power(np.pad(sound, ((0, 0), (0, longest - sound.shape[1])))) for sound in sounds]
    loudest = max(power.max() for power in powers)
    return [_png(power, loudest) for power in powers]


def time_span(samples: int) -> tuple[float, float]:
    """The times in seconds at the left and right edge of a spectrogram; frames are centred on their time."""
    hop = SCALE.hop_length / SAMPLE_RATE
    frames = 1 + samples // SCALE.hop_length
    return -hop / 2.0, (frames - 0.5) * hop


def frequency_ticks() -> list[tuple[int, float]]:
    """Frequencies in hertz with their heights in a spectrogram: 0 is the lower edge, 1 the upper."""
    return [(hz, _height(hz)) for hz in TICKS_HZ]


def palette(steps: int = 9) -> list[str]:
    """The colours of the spectrograms from the softest to the loudest, as CSS writes them."""
    chosen = COLOURS[np.linspace(0, 255, steps).round().astype(int)]
    return ["#" + bytes(colour).hex() for colour in chosen]


def _mean_power(sound: NDArray[np.floating]) -> NDArray[np.float64]:
    return SCALE.power(sound.astype(np.float64)).mean(axis=0)


def _png(power: NDArray[np.float64], loudest: float) -> bytes:
    decibels = 10.0 * np.log10(np.maximum(power, MIN_POWER) / max(loudest, MIN_POWER))
    # If all sounds are silent, the picture shows the floor, not 0 dB.
    level = np.clip(1.0 + decibels / DYNAMIC_RANGE_DB, 0.0, 1.0) * (loudest > MIN_POWER)
    image = Image.fromarray(np.rint(level[::-1] * 255.0).astype(np.uint8))
    image.putpalette(COLOURS.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _height(hz: float) -> float:
    """The height of a frequency in 0..1. Band m of M is centred on edge m + 1 of M + 2: pixel m + 1/2."""
    edges = SCALE.n_mels + 1
    return (edges * _mel(hz) / _mel(SAMPLE_RATE / 2.0) - 0.5) / SCALE.n_mels


def _mel(hz: float) -> float:
    """Slaney's mel scale, as in ``data_pipeline.audio.spectrogram``: linear to 1 kHz, then 27 mels for a factor 6.4."""
    return hz * 3.0 / 200.0 if hz < 1000.0 else 15.0 + 27.0 * float(np.log(hz / 1000.0) / np.log(6.4))
