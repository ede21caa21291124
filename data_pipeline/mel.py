"""The one definition of the mel spectrogram that the models see.

44.1 kHz, windows of 25 ms (1102 samples, periodic Hamming) every 10 ms (441 samples), centred on the frame with
zeros beyond the sound, power, 128 Slaney mel bands from 0 Hz to half the sample rate, then decibels below the
sound's maximum over both channels with a floor at -80 dB. These are the numbers of librosa's ``melspectrogram``
followed by ``power_to_db(ref=np.max)``.

Shapes: C channels, T samples, F = 1 + T // 441 frames.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import scipy.fft
import scipy.sparse
from numpy.typing import NDArray

SAMPLE_RATE = 44100
N_FFT = 1102
HOP_LENGTH = 441
N_MELS = 128
DYNAMIC_RANGE_DB = 80.0
# Power is floored here, so that silence has a logarithm.
MIN_POWER = 1e-10
# Keeps a block's spectra in a core's cache, which halves the time of a whole sound at once.
FRAMES_AT_ONCE = 64


def mel_spectrogram(audio: NDArray[np.floating], sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Decibel mel spectrogram (C, 128, F) of audio (C, T) with samples in [-1, 1].

    Values lie in [-80, 0], 0 being the loudest band of the sound over all channels; silence is 0 dB throughout.
    Raises ValueError for audio that is not two-dimensional.
    """
    if audio.ndim != 2:
        raise ValueError(f"audio must be (channels, samples), not {audio.shape}")
    filters = _mel_filters(sample_rate)
    return _relative_decibels(np.stack([filters @ _power_spectrum(channel) for channel in audio]))


def _power_spectrum(signal: NDArray[np.floating]) -> NDArray[np.float64]:
    """Power (N_FFT // 2 + 1, F) of one channel (T,).

    In float64: single precision errs by several thousandths of a decibel in bands 80 dB below the maximum.
    """
    padded = np.pad(np.asarray(signal, np.float64), N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH]
    power = np.empty((N_FFT // 2 + 1, len(frames)))
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        windowed = frames[start : start + FRAMES_AT_ONCE] * _window()
        spectrum: NDArray[np.complex128] = np.asarray(scipy.fft.rfft(windowed, axis=-1, overwrite_x=True))
        power[:, start : start + FRAMES_AT_ONCE] = (spectrum.real**2 + spectrum.imag**2).T
    return power


def _relative_decibels(power: NDArray[np.float64]) -> NDArray[np.float32]:
    decibels = 10.0 * np.log10(np.maximum(power, MIN_POWER))
    return np.maximum(decibels - decibels.max(), -DYNAMIC_RANGE_DB).astype(np.float32)


@cache
def _window() -> NDArray[np.float64]:
    """Periodic Hamming window (N_FFT,)."""
    return 0.54 - 0.46 * np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT)


@cache
def _mel_filters(sample_rate: int) -> scipy.sparse.csr_array:
    """Slaney's triangular bands (N_MELS, N_FFT // 2 + 1), each of area one in hertz.

    Sparse, since each bin feeds at most two bands: the dense product costs ten times as much.
    """
    bins = np.arange(N_FFT // 2 + 1) * sample_rate / N_FFT
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate / 2.0), N_MELS + 2))
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return scipy.sparse.csr_array(triangles * 2.0 / (edges[2:] - edges[:-2])[:, None])


# Slaney's mel scale: linear up to 1 kHz (15 mels), then 27 mels for each factor of 6.4.
_LINEAR_HZ = 200.0 / 3.0
_LOG_START_HZ = 1000.0
_LOG_START_MEL = _LOG_START_HZ / _LINEAR_HZ
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _LOG_START_HZ:
        return hz / _LINEAR_HZ
    return _LOG_START_MEL + float(np.log(hz / _LOG_START_HZ)) / _LOG_STEP


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithmic = _LOG_START_HZ * np.exp(_LOG_STEP * (mel - _LOG_START_MEL))
    return np.where(mel < _LOG_START_MEL, mel * _LINEAR_HZ, logarithmic)
