"""The files of a prediction: Surge XT's presets are made here, those of other plugins by the plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Continuous, Discrete, NoteDuration
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import synth_for
from data_pipeline.synths.dexed.instrument import INSTRUMENT
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH, SynthSettings
from data_pipeline.synths.surge.patch import differences, read_preset
from data_pipeline.synths.surge.preset_files import read_surge_file, vstpreset
from data_pipeline.synths.vital.patch import base_patch, write_patch
from synthjax.inference.candidates import Candidate, Prediction
from synthjax.inference.files import PredictionFiles

SURGE, SUBTRACTIVE, VITAL = load_spec("surge_simple"), load_spec("subtractive"), load_spec("vital")
OTHER = ParamSpec("other", (Continuous("cutoff", 0.0, 1.0),), (Discrete(PITCH, 48, 72), NoteDuration(NOTE_TIMES, 4.0)))


class FakeRenderer:
    """Gives every row a preset of its own, except one that starts with 0."""

    def __init__(self, synth: SynthSettings) -> None:
        self.synth = synth

    def preset(self, row: Any) -> bytes | None:
        return b"preset of %.3f" % row[0] if row[0] else None


def renderer(spec: ParamSpec, plugin: str = "", preset: str = "") -> PatchRenderer:
    return cast(PatchRenderer, FakeRenderer(synth_for(spec, plugin, preset)))


def prediction(spec: ParamSpec, first: float = 0.25, **best: Any) -> Prediction:
    row = np.full(spec.width, 0.5, np.float32)
    row[0] = first
    return Prediction(spec, (Candidate(row, **best),), "only candidate")


@pytest.mark.parametrize("with_renderer", [False, True])
def test_surge_xts_preset_needs_no_plugin(tmp_path: Path, with_renderer: bool) -> None:
    made = prediction(SURGE)
    PredictionFiles(tmp_path, SURGE, renderer(SURGE) if with_renderer else None).write("a.b", made, {})
    for file in ("a.b.vstpreset", "a.b.fxp"):
        state = read_surge_file((tmp_path / file).read_bytes())
        assert differences(read_preset(vstpreset(state)), made.values, SURGE) == []
        assert b'name="a.b"' in state
        assert b"from the sound a.b" in state


@pytest.mark.parametrize(("spec", "preset"), [(OTHER, ""), (OTHER, "base.vstpreset"), (SURGE, "base.vstpreset")])
def test_another_plugins_preset_is_its_own_state(tmp_path: Path, spec: ParamSpec, preset: str) -> None:
    """So is that of Surge XT with the user's own base patch, which is not known here."""
    PredictionFiles(tmp_path, spec, renderer(spec, "a.vst3", preset)).write("a", prediction(spec), {})
    assert (tmp_path / "a.vstpreset").read_bytes() == b"preset of 0.250"


def test_vitals_preset_stands_on_the_users_base_patch(tmp_path: Path) -> None:
    base = {**base_patch(), "author": "A. User", "settings": {**base_patch()["settings"], "voice_tune": 0.5}}
    (tmp_path / "mine.vital").write_bytes(write_patch(base))
    made = prediction(VITAL)
    PredictionFiles(tmp_path, VITAL, renderer(VITAL, preset=str(tmp_path / "mine.vital"))).write("a", made, {})
    patch = json.loads((tmp_path / "a.vital").read_bytes())
    assert (patch["author"], patch["preset_name"], patch["settings"]["voice_tune"]) == ("A. User", "a", 0.5)
    assert patch["settings"]["filter_1_cutoff"] == made.values["filter_1_cutoff"]
    with pytest.raises(UserError, match="cannot read the preset"):
        PredictionFiles(tmp_path, VITAL, renderer(VITAL, preset="none.vital"))


@pytest.mark.parametrize(
    ("spec", "heard_by"), [(OTHER, None), (SUBTRACTIVE, None), (SUBTRACTIVE, renderer(SUBTRACTIVE))]
)
def test_without_a_plugin_there_is_no_preset(tmp_path: Path, spec: ParamSpec, heard_by: PatchRenderer | None) -> None:
    PredictionFiles(tmp_path, spec, heard_by).write("a", prediction(spec), {"seed": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text())["seed"] == 3


def test_other_files_of_an_earlier_prediction_are_removed(tmp_path: Path) -> None:
    """An old preset or sound would be taken for the new one's."""
    files = PredictionFiles(tmp_path, OTHER, renderer(OTHER, "a.vst3"))
    audio = np.linspace(-1.5, 1.5, 2 * 100, dtype=np.float32).reshape(2, 100)
    files.write("a", prediction(OTHER, audio=audio), {})
    np.testing.assert_array_equal(soundfile.read(tmp_path / "a.wav", dtype="float32")[0].T, audio)
    (tmp_path / "b.wav").touch()
    files.write("a", prediction(OTHER, first=0.0), {})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.wav"}


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*none/a\.json: No such file"):
        PredictionFiles(tmp_path / "none", OTHER).write("a", prediction(OTHER), {})


def test_dx7_answers_are_banks(tmp_path: Path) -> None:
    """A bank for each sound, its candidates best first, and banks of the best answers to all sounds."""
    spec = load_spec("dexed")
    files = PredictionFiles(tmp_path, spec)
    rows = spec.sample(1, range(40), [0] * 40)
    for first in range(0, 40, 4):
        files.write(
            f"{first:02d}.long name", Prediction(spec, tuple(map(Candidate, rows[first : first + 4])), "chosen"), {}
        )
    files.close()
    expected = [spec.decode(row) for row in rows]
    (found, *_), remarks = INSTRUMENT.read((tmp_path / "04.long name.syx").read_bytes())
    assert (found.name, remarks) == ("04.long na", [])
    assert found.values == {name: expected[4][name] for name in found.values}
    voices, _ = INSTRUMENT.read((tmp_path / "banks" / "1.syx").read_bytes())
    assert [voice.values["algorithm"] for voice in voices[:10]] == [expected[k]["algorithm"] for k in range(0, 40, 4)]
    assert [voice.name for voice in voices[9:12]] == ["36.long na", "INIT VOICE", "INIT VOICE"]
    about = json.loads((tmp_path / "00.long name.json").read_text())
    assert (about["pitch"], about["velocity"]) == (expected[0]["pitch"], 100)
