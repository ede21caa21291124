"""Plugins hosted by pedalboard: loading a plugin and its base patch, playing one note, comparing the patch it holds.

A plugin smooths its parameters and keeps echoes. After a change it must run until the change has settled and earlier
sounds have died away; otherwise the next note contains both. Some plugins take in a preset only when they next run.

Every note is ended by its own note-off, and before the patch changes. A plugin need not receive the controllers that
end all notes, and some plugins do not end a note that was begun with another patch. Note-offs for all 128 notes at once
would overflow the event buffers of some plugins.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SECONDS, VELOCITY
from data_pipeline.console.cli import UserError, counted
from data_pipeline.params.kinds import NoteDuration
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH, Audio, DriftError, SoundingError
from data_pipeline.synths.vst3_preset import class_id, read_state

MIN_FLUSH_SECONDS = 0.5
# Enough for most echoes. A sound that lasts longer costs a fresh instance, which takes longer than this flush.
MAX_FLUSH_SECONDS = 16.0
FLUSH_BLOCK_SECONDS = 0.125
SILENCE_PEAK = 10 ** (-90 / 20)
# The same size for every call: with another size the plugin would prepare itself again.
BUFFER_SIZE = 2048

NOTE_ON, NOTE_OFF, CONTROLLER = 0x90, 0x80, 0xB0
ALL_SOUND_OFF, ALL_NOTES_OFF = 120, 123
# pedalboard plays this note when it loads a plugin, and ends it by a controller alone.
WARM_UP_PITCH = 60
# A spec calls a plugin's parameter of such a name ``pitch_``: without the underscore it is the note's own.
NOTE_NAMES = frozenset((PITCH, NOTE_TIMES, *NoteDuration.column_names))
# Differences that an error message names.
DIFFERENCES_SHOWN = 3
NEEDS_PEDALBOARD = "plugins need pedalboard (GPL-3): pip install 'synthjax[render]'"

MidiMessage = tuple[bytes, float]
"""The message and its time in seconds."""


HostedPlugin = Any
"""pedalboard's ``VST3Plugin``; pedalboard is optional. The code uses ``process``, ``preset_data`` (the state as a
``.vstpreset``) and ``parameters`` (objects by name with a ``raw_value`` in 0..1; reading this property is slow).
"""


def load_plugin(path: str | Path, name: str = "") -> Any:
    """Loads a VST3 instrument as pedalboard's ``VST3Plugin``; no display is needed.

    ``name`` chooses a plugin in a file that holds several. Raises UserError where pedalboard or the plugin is missing,
    or the plugin cannot be loaded or is no instrument.
    """
    if not str(path) or not Path(path).exists():
        raise UserError(
            f"there is no plugin at {str(path)!r}: name a .vst3 with --plugin, or fetch Surge XT with make surge-xt"
        )
    try:
        import pedalboard
    except ImportError as error:
        raise UserError(NEEDS_PEDALBOARD) from error
    host = pedalboard.VST3Plugin
    try:
        if name:  # pedalboard does not look at the name where the file holds one plugin.
            _require_choice(host, path, name)
        plugin = host(str(path), plugin_name=name or None)
        if not plugin.is_instrument:
            raise UserError(f"the plugin {path} is an effect; an instrument is needed")
        process(plugin, [(bytes([NOTE_OFF, WARM_UP_PITCH, 0]), 0.0)], FLUSH_BLOCK_SECONDS)
    except UserError:
        raise
    except Exception as error:  # Loading runs the plugin's own code; pedalboard reports in many types.
        if isinstance(error, ValueError):
            _require_choice(host, path, name)
        raise UserError(f"the plugin {path} cannot be loaded: {error}") from error
    return plugin


def why_not_hosted(plugin: str, named_by: str) -> str | None:
    """One line that names the missing plugin or pedalboard, as ``Instrument.missing``."""
    if not plugin or not Path(plugin).exists():
        return f"there is no plugin at {plugin!r}: name a .vst3 with {named_by}"
    return NEEDS_PEDALBOARD if importlib.util.find_spec("pedalboard") is None else None


def _require_choice(host: Any, path: str | Path, name: str) -> None:
    """Raises UserError unless the file holds a plugin of this name or, without a name, only one plugin."""
    names = host.get_plugin_names_for_file(str(path))
    if name not in names if name else len(names) > 1:
        fault = f"holds no plugin called {name!r}" if name else f"holds {len(names)} plugins"
        raise UserError(f"{path} {fault}: choose one with --plugin_name ({', '.join(names)})")


def parameters_by_name(plugin: HostedPlugin) -> dict[str, Any]:
    """The plugin's parameter objects by their names in a spec (see ``NOTE_NAMES``)."""
    # pedalboard's names never end with an underscore, so no two become equal.
    return {f"{name}_" if name in NOTE_NAMES else name: hosted for name, hosted in plugin.parameters.items()}


def load_preset(plugin: HostedPlugin, preset: bytes) -> None:
    """Loads a whole ``.vstpreset`` into the plugin."""
    # pedalboard's own assignment compares the name with those of all parameters, which takes longer than the loading.
    object.__setattr__(plugin, "preset_data", preset)


def load_base_patch(plugin: HostedPlugin, preset: bytes | None) -> None:
    """Loads a base patch and lets the plugin settle; without one the plugin's own first patch is the base.

    Raises UserError for a malformed preset, on which a plugin may crash, and for the preset of another plugin.
    """
    if preset is not None:
        read_state(preset)
        theirs, ours = class_id(preset), class_id(plugin.preset_data)
        if theirs != ours:
            raise UserError(
                f"the preset belongs to another plugin: its class id is {theirs}, that of {plugin.name} is {ours}"
            )
        try:
            load_preset(plugin, preset)
        except RuntimeError as error:
            raise UserError(f"{plugin.name} does not take the preset: {error}") from error
    settle(plugin)  # Parameters may get other names with the base patch, once the plugin runs.


def require_no_differences(synth: str, differences: Sequence[tuple[str, float, float]]) -> None:
    """Raises DriftError for differences (parameter name, expected raw value, found raw value)."""
    if differences:
        named = [f"{name} is {raw:.7g}, not {expected:.7g}" for name, expected, raw in differences[:DIFFERENCES_SHOWN]]
        raise DriftError(f"{synth} holds another patch in {counted(len(differences), 'parameter')}: {'; '.join(named)}")


def play_note(
    plugin: HostedPlugin,
    values: Mapping[str, Any],
    silence: float = MIN_FLUSH_SECONDS,
    *,
    velocity: int = VELOCITY,
    seconds: float = SECONDS,
) -> Audio:
    """Lets the plugin settle, then plays the note of a patch's values. Returns audio (2, T) of ``seconds``.

    ``silence`` is that of ``settle``. Raises SoundingError where the plugin sounds before the note, and UserError where
    it returns audio of another shape.
    """
    silent = settle(plugin, silence)
    pitch, (start, end) = int(values[PITCH]), values[NOTE_TIMES]
    note = [(bytes([NOTE_ON, pitch, velocity]), float(start)), (bytes([NOTE_OFF, pitch, 0]), float(end))]
    shape = (CHANNELS, round(seconds * SAMPLE_RATE))
    # Longer than the sound: the host does not send a note-off that lies at the very end.
    audio = process(plugin, note, seconds + BUFFER_SIZE / SAMPLE_RATE)[:, : shape[1]]
    if audio.shape != shape:
        raise UserError(f"the plugin gave audio of shape {audio.shape}, not {shape}: is it stereo?")
    audio = np.ascontiguousarray(audio, np.float32)
    # Some plugins begin a note with the buffer that holds it.
    before_note = max(0, int(start * SAMPLE_RATE) - BUFFER_SIZE)
    if not (silent and _is_silent(audio[:, :before_note])):
        raise SoundingError(audio)
    return audio


def make_writes_count(hosted: Any) -> None:
    """Changes the parameter so that the host drops none of the later writes.

    A host drops a write that equals its last one, even if the base patch has changed the value since. At least one of
    two different writes reaches the plugin, and from then on the host knows the plugin's value.
    """
    hosted.raw_value = 0.0
    hosted.raw_value = 1.0


def settle(plugin: HostedPlugin, silence: float = MIN_FLUSH_SECONDS) -> bool:
    """Runs the plugin on silence until it has been silent for ``silence`` seconds, at most 16 s in all.

    Returns whether it has fallen silent. Plugins that receive controllers end their echoes at once.
    """
    messages = [(bytes([CONTROLLER, controller, 0]), 0.0) for controller in (ALL_SOUND_OFF, ALL_NOTES_OFF)]
    seconds = silent_seconds = 0.0
    while silent_seconds < silence and seconds < MAX_FLUSH_SECONDS:
        block = process(plugin, messages, FLUSH_BLOCK_SECONDS)
        seconds += FLUSH_BLOCK_SECONDS
        # An echo may follow a gap: a loud block starts the count again.
        silent_seconds = silent_seconds + FLUSH_BLOCK_SECONDS if _is_silent(block) else 0.0
        messages = []
    return silent_seconds >= silence


def _is_silent(audio: NDArray[np.floating]) -> bool:
    return bool(np.abs(audio).max(initial=0.0) < SILENCE_PEAK)  # The maximum is NaN where any sample is NaN.


def process(plugin: HostedPlugin, messages: Sequence[MidiMessage], seconds: float) -> NDArray[np.float32]:
    """Plays messages for ``seconds`` from where the last call ended. Returns audio (2, samples)."""
    return plugin.process(list(messages), seconds, SAMPLE_RATE, CHANNELS, BUFFER_SIZE, False)
