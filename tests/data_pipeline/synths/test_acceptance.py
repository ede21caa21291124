"""A test that every synthesizer must pass: a patch sounds the same before and after other patches, and as a preset.

``assert_accepted`` takes any synthesizer that ``SynthSettings`` names, and renders as a worker does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from numpy.typing import NDArray

from data_pipeline.audio.metrics import mss_spectrograms, spectrogram_distance
from data_pipeline.audio.quality import fault
from data_pipeline.params.spec import load_spec
from data_pipeline.render.worker import ReopenedSynth
from data_pipeline.synths import vst3
from data_pipeline.synths.choice import instrument
from data_pipeline.synths.hosting import load_plugin, load_preset, play_note
from data_pipeline.synths.protocol import NOTE_TIMES, SoundingError, SynthSettings
from data_pipeline.synths.surge import instrument as surge_xt
from tests.data_pipeline.fake_vst3 import DeafVst3, FakeSurgeXT, FakeVst3
from tests.data_pipeline.synths.test_vst3 import NAMES, SPEC

OTHERS = 20
FRESH_RENDERS = 3

Values = Mapping[str, Any]


def assert_accepted(settings: SynthSettings, fresh_plugin: Callable[[], Any] | None = None) -> None:
    """Asserts that one patch keeps its sound, within the distances of its own renders in fresh instances.

    The patch is rendered before and after ``OTHERS`` random patches, half of them with notes held to the sound's end.
    Then its preset is loaded in a fresh instance. ``fresh_plugin`` loads the plugin; without it the synthesizer is no
    plugin, and the patch's encoded row takes the place of a preset.
    """
    spec = settings.spec
    patch = _audible_patch(settings)
    fresh = [mss_spectrograms(ReopenedSynth(settings).render(patch)) for _ in range(FRESH_RENDERS)]
    limit = 1.5 * max(spectrogram_distance(*pair) for pair in itertools.combinations(fresh, 2)) + 0.1
    synth = ReopenedSynth(settings)
    sounds = {"before": synth.render(patch)}
    for index, row in enumerate(spec.sample(2, range(OTHERS), [0] * OTHERS)):
        _render(synth, {**spec.decode(row), **({NOTE_TIMES: (3.0, 4.0)} if index % 2 else {})})
    sounds["after"] = synth.render(patch)
    synth.verify()
    preset = synth.preset()
    assert (preset is None) == (fresh_plugin is None)
    if fresh_plugin is None or preset is None:
        sounds["reloaded"] = ReopenedSynth(settings).render(spec.decode(spec.encode(patch)))
    else:
        plugin = fresh_plugin()
        load_preset(plugin, preset)
        sounds["reloaded"] = play_note(plugin, patch)
    if instrument(settings.synth).exact:
        limit = 0.0
    for name, audio in sounds.items():
        distance = min(spectrogram_distance(mss_spectrograms(audio), render) for render in fresh)
        assert distance <= limit, (name, distance, limit)


def _audible_patch(settings: SynthSettings) -> Values:
    """A random patch that a data set would accept; its note is held to the sound's end."""
    synth, spec = ReopenedSynth(settings), settings.spec
    for row in spec.sample(1, [0] * 50, range(50)):
        patch = {**spec.decode(row), NOTE_TIMES: (1.0, 4.0)}
        audio = _render(synth, patch)
        if audio is not None and fault(audio, -55.0, 1.0) is None:
            return patch
    raise AssertionError("no patch can be heard")


def _render(synth: ReopenedSynth, patch: Values) -> NDArray | None:
    """The audio; None for a patch that sounds without a note, which a data set refuses."""
    try:
        return synth.render(patch)
    except SoundingError:
        return None


def test_the_built_in_synthesizer() -> None:
    assert_accepted(SynthSettings("subtractive", load_spec("subtractive")))


def test_dexed() -> None:
    assert_accepted(SynthSettings("dexed", load_spec("dexed")))


@pytest.mark.slow
def test_vital() -> None:
    assert_accepted(SynthSettings("vital", load_spec("vital")))


@pytest.mark.parametrize("kind", [FakeVst3, DeafVst3])
def test_any_vst3_instrument(kind: type[FakeVst3], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[FakeVst3] = []

    def load(*_: str) -> FakeVst3:
        loaded.append(kind(NAMES))
        return loaded[-1]

    monkeypatch.setattr(vst3, "load_plugin", load)
    assert_accepted(SynthSettings("vst3", SPEC, "fake.vst3"), lambda: kind(NAMES))
    assert len(loaded) == 2 + FRESH_RENDERS  # No patch sounded on, so none was rendered again.


@pytest.mark.parametrize("name", ["surge_simple", "surge_xt"])
def test_surge_xt_on_a_fake_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec(name)
    monkeypatch.setattr(surge_xt, "load_plugin", lambda *_: FakeSurgeXT(spec))
    assert_accepted(SynthSettings("surge_xt", spec), lambda: FakeSurgeXT(spec))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["surge_simple", "surge_xt"])
def test_the_real_surge_xt(name: str, surge_xt_plugin: str) -> None:
    if not surge_xt_plugin:
        pytest.skip("needs Surge XT: its .vst3 in SURGE_XT_PLUGIN")
    assert_accepted(SynthSettings("surge_xt", load_spec(name), surge_xt_plugin), lambda: load_plugin(surge_xt_plugin))
