"""Measures of signals that tests of synthesizers share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE


def spectrum(signal: NDArray[np.floating]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Hertz and magnitudes of a signal; the window's side lobes lie 92 dB below its peaks, and sink quickly."""
    windowed = np.asarray(signal, np.float64) * np.blackman(len(signal)) ** 2
    return np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE), np.abs(np.fft.rfft(windowed))


def decibels(ratio: float) -> float:
    return 20.0 * np.log10(ratio)


def rms(signal: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(signal, dtype=np.float64))))


def centroid(signal: NDArray[np.floating]) -> float:
    hertz, magnitude = spectrum(signal)
    return float(np.sum(hertz * magnitude) / np.sum(magnitude))


def seconds(duration: float) -> int:
    return round(duration * SAMPLE_RATE)
