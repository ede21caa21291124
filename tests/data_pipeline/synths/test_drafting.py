"""Drafting a spec from a plugin's own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical, Continuous, Discrete, NoteDuration
from data_pipeline.params.spec import load_spec, spec_json
from data_pipeline.synths.drafting import Draft, draft_spec, summary
from data_pipeline.synths.vst3 import Vst3Synth
from tests.data_pipeline.fake_vst3 import FakeParameter, FakeVst3

SHOWN: dict[str, tuple[Any, ...]] = {
    "cutoff": tuple(float(hertz) for hertz in range(20, 1020)),
    "drive": ("-",),
    "octave": (-1.0, 0.0, 1.0),
    "wave": ("Saw", "Square", "Sine", "Noise"),
    "sync": (False, True),
    "level": (float("-inf"), -6.0, 0.0),
    "colour": ("Off", "Warm", "Off", "Cold"),
    "access": ("A", "B"),
    "bypass_fake": (False, True),
    "midi_cc_1_74": tuple(map(float, range(128))),
    "cc12": tuple(map(float, range(128))),
}


def fake(shown: Mapping[str, tuple[Any, ...]] = SHOWN, plugin: Any = None) -> Any:
    plugin = plugin or FakeVst3(list(shown))
    plugin.shown = {name: FakeParameter(plugin, name, values) for name, values in shown.items()}
    return plugin


def test_parameters_become_kinds_by_what_they_show() -> None:
    draft = draft_spec(fake(), "fake")
    spec = draft.spec
    drafted = {parameter.name: parameter for parameter in spec.synth_params}
    assert (draft.renaming, draft.one_value) == ([], ["drive"])
    assert draft.not_sound == ["bypass_fake", "midi_cc_1_74", "cc12"]
    assert list(drafted) == ["cutoff", "drive", "octave", "wave", "sync", "level", "colour", "access"]
    assert drafted["cutoff"] == Continuous("cutoff", 0.0, 1.0)
    assert drafted["drive"] == Continuous("drive", 0.0, 1.0)
    assert drafted["wave"] == Categorical(
        "wave", ("Saw", "Square", "Sine", "Noise"), (0.125, 0.375, 0.625, 0.875), (1.0,) * 4
    )
    assert drafted["sync"] == Categorical("sync", (False, True), (0.25, 0.75), (1.0, 1.0))
    octave, level, colour = (drafted[name] for name in ("octave", "level", "colour"))
    assert isinstance(octave, Categorical)
    assert octave.values == (-1.0, 0.0, 1.0)
    assert isinstance(level, Categorical)
    assert level.values == ("-inf", -6.0, 0.0)
    assert isinstance(colour, Categorical)
    assert (colour.values, colour.raw_values) == (("Off", "Warm", "Cold"), (0.125, 0.375, 0.875))
    assert spec.note_params == (Discrete("pitch", 48, 72), NoteDuration("note_start_and_end", 4.0))


def test_a_draft_loads_and_renders(tmp_path: Path) -> None:
    drafted = draft_spec(fake(), "fake").spec
    path = tmp_path / "fake.json"
    path.write_text(spec_json(drafted))
    spec = load_spec(str(path))
    assert spec == drafted
    synth = Vst3Synth(fake(), spec, "Fake", "1.0")
    audio = synth.render(spec.decode(np.random.default_rng(0).random(spec.width)))
    synth.verify()
    assert np.abs(audio).max() > 0.01


def test_the_base_patch_decides_what_there_is() -> None:
    class Renaming(FakeVst3):
        @property
        def parameters(self) -> Mapping[str, Any]:
            loaded = self.held["a"] == 0.25 and self.seconds >= 0.4
            return {"square" if loaded else "saw": FakeParameter(self, "a")}

    loaded = FakeVst3(["a"], initial=0.25)
    assert [parameter.name for parameter in draft_spec(Renaming(["a"]), "x").spec.synth_params] == ["saw"]
    assert [p.name for p in draft_spec(Renaming(["a"]), "x", loaded.preset_data).spec.synth_params] == ["square"]
    with pytest.raises(UserError, match="not a VST3 preset"):
        draft_spec(Renaming(["a"]), "x", b"garbage" * 10)


class Taking(FakeVst3):
    """A plugin without drive and octave while its wave is ``taking`` and it has run for a while."""

    taking = 0.625
    settled = 0.0

    def change(self, values: dict[str, float]) -> None:
        super().change(values)
        self.settled = self.seconds + 0.4

    @property
    def parameters(self) -> Mapping[str, Any]:
        gone = {"drive", "octave"} if self.held["wave"] == self.taking and self.seconds >= self.settled else set()
        return {name: hosted for name, hosted in super().parameters.items() if name not in gone}


@pytest.mark.parametrize("taking", [0.125, 0.375, 0.625, 0.875])
def test_a_parameter_that_removes_names_is_left_out_and_reported(taking: float) -> None:
    """Any value may remove the names, also one that the host takes for the base patch's value."""
    plugin = fake(plugin=Taking(list(SHOWN), initial=0.125))
    plugin.taking = taking
    base = FakeVst3(list(SHOWN), initial=0.3)
    draft = draft_spec(plugin, "fake", base.preset_data)
    assert draft.renaming == ["wave"]
    assert [p.name for p in draft.spec.synth_params] == [
        "cutoff",
        "drive",
        "octave",
        "sync",
        "level",
        "colour",
        "access",
    ]
    assert plugin.held == pytest.approx(base.held)
    assert summary(draft).splitlines() == [
        "7 parameters (5 categorical), 18 columns",
        "left out: 3 (bypass_fake, midi_cc_1_74, cc12)",
        "left out, because setting them takes other parameters' names away: 1 (wave)",
        "show one value whatever they are set to, so see if they sound: 1 (drive)",
    ]


@pytest.mark.parametrize(
    ("name", "is_left_out"),
    [
        *((name, True) for name in ("program", "current_program", "program_change", "ch_1_program", "preset", "patch")),
        *((name, True) for name in ("mod_wheel", "modwheel", "modulation_wheel", "pitch_bend", "pitchbend")),
        *((name, True) for name in ("pitch_wheel", "channel_aftertouch", "aftertouch", "channel_pressure")),
        *((name, True) for name in ("midi_ch_1_cc_74", "cc74", "cc_sharp74", "controller_7", "contr_3", "ctrl_12")),
        *((name, True) for name in ("sustain_pedal", "hold_pedal", "breath", "breath_controller", "expression")),
        *((name, True) for name in ("bank_select", "banksel_msb", "all_notes_off", "reset_all_controllers")),
        *((name, True) for name in ("glide", "osc_1_glide_time", "portamento_time")),
        *((name, False) for name in ("pitch_bend_range", "mod_wheel_amount", "sustain", "hold", "release", "volume")),
        *((name, False) for name in ("patch_1_level", "program_volume", "preset_morph", "control_1", "success")),
        *((name, False) for name in ("breathiness", "expressive", "aftertouch_to_cutoff", "soft_clip", "accent")),
    ],
)
def test_controllers_and_program_changes_are_known_by_their_names(name: str, is_left_out: bool) -> None:
    draft = draft_spec(fake({"cutoff": (), name: ()}), "fake")
    assert draft.not_sound == [name] * is_left_out
    assert (name in draft.spec.slices) is not is_left_out


class PedalboardParameter:
    """A parameter as pedalboard gets it from JUCE."""

    label, raw_value = "", 0.0

    def __init__(self, name: str) -> None:
        self.name = name

    def get_text_for_raw_value(self, raw: float) -> str:
        return str(raw >= 0.5)

    string_value = "False"


def pedalboard_plugin(*names: str) -> Any:
    """A plugin whose parameters have these names of their own, shown by pedalboard's real code."""
    pytest.importorskip("pedalboard", reason="needs pedalboard: pip install 'synthjax[render]'")
    from pedalboard import _pedalboard

    class Plugin(_pedalboard._PythonExternalPluginMixin):
        preset_data = b""

        def __init__(self) -> None:
            object.__setattr__(self, "_parameters", [PedalboardParameter(name) for name in names])

        def _get_parameter(self, name: str) -> PedalboardParameter | None:
            return next((parameter for parameter in self._parameters if parameter.name == name), None)

        def process(self, messages: Any, seconds: float, *_: Any) -> Any:
            return np.zeros((2, 8))

    return Plugin()


def test_parameters_that_pedalboard_does_not_show_are_counted_and_named() -> None:
    """Of parameters with equal names it shows one, and none without a name of Latin letters."""
    names = (
        "Level",
        "Level",
        "Osc 1: Level",
        "Osc 1 Level",
        "音量",
        "",
        "P001",
        "MIDI CC 0|1",
        "MIDI CC 1|1",
        "Cutoff",
    )
    draft = draft_spec(pedalboard_plugin(*names), "fake")
    assert [parameter.name for parameter in draft.spec.synth_params] == ["level", "osc_1_level", "cutoff"]
    assert draft.hidden == ["Level", "Osc 1: Level", "音量", "", "P001"]
    assert draft.not_sound == ["MIDI CC 0|1", "MIDI CC 1|1"]
    assert len(draft.spec.synth_params) + len(draft.hidden) + len(draft.not_sound) == len(names)
    assert summary(draft).splitlines()[1:] == [
        "left out: 2 (MIDI CC 0|1, MIDI CC 1|1)",
        "left out, because pedalboard gives them no name of their own: 5 (Level, Osc 1: Level, 音量, no name, P001)",
    ]


def test_a_name_that_every_midi_channel_has_is_a_controllers() -> None:
    """Some plugins call controllers by words that may mean a part of the sound."""
    draft = draft_spec(pedalboard_plugin("Cutoff", *["Pan", "Modulation"] * 16), "fake")
    assert [parameter.name for parameter in draft.spec.synth_params] == ["cutoff"]
    assert (len(draft.not_sound), draft.hidden) == (32, [])


def test_a_parameter_called_like_the_notes_own_gets_another_name() -> None:
    draft = draft_spec(pedalboard_plugin("Pitch", "Note Start", "Note End", "Note Start and End", "Cutoff"), "fake")
    names = [parameter.name for parameter in draft.spec.synth_params]
    assert names == ["pitch_", "note_start_", "note_end_", "note_start_and_end_", "cutoff"]
    columns = draft.spec.column_names
    assert len(set(columns)) == len(columns)


def test_a_plugin_that_does_not_come_back_is_refused() -> None:
    """Otherwise every later parameter would be blamed for the missing names."""

    class Staying(Taking):
        def change(self, values: dict[str, float]) -> None:
            super().change(values | ({"wave": 0.625} if self.held["wave"] == self.taking else {}))

    plugin = fake(plugin=Staying(list(SHOWN), initial=0.125))
    with pytest.raises(UserError, match="does not come back to its patch after wave was changed"):
        draft_spec(plugin, "fake")


def test_only_what_is_discrete_is_set() -> None:
    """A knob has too many values, and most parameters are knobs."""
    plugin = fake()
    changed: set[str] = set()
    change = plugin.change

    def note(values: dict[str, float]) -> None:
        changed.update(name for name in values if values[name] != plugin.held[name])
        change(values)

    plugin.change = note  # type: ignore[method-assign]
    draft_spec(plugin, "fake")
    assert changed == {"octave", "wave", "sync", "level", "colour", "access"}


def test_long_lists_are_cut() -> None:
    names = [f"cc{number}" for number in range(7)]
    assert summary(Draft(draft_spec(fake(), "x").spec, names, [], [], [])).endswith(
        "\nleft out: 7 (cc0, cc1, cc2, cc3, cc4, ...)"
    )


def test_a_plugin_that_gives_no_spec_is_refused() -> None:
    with pytest.raises(UserError, match="no parameters"):
        draft_spec(fake({"bypass": (False, True)}), "x")
    with pytest.raises(UserError, match="columns; 1 to 4096 are possible"):
        draft_spec(fake({f"p{index}": () for index in range(4100)}), "x")
