"""What hosted instruments have in common: how pedalboard shows a plugin, and how to play one note on it alone.

A plugin smooths its parameters and keeps echoes: after a change it must run until the change has settled and all
that sounded before has died away, or both would be heard in the next note. A plugin may even take a preset in only
when it next runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cli import UserError
from data_pipeline.synths.protocol import (
    CHANNELS,
    NOTE_TIMES,
    PITCH,
    SAMPLE_RATE,
    SAMPLES,
    SECONDS,
    VELOCITY,
    Audio,
)

MIN_FLUSH_SECONDS = 0.5
MAX_FLUSH_SECONDS = 4.0
FLUSH_BLOCK_SECONDS = 0.125
SILENCE_PEAK = 10 ** (-90 / 20)
# One size for every call: another would make the plugin prepare itself anew.
BUFFER_SIZE = 2048

NOTE_ON, NOTE_OFF, CONTROLLER = 0x90, 0x80, 0xB0
ALL_SOUND_OFF, ALL_NOTES_OFF = 120, 123

MidiMessage = tuple[bytes, float]
"""The message and its time in seconds."""


class HostedParameter(Protocol):
    """One parameter of a plugin; ``raw_value`` lies in 0..1."""

    raw_value: float


class HostedPlugin(Protocol):
    """The part of ``pedalboard.VST3Plugin`` that is used here."""

    @property
    def preset_data(self) -> bytes:
        """The plugin's state as a ``.vstpreset``; ``load_preset`` sets it."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Parameter objects by name (``HostedParameter``); slow to ask for."""
        ...

    def process(
        self,
        midi_messages: Sequence[MidiMessage],
        duration: float,
        sample_rate: float,
        num_channels: int,
        buffer_size: int,
        reset: bool,
    ) -> NDArray[np.float32]:
        """Plays messages for ``duration`` seconds and returns audio (channels, samples)."""
        ...


def load_preset(plugin: HostedPlugin, preset: bytes) -> None:
    """Gives the plugin a whole ``.vstpreset``.

    By the way of ``object``, because pedalboard's own assignment first compares the name with those of all
    parameters: with thousands of them that takes longer than the loading.
    """
    object.__setattr__(plugin, "preset_data", preset)


def play_note(plugin: HostedPlugin, values: Mapping[str, Any]) -> Audio:
    """Lets the plugin settle, then plays the note of a row's values: audio (2, 176400).

    Raises UserError where the plugin gives audio of another shape.
    """
    settle(plugin)
    pitch, (start, end) = int(values[PITCH]), values[NOTE_TIMES]
    note = [(bytes([NOTE_ON, pitch, VELOCITY]), float(start)), (bytes([NOTE_OFF, pitch, 0]), float(end))]
    audio = process(plugin, note, SECONDS)
    if audio.shape != (CHANNELS, SAMPLES):
        raise UserError(f"the plugin gave audio of shape {audio.shape}, not {(CHANNELS, SAMPLES)}: is it stereo?")
    return np.ascontiguousarray(audio, np.float32)


def make_writes_count(hosted: HostedParameter) -> None:
    """Changes the parameter so that the host drops none of the writes that follow.

    It may think that it wrote what the base patch has since replaced. Of two different writes one is no repetition, and
    from then on the host knows what the plugin holds.
    """
    hosted.raw_value = 0.0
    hosted.raw_value = 1.0


def settle(plugin: HostedPlugin) -> None:
    """Runs the plugin on silence until it has been silent for half a second, at most 4 s.

    Ends every note first: a note's end at the very end of a sound lies outside it and is never sent.
    """
    messages = [(bytes([CONTROLLER, controller, 0]), 0.0) for controller in (ALL_SOUND_OFF, ALL_NOTES_OFF)]
    seconds = silent_seconds = 0.0
    while silent_seconds < MIN_FLUSH_SECONDS and seconds < MAX_FLUSH_SECONDS:
        block = process(plugin, messages, FLUSH_BLOCK_SECONDS)
        seconds += FLUSH_BLOCK_SECONDS
        is_silent = np.abs(block).max(initial=0.0) < SILENCE_PEAK
        # An echo may follow after a gap: one loud block starts the count anew.
        silent_seconds = silent_seconds + FLUSH_BLOCK_SECONDS if is_silent else 0.0
        messages = []


def process(plugin: HostedPlugin, messages: Sequence[MidiMessage], seconds: float) -> NDArray[np.float32]:
    """Plays messages for so many seconds, going on from where the last call ended."""
    return plugin.process(list(messages), seconds, SAMPLE_RATE, CHANNELS, BUFFER_SIZE, False)
