"""The mel spectrogram that the models take as input.

Windows of 25 ms (1102 samples, periodic Hamming) every 10 ms (441 samples), each centred on its frame, with zeros
beyond the sound. Power in 128 Slaney mel bands from 0 Hz to half the sample rate, in decibels relative to the sound's
maximum over both channels, not less than -80 dB. librosa's ``melspectrogram`` followed by ``power_to_db(ref=np.max)``
gives the same numbers.

Shapes: C channels, T samples, M mel bands, F = 1 + T // 441 frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import MEL_BANDS, MEL_HOP, SAMPLE_RATE
from data_pipeline.audio.spectrogram import MelAnalysis, relative_decibels

SCALE = MelAnalysis(n_fft=1102, hop_length=MEL_HOP, n_mels=MEL_BANDS, window_mean=0.54, sample_rate=SAMPLE_RATE)


def mel_spectrogram(audio: NDArray[np.floating]) -> NDArray[np.float32]:
    """Mel spectrogram (C, M, F) in dB of audio (C, T) with samples in [-1, 1].

    Values lie in [-80, 0]. 0 is the sound's loudest band over all channels; silence is 0 everywhere.
    Raises ValueError for audio that is not two-dimensional.
    """
    if audio.ndim != 2:
        raise ValueError(f"audio must be (channels, samples), not {audio.shape}")
    return relative_decibels(SCALE.power(audio.astype(np.float64))).astype(np.float32)
