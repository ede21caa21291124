"""Any sound file to the four seconds of 44.1 kHz stereo that the models hear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data_pipeline.cli import UserError
from data_pipeline.mel import SAMPLE_RATE

CHANNELS = 2
DURATION_SECONDS = 4.0
# -100 dBFS: below what 16 bits can hold, nothing is left to recognise a patch by.
SILENCE_PEAK = 1e-5
# Float files may hold any number; beyond 32-bit integers read as floats there is no sound.
MAX_PEAK = 2.0**31
RATES = (1_000, 768_000)
# The resampler's filter looks ahead; this much more keeps the last kept samples exact.
LOOK_AHEAD_SECONDS = 0.1
BLOCK_FRAMES = 1 << 16


@dataclass(frozen=True)
class LoadedSound:
    """Audio (2, samples) float32 and, in plain words, what was done to the file to get it."""

    audio: NDArray[np.float32]
    notes: tuple[str, ...]


def load_sound(path: str | Path, seconds: float = DURATION_SECONDS, sample_rate: int = SAMPLE_RATE) -> LoadedSound:
    """Reads the beginning of a sound file of any format, rate, length and channel count that libsndfile reads.

    The sound is resampled, mono is put on both channels, further channels are dropped, and the result is cut or
    padded with silence to ``seconds``; ``notes`` says which. No more of the file is read than that needs.
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
    """Samples (frames, 1 or 2) at the file's own rate, that rate, the whole file's seconds, and notes."""
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
                raise UserError(f"{path}: its rate of {rate} Hz is not one of sound")
            needed = seconds if rate == sample_rate else seconds + LOOK_AHEAD_SECONDS
            # In blocks, since a file may have hundreds of channels of which two are kept.
            blocks = file.blocks(BLOCK_FRAMES, frames=math.ceil(needed * rate), dtype="float32", always_2d=True)
            kept = [block[:, :CHANNELS].copy() for block in blocks]
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        # TypeError is soundfile's answer to headerless formats, which need a rate to be given.
        raise UserError(f"{path}: is damaged, or no sound file that libsndfile reads ({error})") from error
    if not kept:
        raise UserError(f"{path}: holds no samples")
    samples = np.concatenate(kept).astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are not finite")
    notes = [f"used the first two of {channels} channels"] if channels > CHANNELS else []
    return samples, rate, frames / rate, notes
