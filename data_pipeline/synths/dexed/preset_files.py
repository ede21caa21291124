"""DX7 voices of a ``.syx`` file as people read them, and the file written again."""

from __future__ import annotations

from data_pipeline.synths.dexed.syx import read_syx, write_banks, write_single
from data_pipeline.synths.dexed.voice import COMMON, OPERATOR, Voice
from data_pipeline.synths.shown_patch import ShownPatch, ShownValue

SPEC = "dexed"
# The DX7's panel shows these values with a number added.
_OFFSETS = {"algorithm": 1, "detune": -7, "transpose": -24}
_TEXTS = {
    "left_curve": ("-LIN", "-EXP", "+EXP", "+LIN"),
    "right_curve": ("-LIN", "-EXP", "+EXP", "+LIN"),
    "frequency_mode": ("ratio", "fixed"),
    "oscillator_key_sync": ("off", "on"),
    "lfo_key_sync": ("off", "on"),
    "lfo_wave": ("triangle", "saw down", "saw up", "square", "sine", "sample & hold"),
}


def show(content: bytes) -> tuple[list[ShownPatch], list[str]]:
    """The voices of a file; see ``preset_files.PresetFormat``."""
    found = read_syx(content)
    return [_shown(voice) for voice in found.voices], found.remarks


def convert(content: bytes, ending: str) -> bytes:
    """The same voices: one alone as a single voice, several as banks of 32. Values beyond their range are limited."""
    voices = read_syx(content).voices
    return write_single(voices[0]) if len(voices) == 1 else b"".join(write_banks(voices))


def _shown(voice: Voice) -> ShownPatch:
    limited = voice.limited().values
    values = []
    for op in range(1, 7):
        for name in OPERATOR:
            full = f"op_{op}_{name}"
            values.append(ShownValue(full, f"Operator {op}", _label(name), limited[full], _text(name, limited[full])))
    values += [ShownValue(name, *_place(name), limited[name], _text(name, limited[name])) for name in COMMON]
    outside = [f"{name} is {value}, beyond its range" for name, value in voice.beyond_range().items()]
    return ShownPatch(voice.name, {}, SPEC, values, outside)


def _text(name: str, value: int) -> str:
    return _TEXTS[name][value] if name in _TEXTS else str(value + _OFFSETS.get(name, 0))


def _place(name: str) -> tuple[str, str]:
    """Group and label of a value of the whole voice, as the DX7's panel groups them."""
    for prefix, group in (("pitch_eg_", "Pitch EG"), ("lfo_", "LFO")):
        if name.startswith(prefix):
            return group, _label(name.removeprefix(prefix))
    return "Voice", _label(name)


def _label(name: str) -> str:
    words = name.replace("_", " ").replace("eg ", "EG ")
    return words[:1].upper() + words[1:]
