"""Vital's engine: the note, base patches, equal renders, and texts as Vital shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vita

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.choice import open_synth, synth_for
from data_pipeline.synths.protocol import DriftError
from data_pipeline.synths.vital.instrument import INSTRUMENT
from data_pipeline.synths.vital.patch import WAVES, base_patch, with_values, write_patch
from data_pipeline.synths.vital.synth import Vital

SPEC = load_spec("vital")
NOTE = {"pitch": 69, "note_start_and_end": (0.25, 0.75)}


def rows(seed: int, count: int) -> list[dict[str, Any]]:
    return [{**SPEC.decode(row), **NOTE} for row in SPEC.sample(seed, range(count), [0] * count)]


def settings_base(**settings: float) -> bytes:
    patch = base_patch()
    return write_patch({**patch, "settings": {**patch["settings"], **settings}})


def test_rows_of_the_spec_sound_and_are_the_same_in_any_order() -> None:
    patches = rows(5, 6)
    one, other = (open_synth(synth_for(SPEC)) for _ in range(2))
    first = [one.render(patch, seconds=1.0) for patch in patches]
    for patch, audio in reversed(list(zip(patches, first, strict=True))):
        np.testing.assert_array_equal(other.render(patch, seconds=1.0), audio)
        other.verify()
    assert sum(bool(audio.any()) for audio in first) > 4
    assert max(np.abs(audio).max() for audio in first) <= 1.0


def test_a_note_begins_at_its_time_and_has_its_pitch() -> None:
    audio = Vital(SPEC).render({"osc_1_wave_frame": WAVES.index("sine"), **NOTE}, seconds=1.0)
    assert audio.shape == (2, SAMPLE_RATE)
    start = SAMPLE_RATE // 4
    assert not audio[:, :start].any()
    assert np.abs(audio[:, start : start + 200]).max() > 0.01
    spectrum = np.abs(np.fft.rfft(audio[0, start : 3 * start]))
    assert 2 * int(spectrum.argmax()) == pytest.approx(440, abs=2)


def test_any_key_velocity_and_length() -> None:
    synth, base = Vital(SPEC), settings_base(velocity_track=1.0)
    values = {"pitch": 21, "note_start_and_end": (0.0, 0.2)}
    soft, loud = (synth.render(values, base=base, velocity=velocity, seconds=0.3001) for velocity in (30, 120))
    assert soft.shape == loud.shape == (2, round(0.3001 * SAMPLE_RATE))
    assert np.abs(loud).max() > 2 * np.abs(soft).max() > 0
    # A sound may end before its note begins.
    assert not synth.render({**values, "note_start_and_end": (1.0, 2.0)}, seconds=0.1).any()


def test_a_base_patch_gives_the_values_that_are_left_out(tmp_path: Path) -> None:
    values = rows(5, 1)[0]
    content = INSTRUMENT.preset_files(SPEC, [values], "mine", "")[".vital"]
    whole = Vital(SPEC).render(values, seconds=1.0)
    np.testing.assert_array_equal(Vital(SPEC).render(NOTE, base=content, seconds=1.0), whole)
    (tmp_path / "mine.vital").write_bytes(content)
    with_preset = open_synth(synth_for(SPEC, preset=str(tmp_path / "mine.vital")))
    np.testing.assert_array_equal(with_preset.render(NOTE, seconds=1.0), whole)
    moved = with_preset.render({**NOTE, "osc_2_level": 1.0 - values["osc_2_level"]}, seconds=1.0)
    assert (moved != whole).any()


def test_random_phases_of_a_base_patch_are_off() -> None:
    base = settings_base(osc_1_random_phase=1.0, sample_on=1.0, sample_random_phase=1.0)
    one, other = (Vital(SPEC).render(NOTE, base=base, seconds=0.5) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_modulations_are_heard() -> None:
    plain, vibrato = (Vital(SPEC).render({**NOTE, "lfo_1_to_voice_tune": amount}, seconds=0.5) for amount in (0.0, 0.5))
    assert np.abs(plain - vibrato).max() > 0.05


def test_verify_compares_what_the_engine_was_given() -> None:
    synth = Vital(SPEC)
    synth.verify()
    synth.render(rows(5, 1)[0], seconds=0.3)
    synth.verify()
    synth._engine.get_controls()["filter_1_cutoff"].set(8.5)
    with pytest.raises(DriftError, match="another filter_1_cutoff than"):
        synth.verify()


def test_a_base_patch_of_a_newer_vital_is_refused() -> None:
    content = write_patch({**base_patch(), "synth_version": "100000.0.0"})
    with pytest.raises(UserError, match="newer version"):
        Vital(SPEC).render(NOTE, base=content)


def test_values_are_shown_as_vital_shows_them() -> None:
    values = rows(6, 1)[0]
    engine = vita.Synth()
    assert engine.load_json(write_patch(with_values(base_patch(), SPEC, values)).decode())
    texts = INSTRUMENT.texts(SPEC, values)
    assert len(texts) > 80
    for name, text in texts.items():
        theirs = engine.get_control_text(name)
        ours, own = (float(re.match(r"-?[\d.e-]+", shown).group()) for shown in (text, theirs))  # type: ignore[union-attr]
        assert ours == pytest.approx(own, rel=2e-3, abs=1e-6), (name, text, theirs)


def test_the_base_patch_is_vitals_initial_one_but_for_its_sources() -> None:
    initial = json.loads(vita.Synth().to_json())
    own = base_patch()
    ours, theirs = own["settings"], initial["settings"]
    assert own.keys() == initial.keys()
    assert {name for name in theirs if ours[name] != theirs[name]} == {
        *("wavetables", "sample", "osc_1_random_phase", "osc_2_random_phase", "osc_3_random_phase")
    }
    assert ours.keys() == theirs.keys()


def test_a_render_leaves_the_processors_arithmetic_as_it_was() -> None:
    """Vital makes numbers below the normal range 0, for all code that follows in the thread."""
    Vital(SPEC).render(rows(5, 1)[0], seconds=1.0)
    assert np.array([1e-310])[0] * 1.0 > 0.0
