"""Loudness, and the faults for which a data set refuses a render: not finite, clipped, quiet."""

from __future__ import annotations

import functools
import math

import numpy as np
import pyloudnorm
from numpy.typing import NDArray

from data_pipeline.audio.contract import AUDIO_SHAPE, SAMPLE_RATE
from data_pipeline.audio.spectrogram import is_mono

NON_FINITE = "non_finite"
CLIPPED = "clipped"
QUIET = "quiet"

# ITU-R BS.1770: loudness is the power of blocks of 0.4 s after a weighting filter, whose gain is at most 4 dB.
_BLOCK_SAMPLES = round(0.4 * SAMPLE_RATE)
_MAX_WEIGHTING_DB = 4.0
_INAUDIBLE = 1e-10
_MAX_STORED = float(np.finfo(np.float16).max)


def fault(audio: NDArray[np.floating], min_loudness: float, max_peak: float) -> str | None:
    """The reason to refuse a render of ``AUDIO_SHAPE``; None if it may be a row.

    ``NON_FINITE``: a NaN, or a sample that float16 stores as infinity. ``CLIPPED``: a sample beyond ``max_peak`` (full
    scale is 1.0). ``QUIET``: silence, or integrated loudness under ``min_loudness`` LUFS. Raises ValueError for any
    other shape.
    """
    if audio.shape != AUDIO_SHAPE:
        raise ValueError(f"the synthesizer returned audio of shape {audio.shape}, not {AUDIO_SHAPE}")
    peak = float(np.abs(audio).max())  # NaN if any sample is NaN.
    if not peak <= _MAX_STORED:
        return NON_FINITE
    if peak > max_peak:
        return CLIPPED
    # Half of all random patches are almost silent. The energy alone proves most of them quiet, without filters.
    if peak == 0.0 or _loudness_limit(audio) < min_loudness or loudness(audio) < min_loudness:
        return QUIET
    return None


def loudness(audio: NDArray[np.floating], sample_rate: int = SAMPLE_RATE) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) of audio (C, T) of at least 0.4 s; -inf for silence."""
    if is_mono(audio):  # Loudness is that of the channels' summed powers: of one channel with that power.
        audio = audio[:1] * math.sqrt(len(audio))
    # Without the offset the filters take ten times as long, on denormal numbers after the sound's end.
    return float(_meter(sample_rate).integrated_loudness(audio.T.astype(np.float64) + _INAUDIBLE))


def _loudness_limit(audio: NDArray[np.floating]) -> float:
    """An upper bound of the loudness in LUFS: all energy in one block, amplified by the largest gain.

    BS.1770 subtracts another 0.691 dB, which is more than the float32 sum can err.
    """
    energy = float(np.vdot(audio, audio))  # 0 if every square underflows.
    return 10 * math.log10(energy / _BLOCK_SAMPLES) + _MAX_WEIGHTING_DB if energy else -math.inf


@functools.cache
def _meter(sample_rate: int) -> pyloudnorm.Meter:
    return pyloudnorm.Meter(sample_rate)
