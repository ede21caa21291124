"""Turns predictions and metrics into the content of reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.decoding import decode_row
from synthjax.evaluation.table import NOISE_FLOOR, ORACLE, PREDICTION
from synthjax.inference.scoring import SOUNDING
from synthjax.metrics.parameters import Summary
from synthjax.report import Metric, MetricRow, ParameterRow

AUDIO_METRICS = (
    Metric("mss", "MSS", unit="dB"),
    Metric("wmfcc", "wMFCC"),
    Metric("sot", "SOT"),
    Metric("rms", "RMS", higher_is_better=True),
)

# Sounds from outside also have each metric over the time in which they sound.
PREDICTION_METRICS = (
    *AUDIO_METRICS,
    *(replace(metric, key=metric.key + SOUNDING, label=f"{metric.label}, sounding") for metric in AUDIO_METRICS),
)


def parameter_rows(
    spec: ParamSpec, row: ArrayLike, *, true: ArrayLike | None = None, spread: Mapping[str, float] | None = None
) -> list[ParameterRow]:
    """Returns every number of a row (W,) as text and place, beside those of the true row (W,) where it is known.

    ``spread`` is by parameter name, as ``candidates.spread`` returns it.
    """
    predicted = decode_row(spec, row)
    known = [(None, None)] * len(predicted) if true is None else [(p.text, p.place) for p in decode_row(spec, true)]
    return [
        ParameterRow(p.group, p.label, p.text, p.place, *theirs, None if spread is None else spread[p.parameter])
        for p, theirs in zip(predicted, known, strict=True)
    ]


def described(about: Mapping[str, Any]) -> dict[str, str]:
    """The texts under a report's title, by name; nested settings become one text."""
    texts = {}
    for name, value in about.items():
        nested = ", ".join(f"{key} {setting}" for key, setting in value.items()) if isinstance(value, Mapping) else None
        texts[name.replace("_", " ").capitalize()] = nested or str(value)
    return texts


def metric_rows(metrics: Mapping[str, Mapping[str, Summary]]) -> list[MetricRow]:
    """The prediction's audio metrics as rows of the report's summary, beside noise floor and oracle.

    ``metrics`` are those of an ``evaluation.table.Table``, by kind and name.
    """
    rows = []
    for metric in PREDICTION_METRICS:
        one, floor, oracle = (metrics.get(kind, {}).get(metric.key) for kind in (PREDICTION, NOISE_FLOOR, ORACLE))
        if one is not None:
            means = [None if other is None else other.mean for other in (floor, oracle)]
            rows.append(MetricRow(metric, one.mean, one.low, one.high, one.median, one.count, *means))
    return rows


def spread_evenly(values: np.ndarray, count: int) -> list[int]:
    """The indices of ``count`` of the values, spread evenly over their order, from the least to the greatest."""
    order = np.argsort(values, kind="stable")
    return [int(order[place]) for place in np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
