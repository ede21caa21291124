"""Estimates of the note of a sound."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.params.spec import load_spec
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH
from synthjax.inference.target_note import TargetNote, estimate_note, in_range, moved, octave_remark, with_note

SPEC = load_spec("dexed")
ROWS = SPEC.sample(2, [0], [0])


@pytest.mark.parametrize(("pitch", "played"), [(60, 60), (24, 24), (23, 35), (12, 24), (100, 88), (108, 96), (127, 91)])
def test_pitches_outside_the_range_move_by_octaves(pitch: int, played: int) -> None:
    assert in_range(pitch, SPEC) == played
    row = with_note(ROWS[0], SPEC, TargetNote(pitch, 0.5, 1.5))
    values = SPEC.decode(row)
    assert values[PITCH] == played
    assert values[NOTE_TIMES] == pytest.approx((0.5, 1.5))


@pytest.mark.parametrize(("start", "end"), [(0.5, 2.5), (3.0, 4.0)])
def test_a_moved_note_is_held_as_long_or_to_the_end(start: float, end: float) -> None:
    row = with_note(ROWS[0], SPEC, TargetNote(60, 1.0, 3.0))
    before, after = SPEC.decode(row), SPEC.decode(moved(row, SPEC, start))
    assert after.pop(NOTE_TIMES) == pytest.approx((start, end))
    del before[NOTE_TIMES]
    assert after == before


@pytest.mark.parametrize("pitch", [36, 57, 69, 84])
def test_the_note_of_a_sound_is_estimated(pitch: int) -> None:
    times = np.arange(4 * 44100) / 44100
    hz = 440.0 * 2.0 ** ((pitch - 69) / 12)
    tone = sum(np.sin(2 * np.pi * hz * k * times) / k for k in (1, 2, 3)) * np.exp(-times)
    audio = np.where((times >= 1.0) & (times < 2.5), tone, 0.0)
    note = estimate_note(np.stack([audio, audio]))
    assert note.pitch == pitch
    assert note.start == pytest.approx(1.0, abs=0.06)
    assert note.end == pytest.approx(2.5, abs=0.06)


def test_noise_and_silence_have_the_default_note() -> None:
    assert estimate_note(np.zeros((2, 44100))) == TargetNote(60, 0.0, 4.0)


def test_a_sound_outside_the_range_is_told() -> None:
    assert octave_remark(TargetNote(60, 0.0, 1.0), SPEC) is None
    remark = octave_remark(TargetNote(12, 0.0, 1.0), SPEC)
    assert remark is not None
    assert "presets are played at 24, the nearest octave" in remark
