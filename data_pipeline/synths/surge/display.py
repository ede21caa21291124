"""Parameter values as Surge XT's window shows them, without Surge XT: 353.6 ms, 587.33 Hz, -inf dB.

``data/displays.json`` names the unit of every continuous parameter, and the values that have a text of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from data_pipeline.params.kinds import Categorical, Parameter
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.surge import data as surge_data
from data_pipeline.synths.surge.patch import PatchValue, patch_values


def surge_texts(spec: ParamSpec, values: Mapping[str, Any]) -> dict[str, str]:
    """Raw values by name to the texts that Surge XT shows, for those parameters of one of its specs that have a value.

    Raises UserError for a parameter that Surge XT lacks, ValueError for an illegal value.
    """
    in_patch = patch_values(spec)
    given = (p for p in spec.synth_params if p.name in values)
    return {p.name: _parameter_text(p, in_patch[p.name], values[p.name]) for p in given}


def _parameter_text(parameter: Parameter, in_patch: PatchValue, raw: float) -> str:
    if isinstance(parameter, Categorical):
        return _label(parameter.label(raw))
    return _text(parameter.name, in_patch.to_patch(raw))


def _label(label: Any) -> str:
    if isinstance(label, bool):
        return "On" if label else "Off"
    return f"{label:g}" if isinstance(label, float) else str(label)


def _text(name: str, value: float) -> str:
    """The text of a parameter's value in the patch."""
    display = surge_data.read("displays")[name]
    own = {at: text for at, text in display.get("texts", []) if value == at}
    return own.get(value) or _UNITS[display["unit"]](value)


def _number(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # Adding zero takes the sign from -0.


def _seconds(value: float, decimals: int) -> str:
    seconds = 2.0**value
    return f"{_number(1000.0 * seconds, decimals)} ms" if seconds < 1.0 else f"{_number(seconds, 2)} s"


def _amplitude(value: float) -> str:
    """Surge cubes the value for the sound, so a factor of two in the value is 18 dB."""
    return f"{_number(18.0 * math.log2(value), 2)} dB" if value > 0.0 else "-inf dB"


_UNITS: dict[str, Callable[[float], str]] = {
    "percent": lambda value: f"{_number(100.0 * value, 2)} %",
    "cents": lambda value: f"{_number(100.0 * value, 2)} cents",
    "semitones": lambda value: f"{_number(value, 2)} semitones",
    "decibels": lambda value: f"{_number(value, 2)} dB",
    "amplitude": _amplitude,
    "frequency": lambda value: f"{_number(440.0 * 2.0 ** (value / 12.0), 2)} Hz",  # Semitones from concert A.
    "rate": lambda value: f"{_number(2.0**value, 3)} Hz",
    "effect rate": lambda value: f"{_number(2.0**value, 2)} Hz",
    "time": lambda value: _seconds(value, 1),
    "reverb time": lambda value: _seconds(value, 2),
}
