"""The sound contract: the shape of every sound, its spectrogram and its note. No other module repeats these numbers."""

from __future__ import annotations

SAMPLE_RATE = 44100
CHANNELS = 2
SECONDS = 4.0
SAMPLES = round(SECONDS * SAMPLE_RATE)
# MIDI velocity of every note.
VELOCITY = 100
# LUFS. By default a quieter sound is no row of a data set.
MIN_LOUDNESS = -55.0
# A sound with a larger sample is clipped: by default it is no row either. 1.0 is full scale.
MAX_PEAK = 1.0
# Samples between two frames of the spectrogram.
MEL_HOP = 441
MEL_BANDS = 128
MEL_FRAMES = 1 + SAMPLES // MEL_HOP

AUDIO_SHAPE = (CHANNELS, SAMPLES)
MEL_SHAPE = (CHANNELS, MEL_BANDS, MEL_FRAMES)
