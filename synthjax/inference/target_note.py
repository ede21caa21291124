"""The note of a sound from outside: an estimate of its pitch, its beginning and its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE, SECONDS
from data_pipeline.params.kinds import Discrete
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH

# A note begins and ends where the level is this many decibels below the loudest frame.
ONSET_DB = 30.0
FRAME, HOP = 4096, 512
LOWEST_HZ, HIGHEST_HZ = 27.5, 4186.0
# A sound without pitch, such as a snare drum, gets this one.
DEFAULT_PITCH = 60


@dataclass(frozen=True)
class TargetNote:
    """MIDI note number, and beginning and end in seconds."""

    pitch: int
    start: float
    end: float


def estimate_note(audio: NDArray[np.floating]) -> TargetNote:
    """An estimate of the note of a sound (2, T) at 44.1 kHz.

    The pitch is the median over the sounding frames of YIN (de Cheveigne and Kawahara, "YIN, a fundamental frequency
    estimator for speech and music", 2002), as librosa computes it.
    """
    import librosa  # Takes seconds.

    mono = audio.mean(axis=0).astype(np.float32)
    level = librosa.feature.rms(y=mono, frame_length=2048, hop_length=HOP)[0]
    [loud] = np.nonzero(level > level.max() * 10.0 ** (-ONSET_DB / 20.0))
    if not len(loud):
        return TargetNote(DEFAULT_PITCH, 0.0, SECONDS)
    start, end = (float(frame) * HOP / SAMPLE_RATE for frame in (loud[0], loud[-1] + 1))
    frequencies = librosa.yin(mono, fmin=LOWEST_HZ, fmax=HIGHEST_HZ, sr=SAMPLE_RATE, frame_length=FRAME, hop_length=HOP)
    heard = frequencies[loud[loud < len(frequencies)]]
    inside = heard[(heard > 1.01 * LOWEST_HZ) & (heard < 0.99 * HIGHEST_HZ)]  # YIN clips at the ends.
    pitch = round(float(librosa.hz_to_midi(np.median(inside)))) if len(inside) > len(heard) / 2 else DEFAULT_PITCH
    return TargetNote(pitch, start, min(end, SECONDS))


def pitch_range(spec: ParamSpec) -> tuple[int, int]:
    """The lowest and the highest MIDI note number of a spec."""
    [parameter] = [one for one in spec.note_params if one.name == PITCH and isinstance(one, Discrete)]
    return int(parameter.min), int(parameter.max)


def in_range(pitch: int, spec: ParamSpec) -> int:
    """The pitch, moved by octaves into the range of the spec."""
    low, high = pitch_range(spec)
    pitch += 12 * (max(0, low - pitch + 11) // 12)
    pitch -= 12 * (max(0, pitch - high + 11) // 12)
    return max(low, pitch)


def octave_remark(note: TargetNote, spec: ParamSpec) -> str | None:
    """A line that says that a sound lies outside the spec's range of pitch; None where it lies within."""
    played, (low, high) = in_range(note.pitch, spec), pitch_range(spec)
    if played == note.pitch:
        return None
    return (
        f"its pitch is about MIDI {note.pitch}, outside {low} to {high} of spec {spec.name}: presets are played at "
        f"{played}, the nearest octave"
    )


def moved(row: NDArray[np.floating], spec: ParamSpec, start: float) -> NDArray[np.floating]:
    """A row (W,) whose note begins at ``start`` in seconds. It is held as long as before, or to the sound's end."""
    times, columns = spec.note_times, spec.slices[spec.note_times.name]
    begin, end = times.decode(row[columns])
    changed = row.copy()
    changed[columns] = times.encode((start, min(SECONDS, start + end - begin)))
    return changed


def note_values(note: TargetNote, spec: ParamSpec) -> dict[str, Any]:
    """A note as raw values by parameter name, in the nearest octave that the spec has."""
    return {PITCH: in_range(note.pitch, spec), NOTE_TIMES: (note.start, note.end)}


def with_note(row: NDArray[np.floating], spec: ParamSpec, note: TargetNote) -> NDArray[np.floating]:
    """A row (W,) that is played with another note, in the nearest octave that the spec has."""
    played = note_values(note, spec)
    changed = row.copy()
    for parameter in spec.note_params:
        changed[spec.slices[parameter.name]] = parameter.encode(played[parameter.name])
    return changed
