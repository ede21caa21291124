"""What a report shows of a predicted sound, from the prediction and, where it is known, the true patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.param_groups import groups, short_names
from data_pipeline.param_kinds import Categorical, Discrete, NoteDuration, Parameter
from data_pipeline.param_spec import ParamSpec
from data_pipeline.synths.choice import display_texts
from data_pipeline.synths.protocol import PITCH
from synthjax.param_metrics import summarise
from synthjax.report import Metric, MetricRow, ParameterRow

AUDIO_METRICS = (
    Metric("mss", "MSS", unit="dB"),
    Metric("wmfcc", "wMFCC"),
    Metric("sot", "SOT"),
    Metric("rms", "RMS", higher_is_better=True),
)
NOTES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")


def parameter_rows(
    spec: ParamSpec, row: ArrayLike, *, true: ArrayLike | None = None, spread: Mapping[str, float] | None = None
) -> list[ParameterRow]:
    """Every parameter of a row (W,) as text and as a place in its range; note start and end as two."""
    predicted = _shown_values(spec, row)
    known = None if true is None else _shown_values(spec, true)
    group, short = groups(spec), short_names(spec)
    rows = []
    for parameter in spec.parameters:
        name = parameter.name
        mine = predicted[name]
        theirs = [(None, None)] * len(mine) if known is None else known[name]
        labels = ("Start", "End") if isinstance(parameter, NoteDuration) else (short[name],)
        for label, (text, place), (true_text, true_place) in zip(labels, mine, theirs, strict=True):
            uncertainty = None if spread is None else spread[name]
            rows.append(ParameterRow(group[name], label, text, place, true_text, true_place, uncertainty))
    return rows


def _shown_values(spec: ParamSpec, row: ArrayLike) -> dict[str, list[tuple[str, float | None]]]:
    """Of every parameter of a row, by name: text and place in 0..1; two for the note's times."""
    values = spec.decode(row)
    texts = display_texts(spec, values)
    return {parameter.name: _shown(parameter, values[parameter.name], texts) for parameter in spec.parameters}


def _shown(parameter: Parameter, value: Any, texts: Mapping[str, str]) -> list[tuple[str, float | None]]:
    if isinstance(parameter, Categorical):
        return [(texts[parameter.name], None)]
    places = parameter.encode(value)
    if isinstance(parameter, NoteDuration):
        return [(f"{seconds:.2f} s", float(place)) for seconds, place in zip(value, places, strict=True)]
    if isinstance(parameter, Discrete):
        return [(note_name(value) if parameter.name == PITCH else str(value), float(places[0]))]
    return [(texts[parameter.name], float(places[0]))]


def note_name(pitch: int) -> str:
    """A MIDI note number by name, middle C (60) being C4."""
    return f"{NOTES[pitch % 12]}{pitch // 12 - 1} ({pitch})"


def described(about: Mapping[str, Any]) -> dict[str, str]:
    """What a report is about, for the line under its title; settings within settings as one text."""
    texts = {}
    for name, value in about.items():
        nested = ", ".join(f"{key} {setting}" for key, setting in value.items()) if isinstance(value, Mapping) else None
        texts[name.capitalize()] = nested or str(value)
    return texts


def metric_row(
    metric: Metric, values: np.ndarray, *, noise_floor: np.ndarray | None = None, oracle: np.ndarray | None = None
) -> MetricRow:
    """A metric's values over sounds (N,) as a row of the summary, beside what could be reached."""
    mean, low, high = summarise(values)
    floor, best = (None if reached is None else float(reached.mean()) for reached in (noise_floor, oracle))
    return MetricRow(metric, mean, low, high, float(np.median(values)), len(values), floor, best)


def spread_evenly(values: np.ndarray, count: int) -> list[int]:
    """Indices of ``count`` values from the least to the greatest, evenly over their order."""
    order = np.argsort(values, kind="stable")
    return [int(order[place]) for place in np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
