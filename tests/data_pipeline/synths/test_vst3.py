"""Any VST3 instrument as a synthesizer, on a fake host with the traps of the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical, Continuous, Discrete, NoteDuration
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths import hosting, vst3
from data_pipeline.synths.choice import open_synth
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH, DriftError, SynthSettings
from data_pipeline.synths.vst3 import Vst3Synth
from tests.data_pipeline.fake_vst3 import FakeVst3, expected_audio

NOTE = (Discrete(PITCH, 48, 72), NoteDuration(NOTE_TIMES, 4.0))
SPEC = ParamSpec(
    "fake",
    (
        Continuous("cutoff", 0.0, 1.0),
        Continuous("drive", 0.0, 1.0, constant_value=0.5, constant_probability=0.5),
        Categorical("wave", ("saw", "square", "sine"), (0.1, 0.5, 0.9), (1.0, 1.0, 1.0)),
        Categorical("mode", (False, True), (0.25, 0.75), (1.0, 1.0)),
    ),
    NOTE,
)
NAMES = tuple(parameter.name for parameter in SPEC.synth_params)
# A parameter that is not in the spec keeps the base patch's value, which changes the sound.
UNSET = "volume"


def base_preset() -> bytes:
    plugin = FakeVst3((*NAMES, UNSET))
    plugin.held = {"cutoff": 0.25, "drive": 0.125, "wave": 0.5, "mode": 0.25, UNSET: 0.75}
    return plugin.preset_data


def open_fake(plugin: FakeVst3 | None = None, preset: bytes | None = None) -> tuple[FakeVst3, Vst3Synth]:
    plugin = plugin or FakeVst3((*NAMES, UNSET))
    return plugin, Vst3Synth(plugin, SPEC, "Fake", "1.0", base_preset() if preset is None else preset)


def patch(
    cutoff: float = 0.3, drive: float = 0.5, wave: float = 0.5, mode: float = 0.75, pitch: int = 60
) -> dict[str, Any]:
    return {"cutoff": cutoff, "drive": drive, "wave": wave, "mode": mode, PITCH: pitch, NOTE_TIMES: (0.5, 4.0)}


# Values repeat from patch to patch, and equal the host's first ones (0.5).
PATCHES = (patch(), patch(cutoff=0.5), patch(wave=0.9, drive=0.7), patch(mode=0.25, pitch=50))
ORDER = (0, 0, 1, 2, 2, 0, 3, 1, 1, 3, 0)


def mislabelled(render: Any, volume: float = 0.75, order: Sequence[int] = ORDER) -> int:
    @cache
    def expected(index: int) -> NDArray[np.float64]:
        values = {**{name: PATCHES[index][name] for name in NAMES}, UNSET: volume}
        return expected_audio(values, PATCHES[index][PITCH], *PATCHES[index][NOTE_TIMES])

    return sum(np.abs(render(PATCHES[index]) - expected(index)).max() > 2e-4 for index in order)


def test_every_render_is_what_its_label_says() -> None:
    assert mislabelled(open_fake()[1].render) == 0


def test_without_a_preset_the_plugins_own_first_patch_is_the_base() -> None:
    synth = Vst3Synth(FakeVst3((*NAMES, UNSET)), SPEC, "Fake", "1.0")
    assert mislabelled(synth.render, volume=0.5) == 0


def test_writing_without_waking_the_host_would_mislabel() -> None:
    """The fake host has the trap: after the base patch it still assumes its own first values."""
    plugin = FakeVst3((*NAMES, UNSET))
    plugin.preset_data = base_preset()

    def render(values: Mapping[str, Any]) -> NDArray[np.float32]:
        for name in NAMES:
            plugin.parameters[name].raw_value = values[name]
        return hosting.play_note(plugin, values)

    assert mislabelled(render, order=(0, 1)) == 2


class RenamingPlugin(FakeVst3):
    """The last category has no drive: the name is missing, and the host keeps values written to it."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        gone = {"drive"} if self.held["wave"] == 0.9 else set()
        return {name: hosted for name, hosted in super().parameters.items() if name not in gone}


def test_a_parameter_that_the_patch_took_away_is_not_rendered_as_if_it_were_there() -> None:
    _, synth = open_fake(RenamingPlugin((*NAMES, UNSET)))
    synth.render(patch(wave=0.5))
    with pytest.raises(UserError, match=r"took 1 parameter of the spec away \(drive, ...\) when others were set"):
        synth.render(patch(wave=0.9))


@pytest.mark.parametrize("believed", [0.0, 1.0])
def test_extreme_values_that_the_host_believes_written_are_written(believed: float) -> None:
    plugin, synth = open_fake(FakeVst3((*NAMES, UNSET), initial=believed))
    synth.render(patch(cutoff=believed))
    assert plugin.held["cutoff"] == believed


def test_reloading_would_mislabel() -> None:
    plugin, synth = open_fake()

    def render(values: Mapping[str, Any]) -> NDArray[np.float32]:
        plugin.preset_data = base_preset()
        return synth.render(values)

    assert mislabelled(render) >= 3


def test_parameter_objects_are_read_once_and_their_names_once_a_render() -> None:
    """Reading the parameters of a large plugin takes 6 ms."""
    plugin, synth = open_fake()
    for index in (0, 1, 2):
        synth.render(PATCHES[index])
        synth.verify()
    assert plugin.times_parameters_were_read == 1 + 3


def test_parameters_are_read_when_the_base_patch_runs() -> None:
    """The names of the parameters may depend on the base patch."""

    class Renaming(FakeVst3):
        @property
        def parameters(self) -> Mapping[str, Any]:
            settled = self.held[UNSET] == 0.75 and self.seconds >= 0.4
            return super().parameters if settled else {}

    assert mislabelled(open_fake(Renaming((*NAMES, UNSET)))[1].render, order=(0, 1)) == 0


def test_a_plugin_that_lacks_parameters_is_refused() -> None:
    with pytest.raises(UserError, match=r"lacks 2 parameters of spec fake \(wave"):
        Vst3Synth(FakeVst3(("cutoff", "drive")), SPEC, "Fake", "1.0")


def test_what_is_no_preset_never_reaches_the_plugin() -> None:
    plugin = FakeVst3((*NAMES, UNSET))
    with pytest.raises(UserError, match="not a VST3 preset"):
        open_fake(plugin, b"garbage" * 10)
    assert plugin.held[UNSET] == 0.5


def test_verify_reads_raw_values_back() -> None:
    plugin, synth = open_fake()
    synth.verify()  # Nothing is rendered yet.
    synth.render(patch())
    plugin.written.update(cutoff=0.305, wave=0.35, mode=1.0)  # Rounded to the plugin's own steps.
    synth.verify()
    for name, raw in (("cutoff", 0.32), ("cutoff", float("nan")), ("wave", 0.15), ("mode", 0.0)):
        plugin.written.update({key: patch()[key] for key in NAMES} | {name: raw})
        with pytest.raises(DriftError, match=f"in 1 parameter: {name} is"):
            synth.verify()


def test_open_synth_takes_plugin_and_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base.vstpreset"
    path.write_bytes(base_preset())
    monkeypatch.setattr(vst3, "load_plugin", lambda *_: FakeVst3((*NAMES, UNSET)))
    synth = open_synth(SynthSettings("vst3", SPEC, "fake.vst3", str(path)))
    assert (synth.name, synth.version) == ("Fake", "1.0")
    assert mislabelled(synth.render, order=(0, 1, 1)) == 0
    with pytest.raises(UserError, match="cannot read the preset"):
        open_synth(SynthSettings("vst3", SPEC, "fake.vst3", str(tmp_path / "none.vstpreset")))


def test_a_preset_holds_the_patch_and_what_the_spec_leaves_alone() -> None:
    _, synth = open_fake()
    synth.render(PATCHES[1])
    synth.render(PATCHES[2])
    other = FakeVst3((*NAMES, UNSET))
    hosting.load_preset(other, synth.preset())
    assert mislabelled(lambda values: hosting.play_note(other, values), order=(2, 2)) == 0


def test_a_preset_is_loaded_without_pedalboards_search_for_a_parameter_of_that_name() -> None:
    """With thousands of parameters the search for a name takes ten times as long as the loading."""

    class Searching(FakeVst3):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "preset_data":
                raise AssertionError("searched")
            super().__setattr__(name, value)

    plugin = Searching((*NAMES, UNSET))
    hosting.load_preset(plugin, base_preset())
    assert plugin.preset_data == base_preset()


def test_parameters_called_like_the_notes_own_are_written_and_read_back() -> None:
    names = ("pitch", "note_start", "cutoff")
    spec = ParamSpec("fake", tuple(Continuous(n, 0.0, 1.0) for n in ("pitch_", "note_start_", "cutoff")), NOTE)
    plugin = FakeVst3(names)
    synth = Vst3Synth(plugin, spec, "Fake", "1.0")
    row = np.full(spec.width, 0.25)
    values = spec.decode(row)
    audio = synth.render(values)
    assert plugin.held == dict.fromkeys(names, 0.25)
    expected = expected_audio(dict.fromkeys(names, 0.25), values[PITCH], *values[NOTE_TIMES])
    np.testing.assert_allclose(audio, expected, atol=1e-5)
    synth.verify()
    plugin.written["pitch"] = 0.75
    with pytest.raises(DriftError, match=r"pitch_ is 0\.75"):
        synth.verify()
