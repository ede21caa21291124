"""Reads any sound file as four seconds of 44.1 kHz stereo, and makes WAV files."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SECONDS
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why_unreadable

# -100 dBFS, less than 16 bits can hold.
SILENCE_PEAK = 1e-5
# The largest sample of a file of 32-bit integers.
MAX_PEAK = 2.0**31
RATES = (1_000, 768_000)
# The resampler's filter needs samples after the last one that is kept.
LOOK_AHEAD_SECONDS = 0.1
BLOCK_FRAMES = 1 << 16
# Of a WAV file without length, so much is read: four seconds at high rates of many channels.
BEGINNING_BYTES = 64 << 20
# libsndfile's number of frames, or more, where the header gives none.
UNKNOWN_FRAMES = 1 << 62
# Bits of a NaN that no decoder writes. It marks frames that have not been read.
UNREAD = 0x7FC5A1D5


@dataclass(frozen=True)
class LoadedSound:
    """Audio (2, samples) float32, and a note for every change that was made to the file's sound."""

    audio: NDArray[np.float32]
    notes: tuple[str, ...]


def wav(audio: NDArray[np.floating]) -> bytes:
    """A WAV file of audio (C, T) at 44.1 kHz, in floats: no sample is rounded or clipped."""
    file = io.BytesIO()
    soundfile.write(file, audio.T, SAMPLE_RATE, subtype="FLOAT", format="WAV")
    return file.getvalue()


def load_sound(path: str | Path, seconds: float = SECONDS, sample_rate: int = SAMPLE_RATE) -> LoadedSound:
    """Reads the first ``seconds`` of a sound file of any format, rate, length and channel count that libsndfile reads.

    The sound is resampled, mono is copied to both channels, further channels are dropped, and a shorter sound is padded
    with silence. ``notes`` lists these changes. Only the needed part of the file is read. A damaged file is read up to
    the damage: lengths are those of the samples that were read, and a header that says otherwise is noted.
    Raises UserError for a file that is missing, no sound, silent, cannot be read at all, or holds samples that are not
    finite.
    """
    path = Path(path)
    samples, rate, read_seconds, notes = _read_beginning(path, seconds, sample_rate)
    if samples.shape[1] == 1:
        samples = np.repeat(samples, CHANNELS, axis=1)
        notes.append("mono: the one channel is used on both sides")
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
        notes.append(f"resampled {rate} Hz to {sample_rate} Hz")
    wanted = round(seconds * sample_rate)
    if len(samples) < wanted:
        notes.append(f"padded {read_seconds:.2f} s with silence to {seconds:g} s")
    audio = np.zeros((CHANNELS, wanted), np.float32)
    audio[:, : len(samples)] = samples[:wanted].T
    peak = np.abs(audio).max()
    if peak < SILENCE_PEAK:
        raise UserError(f"{path}: is silent" + (f" for {seconds:g} s" if read_seconds > seconds else ""))
    if peak > MAX_PEAK:
        raise UserError(f"{path}: holds samples as large as {peak:.3g}, which is no sound")
    return LoadedSound(audio, tuple(notes))


def _read_beginning(path: Path, seconds: float, sample_rate: int) -> tuple[NDArray[np.float32], int, float, list[str]]:
    """Samples (frames, 1 or 2) at the file's own rate, that rate, the seconds that could be read, and notes."""
    try:
        if not path.exists():
            raise UserError(f"{path}: does not exist")
        if not path.is_file():
            raise UserError(f"{path}: is not a file")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty")
        with _open(path) as file:
            header_frames, rate, channels = file.frames, file.samplerate, file.channels
            if not RATES[0] <= rate <= RATES[1]:
                raise UserError(f"{path}: its rate of {rate} Hz is not between {RATES[0]} and {RATES[1]} Hz")
            look_ahead = 0.0 if rate == sample_rate else LOOK_AHEAD_SECONDS
            needed = math.ceil((seconds + look_ahead) * rate)
            samples = _read(file, needed + 1)  # One more shows that the sound goes on.
        if not header_frames and (data := _without_length(path)) is not None:
            with soundfile.SoundFile(data) as file:
                samples = _read(file, needed + 1)
        read, expected = len(samples), min(header_frames, needed + 1)
        if read < expected:
            _read_raw(path)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{path}: {why_unreadable(error)}") from error
    if not read:
        raise UserError(f"{path}: {'is damaged: none of its samples can be read' if expected else 'holds no samples'}")
    if not np.isfinite(samples[:needed]).all():
        raise UserError(f"{path}: holds samples that are not finite")
    notes = [f"used the first two of {channels} channels"] if channels > CHANNELS else []
    says = "gives no length" if header_frames >= UNKNOWN_FRAMES else f"says {header_frames / rate:.2f} s"
    if read > seconds * rate:
        notes.append(f"used the first {seconds:g} s; its header {says}")
    elif read != expected:
        notes.append(f"its header {says}; {read / rate:.2f} s could be read")
    return samples[:needed], rate, read / rate, notes


def _open(path: Path) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(os.fsencode(path))  # As text, names that are not UTF-8 would be refused.
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        _read_raw(path)
        # soundfile raises TypeError for formats without a header.
        reason = getattr(error, "error_string", error)
        raise UserError(f"{path}: is damaged, or no sound file that libsndfile reads ({reason})") from error


def _read(file: soundfile.SoundFile, frames: int) -> NDArray[np.float32]:
    """The next ``frames`` frames (frames, 1 or 2); fewer if the file ends before, or is damaged from there on."""
    kept = []
    while frames > 0:
        # In blocks: a file may have hundreds of channels, of which two are kept.
        block = np.empty((min(BLOCK_FRAMES, frames), file.channels), np.float32)
        block.view(np.uint32).fill(UNREAD)
        try:
            count = len(file.read(len(block), out=block))
        except soundfile.SoundFileError:  # It does not say how many frames it has written before the damage.
            count = int(np.argmax(np.append((block.view(np.uint32) == UNREAD).all(axis=1), True)))
        kept.append(block[:count, :CHANNELS].copy())
        frames -= count
        if count < len(block):
            break
    return np.concatenate(kept)


def _read_raw(path: Path) -> None:
    """Reads a file's bytes, so that an error of the system is raised: libsndfile does not tell it from damage."""
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def _without_length(path: Path) -> io.BytesIO | None:
    """The beginning of a WAV file, changed to say that its data go on to its end; None unless it says they are empty.

    Recorders write the length last. One that is killed, or writes to a pipe, leaves 0.
    """
    with path.open("rb") as file:
        data = bytearray(file.read(BEGINNING_BYTES))
    place = 12 if data[:4] == b"RIFF" and data[8:12] == b"WAVE" else len(data)
    while place + 8 < len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] == b"data" and size == 0:
            data[place + 4 : place + 8] = b"\xff" * 4
            return io.BytesIO(data)
        place += 8 + size + size % 2
    return None
