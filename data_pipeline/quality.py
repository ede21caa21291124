"""Which renders a data set refuses: silence, clipping and numbers that are none."""

from __future__ import annotations

import functools
import math

import numpy as np
import pyloudnorm
from numpy.typing import NDArray

from data_pipeline.synths.protocol import CHANNELS, SAMPLE_RATE, SAMPLES

NON_FINITE = "non_finite"
CLIPPED = "clipped"
QUIET = "quiet"

# Loudness (ITU-R BS.1770) is the power of blocks of 0.4 s, after a weighting that amplifies no frequency by more.
_BLOCK_SAMPLES = round(0.4 * SAMPLE_RATE)
_MAX_WEIGHTING_DB = 4.0
_INAUDIBLE = 1e-10
_MAX_STORED = float(np.finfo(np.float16).max)


def fault(audio: NDArray[np.floating], min_loudness: float, max_peak: float) -> str | None:
    """Why a render (2, 176400) is refused, or None where it is fit to be a row.

    ``NON_FINITE``: a NaN, or what float16 holds as infinity. ``CLIPPED``: a sample beyond ``max_peak`` (full scale is
    1.0). ``QUIET``: silence, or integrated loudness under ``min_loudness`` LUFS. Raises ValueError for any other shape.
    """
    if audio.shape != (CHANNELS, SAMPLES):
        raise ValueError(f"the synthesizer returned audio of shape {audio.shape}, not {(CHANNELS, SAMPLES)}")
    peak = float(np.abs(audio).max())  # NaN where any sample is.
    if not peak <= _MAX_STORED:
        return NON_FINITE
    if peak > max_peak:
        return CLIPPED
    # Half of all random patches are next to silent: their energy mostly tells that without filtering them.
    if peak == 0.0 or _loudness_limit(audio) < min_loudness or loudness(audio) < min_loudness:
        return QUIET
    return None


def loudness(audio: NDArray[np.floating], sample_rate: int = SAMPLE_RATE) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) of audio (C, T) of at least 0.4 s; -inf for silence."""
    # After a sound's end the filters would spend ten times as long on denormal numbers; the offset prevents that.
    offset = audio.T.astype(np.float64) + _INAUDIBLE
    return float(_meter(sample_rate).integrated_loudness(offset))


def _loudness_limit(audio: NDArray[np.floating]) -> float:
    """A loudness in LUFS that is not exceeded: that of all the sound's energy within one block, fully amplified.

    BS.1770 subtracts another 0.691 dB: more than float32 can err in the sum.
    """
    energy = float(np.vdot(audio, audio))  # Zero where every square is too small for its type.
    return 10 * math.log10(energy / _BLOCK_SAMPLES) + _MAX_WEIGHTING_DB if energy else -math.inf


@functools.cache
def _meter(sample_rate: int) -> pyloudnorm.Meter:
    return pyloudnorm.Meter(sample_rate)
