"""The decoder of a row for people and tables: every number of a patch with its name, group, text and place.

``ParamSpec.decode`` gives the values; this module adds names and texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.params.kinds import Categorical, Continuous, NoteDuration, Parameter
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.choice import instrument_of
from data_pipeline.synths.instrument import Instrument
from data_pipeline.synths.protocol import PITCH

NOTES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


@dataclass(frozen=True)
class DecodedValue:
    """One number of a decoded row.

    ``parameter`` is the parameter's name in the spec. ``name`` is the number's own name; it differs for the note's
    start and end, which are one parameter. ``group`` and ``label`` are the headings that people read. ``value`` is raw
    (times in seconds), ``text`` is the value as the synthesizer shows it. ``place`` is the position in the parameter's
    range, 0..1; None for a category.
    """

    parameter: str
    name: str
    group: str
    label: str
    value: float
    text: str
    place: float | None


def decode_row(spec: ParamSpec, row: ArrayLike) -> list[DecodedValue]:
    """Decodes any real row (W,): its numbers in row order. Raises ValueError as ``ParamSpec.decode`` does."""
    return decode_values(spec, spec.decode(row))


def decode_values(spec: ParamSpec, values: Mapping[str, Any]) -> list[DecodedValue]:
    """The decoded numbers, in row order, of raw values by parameter name; values may be missing."""
    own = instrument_of(spec) or Instrument()
    headings, texts = own.panel.headings(spec), own.texts(spec, values)
    decoded = []
    for parameter in spec.parameters:
        if parameter.name not in values:
            continue
        name, value = parameter.name, values[parameter.name]
        group, label = headings[name]
        if isinstance(parameter, NoteDuration):
            for each, at, seconds, place in zip(
                parameter.column_names, ("Start", "End"), value, parameter.encode(value), strict=True
            ):
                decoded.append(DecodedValue(name, each, group, at, seconds, f"{seconds:.2f} s", float(place)))
        else:
            text = texts[name] if name in texts else _text(parameter, value)
            place = None if isinstance(parameter, Categorical) else float(parameter.encode(value)[0])
            decoded.append(DecodedValue(name, name, group, label, value, text, place))
    return decoded


def value_names(spec: ParamSpec) -> list[str]:
    """The names (P,) of a row's decoded numbers, as in ``DecodedValue.name``."""
    names: list[str] = []
    for parameter in spec.parameters:
        names += parameter.column_names if isinstance(parameter, NoteDuration) else [parameter.name]
    return names


def decode_numbers(spec: ParamSpec, row: ArrayLike) -> list[float]:
    """The decoded numbers (P,) of a row (W,), as in ``DecodedValue.value``. Faster than ``decode_row``: no texts."""
    return [float(number) for value in spec.decode(row).values() for number in np.atleast_1d(value)]


def note_name(pitch: int) -> str:
    """The name of a MIDI note number. Middle C (60) is C4."""
    return f"{NOTES[pitch % 12]}{pitch // 12 - 1} ({pitch})"


def _text(parameter: Parameter, value: float) -> str:
    if isinstance(parameter, Categorical):
        return str(parameter.label(value))
    if isinstance(parameter, Continuous):
        return f"{value:.3f}"
    return note_name(int(value)) if parameter.name == PITCH else str(value)
