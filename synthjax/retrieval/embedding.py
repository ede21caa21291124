"""Embeddings of sounds: a few small numbers for each, which lie near each other where sounds are alike.

A spectrogram in dB begins at the sound's onset, is averaged over channels, and is pooled to mel bands and pieces of
time. The embedding is its first principal components, in steps of one int8.

Shapes: C channels, M mels, F frames, N sounds, E pooled numbers, D components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8, UInt8

from data_pipeline.audio.contract import MEL_HOP, MEL_SHAPE, SAMPLE_RATE
from data_pipeline.audio.spectrogram import DYNAMIC_RANGE_DB

_, MELS, FRAMES = MEL_SHAPE
FRAME_SECONDS = MEL_HOP / SAMPLE_RATE
# Pooled bands and pieces of time, and the number of components.
BANDS, PIECES = 32, 40
POOLED = BANDS * PIECES
COMPONENTS = 64
# A sound begins with the first frame that is less than so many decibels below the loudest.
ONSET_DB = 40.0
# The longest time from a note to its sound's onset that is kept, in frames.
LONGEST_DELAY = 255
# Steps of a pooled number, from 0 dB to -80 dB.
STEPS = 255
# The components are those of the first rows of an index.
FIT_ROWS = 4096


def onset(mel: Float[np.ndarray, "C M F"]) -> int:
    """The first frame of a spectrogram in dB whose loudest band is less than ``ONSET_DB`` below the maximum."""
    return int((mel.max(axis=(0, 1)) > mel.max() - ONSET_DB).argmax())


def delay(mel: Float[np.ndarray, "C M F"], note_start: float) -> int:
    """The frames from a note's start in seconds to the onset of its sound, 0 to ``LONGEST_DELAY``."""
    return min(max(0, onset(mel) - round(note_start / FRAME_SECONDS)), LONGEST_DELAY)


def pooled(mel: Float[np.ndarray, "C M F"]) -> UInt8[np.ndarray, " E"]:
    """Means of a spectrogram in dB over channels, bands and pieces of time, band by band, in steps of 80 / 255 dB.

    The first piece begins at the onset: the same sound at another time has the same means, but for its end.
    """
    begin = onset(mel)
    frames = np.full(mel.shape[1:], -DYNAMIC_RANGE_DB, np.float32)
    frames[:, : FRAMES - begin] = mel.astype(np.float32).mean(axis=0)[:, begin:]
    bands = frames.reshape(BANDS, MELS // BANDS, FRAMES).mean(axis=1)
    edges = np.linspace(0, FRAMES, PIECES + 1).astype(int)
    means = np.add.reduceat(bands, edges[:-1], axis=1) / np.diff(edges)
    return np.rint(-means * (STEPS / DYNAMIC_RANGE_DB)).clip(0, STEPS).astype(np.uint8).reshape(-1)


@dataclass(frozen=True, eq=False)
class Embedding:
    """The principal components of pooled spectrograms.

    Attributes:
      mean: the mean (E,) of pooled spectrograms.
      basis: the components (E, D), divided by the step of a code.
    """

    mean: Float[np.ndarray, " E"]
    basis: Float[np.ndarray, "E D"]

    @classmethod
    def fit(cls, sounds: UInt8[np.ndarray, "N E"]) -> Embedding:
        """The components of largest variance of N pooled spectrograms."""
        mean = sounds.mean(axis=0, dtype=np.float64)
        centred = sounds - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)
        basis = vectors[:, ::-1][:, :COMPONENTS]
        basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])
        step = max(np.abs(centred @ basis).max() / 127.0, 1e-9)
        return cls(mean.astype(np.float32), (basis / step).astype(np.float32))

    def codes(self, sounds: UInt8[np.ndarray, "N E"]) -> Int8[np.ndarray, "N D"]:
        """The embeddings of N pooled spectrograms."""
        return np.rint(self.project(sounds)).clip(-127, 127).astype(np.int8)

    def project(self, sounds: UInt8[np.ndarray, "N E"]) -> Float[np.ndarray, "N D"]:
        """The embeddings before rounding."""
        return (sounds.astype(np.float32) - self.mean) @ self.basis
