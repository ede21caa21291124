"""What a report says, without how it looks. Shapes: T samples at 44.1 kHz."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metric:
    """A number that says how good a prediction is; ``key`` names it in ``Clip.metrics``, ``label`` on the page."""

    key: str
    label: str
    higher_is_better: bool = False
    unit: str = ""


@dataclass(frozen=True)
class MetricRow:
    """One metric over all sounds: mean with its 95 % interval, median, and how many sounds count.

    ``noise_floor`` is the mean between two renders of the same patch, ``oracle`` that of the true parameters rendered
    again; None where it was not measured.
    """

    metric: Metric
    mean: float
    low: float
    high: float
    median: float
    count: int
    noise_floor: float | None = None
    oracle: float | None = None


@dataclass(frozen=True)
class Clip:
    """One sound to hear and see: the target, or a candidate's re-render.

    ``audio`` is (2, T) with full scale 1.0 (louder is possible), or None where nothing was rendered. ``metrics``
    compares it with the target, by ``Metric.key``; one that is missing or not finite is shown as a dash.
    """

    label: str
    audio: NDArray[np.floating] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.audio is None:
            return
        if self.audio.ndim != 2 or self.audio.shape[0] != 2 or self.audio.shape[1] == 0:
            raise ValueError(f"{self.label}: audio must be (2, samples), not {self.audio.shape}")
        if not np.isfinite(self.audio).all():
            raise ValueError(f"{self.label}: audio holds samples that are not finite")


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of a sound, as text and as a place in its range.

    ``predicted`` and ``true`` lie on 0..1; they are None for a category, whose texts alone are compared.
    ``spread`` tells how far the candidates disagree: their standard deviation on 0..1 or, for a category, the share
    of candidates with another one. What is not known is None.
    """

    group: str
    name: str
    predicted_text: str
    predicted: float | None
    true_text: str | None = None
    true: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class SoundEntry:
    """Everything about one sound; ``candidates`` best first, the first being the prediction.

    The metrics of the prediction are those that the list of sounds shows and sorts by.
    """

    name: str
    target: Clip
    candidates: Sequence[Clip] = ()
    parameters: Sequence[ParameterRow] = ()
    notes: Sequence[str] = ()


def metric_values(clip: Clip, metrics: Sequence[Metric]) -> list[float | None]:
    """A clip's numbers in the order of ``metrics``. Raises ValueError for one that ``metrics`` does not name."""
    unknown = clip.metrics.keys() - {metric.key for metric in metrics}
    if unknown:
        raise ValueError(f"{clip.label}: the report knows no metric {sorted(unknown)[0]!r}")
    return [finite(clip.metrics.get(metric.key)) for metric in metrics]


def finite(number: float | None) -> float | None:
    """The number at six digits, enough for any reader; None, which JSON has, for NaN and infinity, which it lacks."""
    return float(f"{number:.6g}") if number is not None and math.isfinite(number) else None


def summary_json(row: MetricRow) -> dict[str, Any]:
    """A row of the summary as the page reads it."""
    numbers = {
        "mean": row.mean,
        "low": row.low,
        "high": row.high,
        "median": row.median,
        "floor": row.noise_floor,
        "oracle": row.oracle,
    }
    return {**metric_json(row.metric), "count": row.count} | {key: finite(value) for key, value in numbers.items()}


def metric_json(metric: Metric) -> dict[str, Any]:
    """A metric as the page reads it."""
    return {"key": metric.key, "label": metric.label, "unit": metric.unit, "higher": metric.higher_is_better}


def parameter_groups_json(rows: Sequence[ParameterRow]) -> list[dict[str, Any]]:
    """Rows by group, groups in the order of their first row."""
    groups: dict[str, list[list[Any]]] = {}
    for row in rows:
        values = [row.predicted_text, finite(row.predicted), row.true_text, finite(row.true), finite(row.spread)]
        groups.setdefault(row.group, []).append([row.name, *values])
    return [{"label": label, "rows": group} for label, group in groups.items()]
