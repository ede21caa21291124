"""Reads any sound file as four seconds of 44.1 kHz stereo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SECONDS
from data_pipeline.console.cli import UserError

# -100 dBFS, less than 16 bits can hold.
SILENCE_PEAK = 1e-5
# The largest sample of a file of 32-bit integers.
MAX_PEAK = 2.0**31
RATES = (1_000, 768_000)
# The resampler's filter needs samples after the last one that is kept.
LOOK_AHEAD_SECONDS = 0.1
BLOCK_FRAMES = 1 << 16


@dataclass(frozen=True)
class LoadedSound:
    """Audio (2, samples) float32, and a note for every change that was made to the file's sound."""

    audio: NDArray[np.float32]
    notes: tuple[str, ...]


def load_sound(path: str | Path, seconds: float = SECONDS, sample_rate: int = SAMPLE_RATE) -> LoadedSound:
    """Reads the first ``seconds`` of a sound file of any format, rate, length and channel count that libsndfile reads.

    The sound is resampled, mono is copied to both channels, further channels are dropped, and a shorter sound is padded
    with silence. ``notes`` lists these changes. Only the needed part of the file is read.
    Raises UserError for a file that is missing, no sound, damaged, silent, or holds samples that are not finite.
    """
    path = Path(path)
    samples, rate, file_seconds, notes = _read_beginning(path, seconds, sample_rate)
    if samples.shape[1] == 1:
        samples = np.repeat(samples, CHANNELS, axis=1)
        notes.append("mono: the one channel is used on both sides")
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
        notes.append(f"resampled {rate} Hz to {sample_rate} Hz")
    wanted = round(seconds * sample_rate)
    if file_seconds > seconds:
        notes.append(f"used the first {seconds:g} s of {file_seconds:.2f} s")
    elif len(samples) < wanted:
        notes.append(f"padded {file_seconds:.2f} s with silence to {seconds:g} s")
    audio = np.zeros((CHANNELS, wanted), np.float32)
    audio[:, : len(samples)] = samples[:wanted].T
    peak = np.abs(audio).max()
    if peak < SILENCE_PEAK:
        raise UserError(f"{path}: is silent" + (f" for {seconds:g} s" if file_seconds > seconds else ""))
    if peak > MAX_PEAK:
        raise UserError(f"{path}: holds samples as large as {peak:.3g}, which is no sound")
    return LoadedSound(audio, tuple(notes))


def _read_beginning(path: Path, seconds: float, sample_rate: int) -> tuple[NDArray[np.float32], int, float, list[str]]:
    """Samples (frames, 1 or 2) at the file's own rate, that rate, the length of the file in seconds, and notes."""
    if not path.exists():
        raise UserError(f"{path}: does not exist")
    if not path.is_file():
        raise UserError(f"{path}: is not a file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty")
    try:
        with soundfile.SoundFile(path) as file:
            rate, channels, frames = file.samplerate, file.channels, file.frames
            if not RATES[0] <= rate <= RATES[1]:
                raise UserError(f"{path}: its rate of {rate} Hz is not between {RATES[0]} and {RATES[1]} Hz")
            needed = seconds if rate == sample_rate else seconds + LOOK_AHEAD_SECONDS
            # In blocks: a file may have hundreds of channels, of which two are kept.
            blocks = file.blocks(BLOCK_FRAMES, frames=math.ceil(needed * rate), dtype="float32", always_2d=True)
            kept = [block[:, :CHANNELS].copy() for block in blocks]
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        # soundfile raises TypeError for formats without a header.
        raise UserError(f"{path}: is damaged, or no sound file that libsndfile reads ({error})") from error
    if not kept:
        raise UserError(f"{path}: holds no samples")
    samples = np.concatenate(kept).astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are not finite")
    notes = [f"used the first two of {channels} channels"] if channels > CHANNELS else []
    return samples, rate, frames / rate, notes
