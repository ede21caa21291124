"""The content of a report, without its appearance. Shapes: T samples at 44.1 kHz."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metric:
    """A metric of predictions; ``key`` is its name in ``Clip.metrics``, ``label`` its name on the page."""

    key: str
    label: str
    higher_is_better: bool = False
    unit: str = ""


@dataclass(frozen=True)
class MetricRow:
    """One metric over all sounds: mean, ends of its 95 % interval, median, and the number of sounds.

    ``noise_floor`` is the mean between two renders of the true patch, ``oracle`` the mean between the true patch,
    rendered again, and the target; None if it was not measured.
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
    """One sound: the target, or the render of a candidate.

    ``audio`` is (2, T) with full scale 1.0 (louder is possible), or None if nothing was rendered. ``metrics`` has its
    distances to the target, by ``Metric.key``; one that is missing or not finite is shown as a dash.

    Raises:
      ValueError: for audio of another shape, or with samples that are not finite.
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

    ``predicted`` and ``true`` are places in 0..1. They are None for a category, where only the texts are compared.
    ``spread`` is how far the candidates differ: their standard deviation in 0..1, or the share of candidates that have
    another category. ``true_text``, ``true`` and ``spread`` are None if they are not known.
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
    """One sound with its candidates, best first: the first is the prediction.

    The list of sounds shows the metrics of the prediction and sorts by them.
    """

    name: str
    target: Clip
    candidates: Sequence[Clip] = ()
    parameters: Sequence[ParameterRow] = ()
    notes: Sequence[str] = ()


def metric_values(clip: Clip, metrics: Sequence[Metric]) -> list[float | None]:
    """The metrics of a clip in the order of ``metrics``. Raises ValueError for a metric that is not among them."""
    unknown = clip.metrics.keys() - {metric.key for metric in metrics}
    if unknown:
        raise ValueError(f"{clip.label}: the report knows no metric {sorted(unknown)[0]!r}")
    return [finite(clip.metrics.get(metric.key)) for metric in metrics]


def finite(number: float | None) -> float | None:
    """The number with six digits; None for NaN and infinity, which JSON lacks."""
    return float(f"{number:.6g}") if number is not None and math.isfinite(number) else None


def summary_json(row: MetricRow) -> dict[str, Any]:
    """A row of the summary, as the page's script reads it."""
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
    """A metric, as the page's script reads it."""
    return {"key": metric.key, "label": metric.label, "unit": metric.unit, "higher": metric.higher_is_better}


def parameter_groups_json(rows: Sequence[ParameterRow]) -> list[dict[str, Any]]:
    """The rows by group, as the page's script reads them; groups are in the order of their first row."""
    groups: dict[str, list[list[Any]]] = {}
    for row in rows:
        values = [row.predicted_text, finite(row.predicted), row.true_text, finite(row.true), finite(row.spread)]
        groups.setdefault(row.group, []).append([row.name, *values])
    return [{"label": label, "rows": group} for label, group in groups.items()]
