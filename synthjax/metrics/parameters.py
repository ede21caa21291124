"""Metrics of parameters: predicted rows against true rows, in [0, 1] columns.

Shapes: N rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_pipeline.params.spec import Categorical, Discrete, ParamSpec

Rows = Float[np.ndarray, "N W"]
PerRow = Float[np.ndarray, " N"]
SWAPPED = "_best_swap"


def swap_to_best(predicted: Rows, true: Rows, spec: ParamSpec) -> Rows:
    """The predicted rows, each with its interchangeable oscillators in the order that is nearest to the true row."""
    orders = spec.column_permutations()
    costs = np.stack([np.square(predicted[:, order] - true).mean(axis=1) for order in orders])
    best = orders[costs.argmin(axis=0)]
    return np.take_along_axis(predicted, best, axis=1)


def row_metrics(predicted: Rows, true: Rows, spec: ParamSpec) -> dict[str, PerRow]:
    """Metrics by name, a value for each row.

    ``mse``; ``category_accuracy``, by argmax over each one-hot group, if the spec has any; ``pitch_within_semitone`` of
    the decoded, rounded pitch. If oscillators are interchangeable, each also after the best swap (``_best_swap``).
    """
    metrics = _row_metrics(predicted, true, spec)
    if len(spec.column_permutations()) > 1:
        swapped = _row_metrics(swap_to_best(predicted, true, spec), true, spec)
        metrics |= {f"{name}{SWAPPED}": values for name, values in swapped.items()}
    return metrics


def _row_metrics(predicted: Rows, true: Rows, spec: ParamSpec) -> dict[str, PerRow]:
    metrics = {"mse": np.square(predicted - true).mean(axis=1, dtype=np.float64)}
    hits = [
        predicted[:, columns].argmax(axis=1) == true[:, columns].argmax(axis=1)
        for columns in [spec.slices[one.name] for one in spec.parameters if isinstance(one, Categorical)]
    ]
    if hits:
        metrics["category_accuracy"] = np.mean(hits, axis=0)
    for parameter in spec.note_params:
        if isinstance(parameter, Discrete):
            columns = spec.slices[parameter.name]
            notes = [_semitones(rows[:, columns], parameter) for rows in (predicted, true)]
            metrics[f"{parameter.name}_within_semitone"] = (np.abs(notes[0] - notes[1]) <= 1).astype(np.float64)
    return metrics


def _semitones(columns: np.ndarray, parameter: Discrete) -> np.ndarray:
    return np.array([parameter.decode(row) for row in columns])


def per_parameter_mse(predicted: Rows, true: Rows, spec: ParamSpec) -> dict[str, float]:
    """Mean squared error of each parameter over its columns and all rows."""
    error = np.square(predicted - true).mean(axis=0, dtype=np.float64)
    return {name: float(error[columns].mean()) for name, columns in spec.slices.items()}


@dataclass(frozen=True)
class Summary:
    """A metric over ``count`` rows; ``low`` and ``high`` are the ends of the 95 % interval of the mean."""

    mean: float
    low: float
    high: float
    median: float
    count: int


def summarise(values: PerRow, seed: int = 0, resamples: int = 2_000) -> Summary:
    """The summary of values, with a bootstrap interval (percentile method)."""
    generator = np.random.default_rng(seed)
    count = len(values)
    means = [values[generator.integers(0, count, count)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Summary(float(values.mean()), float(low), float(high), float(np.median(values)), count)
