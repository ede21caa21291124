"""Presets of the real Dexed as candidates, and presets as base patches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.audio.sound_files import wav
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.choice import instrument, open_synth, synth_for
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH
from data_pipeline.synths.surge.patch import surge_template
from data_pipeline.synths.surge.preset_files import read, read_surge_file
from synthjax.retrieval.index import read_index
from synthjax.retrieval.presets import Base, own_row
from tests.helpers import assert_usage_error, run_cli

SPEC = load_spec("dexed")
ROWS = SPEC.sample(2, range(6), [0] * 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of six voices, and a file that is none."""
    folder = tmp_path_factory.mktemp("presets")
    files = instrument("dexed").preset_files(SPEC, [SPEC.decode(row) for row in ROWS], "bank", "")
    (folder / "bank.syx").write_bytes(files[".syx"])
    (folder / "broken.syx").write_bytes(b"no bank")
    return folder


def test_an_index_of_presets_finds_and_gives_back_a_preset(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "presets.index"
    result = run_cli("synthjax.library", "build", path, f"--presets={folder}", "--workers=2")
    assert result.returncode == 0, result.stderr
    assert "left out" in result.stdout
    patches = read_index(path).patches(range(4), [0.0] * 4)
    assert all("bank.syx" in patch.origin for patch in patches)
    sound = tmp_path / "sound.wav"
    values = {**SPEC.decode(ROWS[1]), PITCH: 60, NOTE_TIMES: (0.0, 3.0)}
    sound.write_bytes(wav(open_synth(synth_for(SPEC)).render(values)))
    found = run_cli("synthjax.library", "search", path, sound, "--count=1").stdout
    more = run_cli("synthjax.library", "add", path, "--rows=8", "--workers=1")
    assert more.returncode == 0, more.stderr
    assert run_cli("synthjax.library", "search", path, sound, "--count=1").stdout == found


def test_a_preset_answers_at_the_pitch_of_the_sound(folder: Path, tmp_path: Path) -> None:
    sine = tmp_path / "voice.wav"
    synth = open_synth(synth_for(SPEC))
    heard = [synth.render({**SPEC.decode(row), PITCH: 67, NOTE_TIMES: (0.2, 2.2)}) for row in ROWS]
    number = int(np.argmax([np.abs(audio[0, 8820:]).mean() for audio in heard]))
    sine.write_bytes(wav(heard[number]))
    flags = (f"--presets={folder}", "--bundle=dexed", f"--output={tmp_path / 'out'}", "--candidates=3")
    result = run_cli("synthjax.predict", sine, *flags)
    assert result.returncode == 0, result.stderr
    origins = [one["origin"] for one in json.loads((tmp_path / "out" / "voice.json").read_text())["candidates"]]
    assert len(origins) == 3
    assert "bank.syx" in origins[0]


def test_folders_without_presets_are_refused(tmp_path: Path) -> None:
    sound = tmp_path / "s.wav"
    sound.write_bytes(wav(np.full((2, 44100), 0.1, np.float32)))
    common = ("synthjax.predict", sound, f"--output={tmp_path / 'out'}", "--bundle=dexed")
    assert_usage_error(run_cli(*common, "--presets=nowhere"), "--presets=nowhere is no folder")
    assert_usage_error(run_cli(*common, f"--presets={tmp_path}"), "has no preset of dexed (.syx)")


def test_only_changed_values_are_written_to_a_base() -> None:
    row = ROWS[0].astype(np.float64)
    base = Base(b"voice", row)
    assert base.with_row(row, SPEC).values.keys() == {PITCH, NOTE_TIMES}
    changed = row.copy()
    first = SPEC.synth_params[0]
    changed[SPEC.slices[first.name]] = 1.0 - changed[SPEC.slices[first.name]]
    on_base = base.with_row(changed, SPEC)
    assert on_base.base == b"voice"
    assert on_base.values.keys() == {first.name, PITCH, NOTE_TIMES}
    locked = Base(b"voice", row, written={first.name})
    assert locked.with_row(row, SPEC).values[first.name] == SPEC.decode(row)[first.name]


def with_wavetable(state: bytes) -> bytes:
    """A state with four more bytes, which are the first oscillator's wavetable."""
    return state[:8] + (4).to_bytes(4, "little") + state[12:] + b"WAVE"


def test_a_surge_preset_keeps_what_the_spec_does_not_know() -> None:
    spec, surge = load_spec("surge_simple"), instrument("surge_xt")
    template = surge_template(spec)
    assert template is not None
    row = spec.sample(2, [0], [0])[0]
    plain = template.state(spec.decode(row))
    state = plain.replace(b'<character type="0" value="1"', b'<character type="0" value="2"')
    patch = surge.read(surge.preset_files(spec, [{}], "a", "", state)[".fxp"])[0][0]
    assert patch.outside == ["character is 2, in the base patch 1"]
    base, changed = Base(patch.base, own_row(spec, patch)), own_row(spec, patch)
    cutoff = spec.slices["a_filter_1_cutoff"]
    changed[cutoff] = 0.25
    on_base = base.with_row(changed, spec)
    assert read_surge_file(surge.preset_files(spec, [{}], "a", "", with_wavetable(state))[".fxp"]).endswith(b"WAVE")
    found = read(surge.preset_files(spec, [on_base.values], "b", "", on_base.base)[".fxp"])
    assert found.outside == patch.outside
    assert found.values == pytest.approx(
        {**patch.values, "a_filter_1_cutoff": spec.decode(changed)["a_filter_1_cutoff"]}
    )
