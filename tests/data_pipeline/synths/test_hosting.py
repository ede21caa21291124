"""Loading plugins, choosing one of several, ending every note, and refusing presets of other plugins."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.synths import hosting
from data_pipeline.synths.hosting import load_base_patch, load_plugin, play_note
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH, SoundingError
from data_pipeline.synths.vst3 import Vst3Synth
from tests.data_pipeline.fake_vst3 import DeafVst3, FakeVst3, container
from tests.data_pipeline.synths.test_vst3 import NAMES, SPEC, UNSET, mislabelled, patch

SHORT = (0.25, 1.0)


class Host:
    """pedalboard's ``VST3Plugin`` for a file with plugins of these names. A plugin is loaded with its C4 under way."""

    def __init__(self, *names: str, is_instrument: bool = True) -> None:
        self.names, self.is_instrument = names, is_instrument
        self.scanned = 0

    def get_plugin_names_for_file(self, filename: str) -> list[str]:
        self.scanned += 1
        return list(self.names)

    def __call__(self, path: str, plugin_name: str | None = None) -> DeafVst3:
        if len(self.names) > 1 and plugin_name not in self.names:
            raise ValueError(f"Plugin file {path} contains {len(self.names)} plugins.\n\tTo open one, ...")
        plugin = DeafVst3((*NAMES, UNSET))
        plugin.name = plugin_name if len(self.names) > 1 and plugin_name else self.names[0]
        plugin.is_instrument = self.is_instrument
        plugin.process([(bytes([0x90, 60, 127]), 0.0)], 0.25, 44100, 2)
        plugin.process([(bytes([0xB0, 123, 0]), 0.0)], 0.25, 44100, 2)
        return plugin


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some.vst3"
    path.touch()
    return path


def load(monkeypatch: pytest.MonkeyPatch, path: Path, host: Host, name: str = "") -> Any:
    monkeypatch.setitem(sys.modules, "pedalboard", SimpleNamespace(VST3Plugin=host))
    return load_plugin(path, name)


def test_the_warm_up_note_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row of every worker would hold it."""
    plugin = load(monkeypatch, path, Host("Synth"))
    synth = Vst3Synth(plugin, SPEC, "Fake", "1.0")
    assert mislabelled(synth.render, volume=0.5, order=(1,)) == 0


def test_a_file_with_one_plugin_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host("Synth")
    assert load(monkeypatch, path, host).name == "Synth"
    assert host.scanned == 0


def test_one_of_several_plugins_is_chosen_by_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = Host("Synth", "Synth Mono")
    assert load(monkeypatch, path, several, "Synth Mono").name == "Synth Mono"
    with pytest.raises(UserError) as caught:
        load(monkeypatch, path, several)
    assert str(caught.value) == f"{path} holds 2 plugins: choose one with --plugin_name (Synth, Synth Mono)"
    with pytest.raises(UserError) as caught:
        load(monkeypatch, path, several, "Mono")
    assert str(caught.value) == (
        f"{path} holds no plugin called 'Mono': choose one with --plugin_name (Synth, Synth Mono)"
    )


def test_a_name_is_not_ignored_where_the_file_holds_one_plugin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pedalboard ignores it."""
    assert load(monkeypatch, path, Host("Synth"), "Synth").name == "Synth"
    with pytest.raises(UserError, match="no plugin called 'Mono'"):
        load(monkeypatch, path, Host("Synth"), "Mono")


def test_an_effect_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is an effect; an instrument is needed"):
        load(monkeypatch, path, Host("Synth", is_instrument=False))


def test_any_other_error_of_loading_keeps_its_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Host):
        def __call__(self, path: str, plugin_name: str | None = None) -> DeafVst3:
            raise ValueError("Plugin 'Synth' does not produce audio output.")

    with pytest.raises(UserError, match="cannot be loaded: Plugin 'Synth' does not produce audio output"):
        load(monkeypatch, path, Broken("Synth"))


def test_a_note_is_ended_though_its_end_lies_at_the_end_of_the_sound() -> None:
    synth = Vst3Synth(DeafVst3((*NAMES, UNSET)), SPEC, "Fake", "1.0")
    assert mislabelled(synth.render, volume=0.5) == 0  # The notes of all patches end there.


def test_no_note_before_silence() -> None:
    plugin = DeafVst3((*NAMES, UNSET))
    plugin.hum = 0.01
    values = {**patch(), NOTE_TIMES: SHORT}
    with pytest.raises(SoundingError, match="sounds before the note") as caught:
        play_note(plugin, values)
    assert caught.value.audio.shape == (2, 176400)
    np.testing.assert_allclose(caught.value.audio[:, :11000], 0.01, rtol=1e-6)
    plugin.hum = 0.0
    assert np.abs(play_note(plugin, values)[:, :11000]).max() < 1e-9


class Echoing(FakeVst3):
    """A plugin with an echo: ``count`` impulses, one every ``gap`` seconds, after each note-off."""

    gap, count = 1.3, 4
    times: tuple[float, ...] = ()

    def process(self, messages: Any, seconds: float, *arguments: Any) -> Any:
        begin = self.seconds
        audio = super().process(messages, seconds, *arguments)
        for (status, *_), time in messages:
            if status == 0x80:
                self.times += tuple(begin + time + self.gap * number for number in range(1, self.count + 1))
        for time in self.times:
            if begin <= time < self.seconds:
                audio[:, min(round((time - begin) * 44100), audio.shape[1] - 1)] += 0.01
        return audio


def test_an_echo_that_comes_rarely_is_waited_for() -> None:
    """Half a second of silence may be the gap between two echoes."""
    synth = Vst3Synth(Echoing((*NAMES, UNSET)), SPEC, "Fake", "1.0")
    fresh = Vst3Synth(Echoing((*NAMES, UNSET)), SPEC, "Fake", "1.0")
    synth.render({**patch(), NOTE_TIMES: (3.0, 3.5)})
    values = {**patch(cutoff=0.9), NOTE_TIMES: SHORT}
    np.testing.assert_allclose(synth.render(values), fresh.render(values), atol=1e-5)


def test_a_sound_between_silence_and_note_is_noticed() -> None:
    plugin = Echoing(["a"])
    plugin.gap = 3.0
    play_note(plugin, {PITCH: 60, NOTE_TIMES: SHORT})
    with pytest.raises(SoundingError):
        play_note(plugin, {PITCH: 60, NOTE_TIMES: (3.0, 4.0)})


def test_a_note_that_begins_with_its_buffer_is_no_sound_before_it() -> None:
    class Hasty(FakeVst3):
        def process(self, messages: Any, *arguments: Any) -> Any:
            return super().process([(m, t // (2048 / 44100) * (2048 / 44100)) for m, t in messages], *arguments)

    play_note(Hasty(["a"]), {PITCH: 60, NOTE_TIMES: (1.0, 2.0)})


def test_a_plugin_that_has_broken_down_is_replaced() -> None:
    """A filter that has become unstable gives NaN for ever."""
    plugin = FakeVst3(["a"])
    plugin.hum = float("nan")
    with pytest.raises(SoundingError):
        play_note(plugin, {PITCH: 60, NOTE_TIMES: SHORT})


def test_a_long_echo_is_waited_for() -> None:
    class Fading(FakeVst3):
        def process(self, *arguments: Any) -> Any:
            return super().process(*arguments) + 0.1 * 10 ** (-self.seconds / 2)  # 10 dB a second.

    plugin = Fading(["a"])
    play_note(plugin, {PITCH: 60, NOTE_TIMES: (0.0, 1.0)})
    assert 11.0 < plugin.seconds < 13.0  # It falls by 70 dB.


def test_the_preset_of_another_plugin_never_reaches_the_plugin() -> None:
    plugin = FakeVst3(["a"])
    foreign = container({"Comp": plugin.dump()}, b"F" * 32)
    with pytest.raises(UserError) as caught:
        load_base_patch(plugin, foreign)
    assert str(caught.value) == (
        f"the preset belongs to another plugin: its class id is {'F' * 32}, that of Fake is "
        "0123456789ABCDEF0123456789ABCDEF"
    )
    load_base_patch(plugin, container({"Comp": plugin.dump()}, plugin.class_id.lower()))


def test_a_preset_that_the_plugin_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Failed to set preset data for plugin: some.vst3")

    plugin = FakeVst3(["a"])
    monkeypatch.setattr(hosting, "load_preset", refuse)
    with pytest.raises(UserError, match="Fake does not take the preset: Failed to set preset data"):
        load_base_patch(plugin, plugin.preset_data)
