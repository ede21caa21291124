"""Dexed's engine: the note, base patches, and equal renders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.choice import open_synth, synth_for
from data_pipeline.synths.dexed.instrument import INSTRUMENT
from data_pipeline.synths.dexed.synth import Dexed
from data_pipeline.synths.dexed.voice import INIT_VOICE
from data_pipeline.synths.protocol import DriftError

SPEC = load_spec("dexed")
NOTE = {"pitch": 69, "note_start_and_end": (1.0, 2.0)}


def test_rows_of_the_spec_sound_and_are_the_same_in_any_order() -> None:
    rows = [SPEC.decode(row) for row in SPEC.sample(5, range(24), [0] * 24)]
    one, other = (open_synth(synth_for(SPEC)) for _ in range(2))
    first = [one.render(row) for row in rows]
    for row, audio in reversed(list(zip(rows, first, strict=True))):
        np.testing.assert_array_equal(other.render(row), audio)
        other.verify()
    assert sum(bool(audio.any()) for audio in first) > 18
    assert max(np.abs(audio).max() for audio in first) <= 1.0


def test_the_initial_voice_is_a_sine_that_begins_with_its_note() -> None:
    audio = Dexed(SPEC).render({**INIT_VOICE.values, **NOTE})
    assert audio.shape == (2, 4 * SAMPLE_RATE)
    assert not audio[:, :SAMPLE_RATE].any()
    spectrum = np.abs(np.fft.rfft(audio[0, SAMPLE_RATE : 2 * SAMPLE_RATE]))
    assert int(spectrum.argmax()) == pytest.approx(440, abs=1)


def test_any_key_velocity_and_length() -> None:
    synth = Dexed(SPEC)
    values = {**INIT_VOICE.values, "op_1_velocity_sensitivity": 7, "pitch": 21, "note_start_and_end": (0.0, 0.5)}
    soft, loud = (synth.render(values, velocity=velocity, seconds=1.5) for velocity in (30, 120))
    assert soft.shape == loud.shape == (2, round(1.5 * SAMPLE_RATE))
    assert np.abs(loud).max() > 2 * np.abs(soft).max() > 0


def test_a_base_patch_gives_the_values_that_are_left_out() -> None:
    synth = Dexed(SPEC)
    values = SPEC.decode(SPEC.sample(5, [0], [0])[0])
    bank = INSTRUMENT.preset_files(SPEC, [values], "mine", "")[".syx"]
    patch = INSTRUMENT.read(bank)[0][0]
    assert (patch.name, patch.outside) == ("mine", [])
    assert patch.values == {name: value for name, value in values.items() if name in patch.values}
    whole = synth.render({name: values[name] for name in NOTE}, base=patch.base)
    np.testing.assert_array_equal(whole, synth.render(values))
    moved = synth.render(
        {"algorithm": 31 - values["algorithm"]} | {name: values[name] for name in NOTE}, base=patch.base
    )
    assert (moved != whole).any()


def test_verify_compares_what_the_engine_was_given() -> None:
    synth = Dexed(SPEC)
    synth.render({**INIT_VOICE.values, **NOTE})
    synth.verify()
    synth._held = synth._held.replace(b"\x63", b"\x62", 1)
    with pytest.raises(DriftError, match="op_6_eg_rate_1"):
        synth.verify()


def test_voices_of_people_sound_the_same_from_the_file_and_from_the_spec(shared_data: Path) -> None:
    synth = Dexed(SPEC)
    for bank in sorted((shared_data / "dx7_presets").glob("*.syx")):
        patches, _ = INSTRUMENT.read(bank.read_bytes())
        for patch in patches[::16]:
            assert not patch.outside
            row = SPEC.encode({**patch.values, **NOTE})
            from_spec = synth.render(SPEC.decode(row), seconds=2.5)
            np.testing.assert_array_equal(synth.render(NOTE, base=patch.base, seconds=2.5), from_spec)
