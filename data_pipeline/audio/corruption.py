"""Corruption of training sounds as recordings are corrupted, for models that are to answer recordings.

The kinds are applied in the order in which they happen to a recording: the instrument is slightly out of tune, the
sound is cut, reverberation and noise are added, an equaliser and a codec change the spectrum. The level stays, because
the spectrograms that models get are relative to their maximum. Reverberation, equaliser and codec are those of
pedalboard (GPL-3, optional).

Shapes: T samples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.console.cli import UserError

Audio = NDArray[np.float32]

# The largest deviation of pitch, in cents. All times are stretched by as much, at most 2.3 %.
DETUNE_CENTS = 40.0
# The shortest sound that a cut leaves after the onset, and the length of its fade, in seconds. A sound begins where it
# exceeds this part of its peak.
CUT_FROM, FADES, AUDIBLE = 0.25, (0.005, 0.1), 0.01
# The share of the room in the sound.
WETTEST = 0.4
# Decibels between the level of the sound's loudest 50 ms and that of the noise. From LOWEST_HZ on, the noise's power
# falls with frequency to a power of 0 (white) to 2 (brown); below there is none.
NOISE_DB, COLOURS, LOWEST_HZ = (15.0, 60.0), (0.0, 2.0), 20.0
# The gains of an equaliser's three bands, and between which frequencies each lies.
GAIN_DB = 9.0
BANDS_HZ = ((60.0, 400.0), (400.0, 3000.0), (3000.0, 12000.0))
# LAME's variable rates, from 165 kbit/s to 65 kbit/s.
CODEC_QUALITY = (4.0, 9.0)


@dataclass(frozen=True)
class Corruption:
    """The probability of each kind, from 0 (never) to 1 (always). The strength of each is drawn too."""

    detune: float = 0.0
    cut: float = 0.0
    room: float = 0.0
    noise: float = 0.0
    equaliser: float = 0.0
    codec: float = 0.0

    def require_installed(self) -> None:
        """Raises UserError where pedalboard is needed and not installed."""
        if self.room or self.equaliser or self.codec:
            _pedalboard()

    def __call__(self, audio: Audio, rng: np.random.Generator) -> Audio:
        """A corrupted copy of a sound (2, T) at 44.1 kHz. What it does depends on ``rng`` alone."""
        for kind in fields(self):
            # A generator of its own: whether one kind is on does not change what the others draw.
            [own] = rng.spawn(1)
            if own.random() < getattr(self, kind.name):
                audio = KINDS[kind.name](audio, own)
        return audio


NONE = Corruption()


def _detune(audio: Audio, rng: np.random.Generator) -> Audio:
    ratio = 2.0 ** (rng.uniform(-DETUNE_CENTS, DETUNE_CENTS) / 1200.0)
    samples = audio.shape[1]
    moved = soxr.resample(audio.T, SAMPLE_RATE * ratio, SAMPLE_RATE).T[:, :samples]
    return np.pad(moved, ((0, 0), (0, samples - moved.shape[1])))


def _cut(audio: Audio, rng: np.random.Generator) -> Audio:
    levels = np.abs(audio).max(axis=0)
    onset = float((levels > AUDIBLE * levels.max()).argmax()) / SAMPLE_RATE
    end = rng.uniform(onset + CUT_FROM, max(onset + CUT_FROM, audio.shape[1] / SAMPLE_RATE))
    times = np.arange(audio.shape[1]) / SAMPLE_RATE
    return audio * np.clip((end - times) / rng.uniform(*FADES), 0.0, 1.0).astype(np.float32)


def _room(audio: Audio, rng: np.random.Generator) -> Audio:
    size, damping, wet = (float(rng.uniform(0.0, most)) for most in (1.0, 1.0, WETTEST))
    return _pedalboard().Reverb(size, damping, wet_level=wet, dry_level=1.0 - wet)(audio, SAMPLE_RATE)


def _noise(audio: Audio, rng: np.random.Generator) -> Audio:
    block = SAMPLE_RATE // 20
    whole = audio[:, : audio.shape[1] // block * block].reshape(-1, block)
    loudest = np.sqrt(np.square(whole, dtype=np.float64).mean(axis=1).max())
    spectrum = np.fft.rfft(rng.standard_normal(audio.shape))
    hz = np.fft.rfftfreq(audio.shape[1], 1.0 / SAMPLE_RATE)
    spectrum *= np.where(hz < LOWEST_HZ, 0.0, np.maximum(hz, LOWEST_HZ) ** (-rng.uniform(*COLOURS) / 2))
    noise = np.fft.irfft(spectrum, audio.shape[1])
    level = loudest * 10.0 ** (-rng.uniform(*NOISE_DB) / 20.0)
    return audio + (noise * level / np.sqrt(np.square(noise).mean())).astype(np.float32)


def _equaliser(audio: Audio, rng: np.random.Generator) -> Audio:
    board = _pedalboard()
    for band, hz in zip((board.LowShelfFilter, board.PeakFilter, board.HighShelfFilter), BANDS_HZ, strict=True):
        audio = band(float(np.exp(rng.uniform(*np.log(hz)))), rng.uniform(-GAIN_DB, GAIN_DB))(audio, SAMPLE_RATE)
    return audio


def _codec(audio: Audio, rng: np.random.Generator) -> Audio:
    return _pedalboard().MP3Compressor(rng.uniform(*CODEC_QUALITY))(audio, SAMPLE_RATE)


KINDS = {
    "detune": _detune, "cut": _cut, "room": _room, "noise": _noise, "equaliser": _equaliser, "codec": _codec,
}  # fmt: skip


def _pedalboard() -> Any:
    try:
        import pedalboard
    except ImportError as error:
        raise UserError(
            "corruption by rooms, equalisers and codecs needs pedalboard (GPL-3): pip install 'synthjax[render]'"
        ) from error
    return pedalboard
