"""A stand-in for a plugin and its host, with every trap of the real pair (see DESIGN, section 4).

- The host drops a write that equals its last one, even where a preset has changed the value since.
- ``raw_value`` reads the host's last write, so it is stale after a preset.
- A change sounds only after the plugin has run for a while; before that the old patch does.
- Notes ring on, a note off at the very end of a sound is lost, and neither a preset nor a reset stops a note.
- More than ``MAX_EVENTS`` messages at once overflow its event buffer.
- The host refuses the preset of another plugin.
- A preset read back is a larger container than the one given, and the patch in it has an editor's state.

What it plays depends on every value that it truly holds: ``expected_audio`` says how that patch should sound.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.surge import patch as surge_patch
from data_pipeline.synths.surge.patch import base_patch, patch_values

CLASS_ID = b"0123456789ABCDEF0123456789ABCDEF"
SAMPLE_RATE = 44100
SECONDS_TO_SETTLE = 0.4
DECAY_SECONDS = 0.12
HARMONICS = np.arange(1, 5)
MAX_EVENTS = 64
# The end, in seconds, of a note that is never ended.
LOST = 1e9


def container(chunks: Mapping[str, bytes], class_id: bytes = CLASS_ID) -> bytes:
    """A ``.vstpreset`` with these chunks in order."""
    entries, body = b"", b""
    for name, chunk in chunks.items():
        entries += name.encode() + struct.pack("<qq", 48 + len(body), len(chunk))
        body += chunk
    header = b"VST3" + struct.pack("<i", 1) + class_id + struct.pack("<q", 48 + len(body))
    return header + body + b"List" + struct.pack("<i", len(chunks)) + entries


def surge_state(xml: bytes) -> bytes:
    """Surge XT's state around a patch."""
    return b"sub3" + struct.pack("<i", len(xml)) + bytes(24) + xml


def timbre(values: Mapping[str, float]) -> NDArray[np.float64]:
    """Amplitudes (2, harmonics) that depend on every value."""
    raws = np.array([values[name] for name in sorted(values)])
    mix = np.cos(1.7 * np.arange(1, 1 + 2 * len(HARMONICS))[:, None] * np.arange(1, 1 + len(raws)))
    return 0.5 * np.reshape(mix @ raws / len(raws), (2, len(HARMONICS)))


def expected_audio(values: Mapping[str, float], pitch: int, start: float, end: float) -> NDArray[np.float64]:
    """4 s (2, 176400) of a patch that has settled, played alone."""
    times = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    return timbre(values) @ tone(times, pitch, start, end)


def tone(times: NDArray[np.float64], pitch: int, start: float, end: float) -> NDArray[np.float64]:
    """The harmonics (harmonics, samples) of one note that starts at once, holds, and dies away after its end."""
    phase = 2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * (times - start)
    envelope = np.where(times < start, 0.0, np.exp(-np.maximum(times - end, 0.0) / DECAY_SECONDS))
    return np.sin(np.outer(HARMONICS, phase)) * envelope


class FakeParameter:
    """A parameter as the host shows it."""

    def __init__(self, plugin: FakeVst3, name: str, values: Sequence[Any] = ()) -> None:
        self.name = name
        count = len(values)
        self.ranges = {(index / count, (index + 1) / count): value for index, value in enumerate(values)}
        self._plugin = plugin

    @property
    def raw_value(self) -> float:
        return self._plugin.written[self.name]

    @raw_value.setter
    def raw_value(self, raw: float) -> None:
        if raw != self._plugin.written[self.name]:
            self._plugin.written[self.name] = raw
            self._plugin.change({**self._plugin.held, self.name: raw})


class FakeVst3:
    """A plugin with parameters of these names, all at ``initial`` until written.

    Its state is a list of float32 in the order of the names.
    """

    is_instrument = True
    version = "1.0"
    name = "Fake"
    class_id = CLASS_ID

    def __init__(self, names: Sequence[str], initial: float = 0.5) -> None:
        self.held = {name: initial for name in names}
        self.written = dict(self.held)
        self.hum = 0.0
        self.seconds = 0.0
        self.times_parameters_were_read = 0
        self.shown: dict[str, Any] = {name: FakeParameter(self, name) for name in names}
        self._sounding = self.held
        self._settled_at = 0.0
        self._notes: list[list[float]] = []

    def change(self, values: dict[str, float]) -> None:
        """The plugin takes on other values, which sound once it has run for a while."""
        if self.seconds >= self._settled_at:
            self._sounding = self.held
        self.held = values
        self._settled_at = self.seconds + SECONDS_TO_SETTLE

    @property
    def parameters(self) -> Mapping[str, Any]:
        self.times_parameters_were_read += 1
        return self.shown

    @property
    def _parameters(self) -> list[Any]:
        """All parameters, also those that the host does not show by a name."""
        return list(self.shown.values())

    @property
    def preset_data(self) -> bytes:
        chunks = {"Comp": self.dump() + b"JUCEPrivateData", "Cont": b"", "Info": b"<MetaInfo/>"}
        return container(chunks, self.class_id)

    @preset_data.setter
    def preset_data(self, preset: bytes) -> None:
        if preset[8:40].upper() != self.class_id:
            raise RuntimeError("Failed to set preset data for plugin")
        offset = int.from_bytes(preset[40:48], "little")
        start, size = struct.unpack_from("<qq", preset, preset.index(b"Comp", offset) + 4)
        self.change(self.load(preset[start : start + size]))

    def dump(self) -> bytes:
        return struct.pack(f"<{len(self.held)}f", *self.held.values())

    def load(self, state: bytes) -> dict[str, float]:
        return dict(zip(self.held, struct.unpack_from(f"<{len(self.held)}f", state), strict=True))

    def process(
        self,
        midi_messages: Sequence[tuple[bytes, float]],
        duration: float,
        sample_rate: float,
        num_channels: int = 2,
        buffer_size: int = 8192,
        reset: bool = True,
    ) -> NDArray[np.float32]:
        assert len(midi_messages) <= MAX_EVENTS, "the event buffer has overflowed"
        for (status, data, _), time in midi_messages:
            if time >= duration:
                continue
            if status == 0x90:
                self._notes.append([data, self.seconds + time, np.inf])
            for note in self._notes:
                if (status, data) in ((0x80, note[0]), (0xB0, 123)) and note[2] == np.inf:
                    note[2] = self.seconds + time
        times = self.seconds + np.arange(round(duration * sample_rate)) / sample_rate
        audio = np.full((num_channels, len(times)), self.hum)
        new = times >= self._settled_at
        for pitch, start, end in self._notes:
            harmonics = tone(times, int(pitch), start, end)
            audio += np.where(new, timbre(self.held) @ harmonics, timbre(self._sounding) @ harmonics)
        self.seconds += duration
        self._notes = [note for note in self._notes if note[2] > self.seconds - 40 * DECAY_SECONDS]
        return audio.astype(np.float32)


class DeafVst3(FakeVst3):
    """A plugin that receives no controllers, and whose notes no note-off ends once the patch has changed."""

    def change(self, values: dict[str, float]) -> None:
        super().change(values)
        for note in self._notes:
            if note[2] == np.inf:
                note[2] = LOST

    def process(self, midi_messages: Sequence[tuple[bytes, float]], *arguments: Any) -> NDArray[np.float32]:
        return super().process([(message, time) for message, time in midi_messages if message[0] != 0xB0], *arguments)


class FakeSurgeXT(FakeVst3):
    """Surge XT with the parameters of a spec, holding its init patch."""

    name = "Surge XT"
    version = "1.3.4"
    class_id = surge_patch.CLASS_ID

    def __init__(self, spec: ParamSpec, revision: str = "24") -> None:
        self._table = patch_values(spec)
        self._patch = base_patch(spec.name)
        self._patch.set("revision", revision)
        super().__init__(list(self._table))
        self.held = self._sounding = {name: self._raw(name) for name in self._table}
        self.written = dict(self.held)

    def dump(self) -> bytes:
        for name, value in self._table.items():
            self._element(name).set("value", value.text(self.held[name]).decode())
        xml = ElementTree.tostring(self._patch).replace(
            b"</patch>", b'<dawExtraState populated="1"><a /></dawExtraState></patch>'
        )
        return surge_state(xml) + bytes(16)

    def load(self, state: bytes) -> dict[str, float]:
        (length,) = struct.unpack_from("<i", state, 4)
        self._patch = ElementTree.fromstring(state[32 : 32 + length])
        return {name: self._raw(name) for name in self._table}

    def _element(self, name: str) -> ElementTree.Element:
        element = self._patch.find(f"parameters/{self._table[name].tag}")
        assert element is not None
        return element

    def _raw(self, name: str) -> float:
        value = self._table[name]
        raw = value.to_raw(float(self._element(name).get("value", "")))
        return raw if raw == raw else value.choices[0][0]  # The base patch has categories that the spec has not.
