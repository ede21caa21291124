"""The one definition of the mel spectrogram that the models see.

44.1 kHz, windows of 25 ms (1102 samples, periodic Hamming) every 10 ms (441 samples), centred on the frame with
zeros beyond the sound, power, 128 Slaney mel bands from 0 Hz to half the sample rate, then decibels below the
sound's maximum over both channels with a floor at -80 dB. These are the numbers of librosa's ``melspectrogram``
followed by ``power_to_db(ref=np.max)``.

Shapes: C channels, T samples, F = 1 + T // 441 frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.spectrogram import MelScale, relative_decibels

SAMPLE_RATE = 44100
DYNAMIC_RANGE_DB = 80.0
SCALE = MelScale(n_fft=1102, hop_length=441, n_mels=128, window_mean=0.54, sample_rate=SAMPLE_RATE)


def mel_spectrogram(audio: NDArray[np.floating]) -> NDArray[np.float32]:
    """Decibel mel spectrogram (C, 128, F) of audio (C, T) with samples in [-1, 1].

    Values lie in [-80, 0], 0 being the loudest band of the sound over all channels; silence is 0 dB throughout.
    Raises ValueError for audio that is not two-dimensional.
    """
    if audio.ndim != 2:
        raise ValueError(f"audio must be (channels, samples), not {audio.shape}")
    power = np.stack([SCALE.power(channel) for channel in audio])
    return relative_decibels(power, DYNAMIC_RANGE_DB).astype(np.float32)
