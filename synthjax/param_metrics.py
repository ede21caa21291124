"""Parameter metrics: predicted against true rows in [0, 1] columns.

Shapes: N rows, W columns, P orders of the interchangeable oscillators.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from data_pipeline.param_spec import Categorical, Discrete, ParamSpec

Rows = Float[np.ndarray, "N W"]
PerRow = Float[np.ndarray, " N"]
SWAPPED = "_best_swap"


def swap_to_best(predicted: Rows, true: Rows, spec: ParamSpec) -> Rows:
    """Every predicted row with its interchangeable oscillators in the order that fits the true row best."""
    orders = spec.column_permutations()
    costs = np.stack([np.square(predicted[:, order] - true).mean(axis=1) for order in orders])
    best = orders[costs.argmin(axis=0)]
    return np.take_along_axis(predicted, best, axis=1)


def row_metrics(predicted: Rows, true: Rows, spec: ParamSpec) -> dict[str, PerRow]:
    """For every row: ``mse``; ``category_accuracy`` (argmax over each one-hot group, where the spec has any);
    ``pitch_within_semitone`` of the decoded, rounded pitch; and each again after the best swap."""
    metrics = _row_metrics(predicted, true, spec)
    if len(spec.column_permutations()) > 1:
        swapped = _row_metrics(swap_to_best(predicted, true, spec), true, spec)
        metrics |= {f"{name}{SWAPPED}": values for name, values in swapped.items()}
    return metrics


def _row_metrics(predicted: Rows, true: Rows, spec: ParamSpec) -> dict[str, PerRow]:
    metrics = {"mse": np.square(predicted - true).mean(axis=1, dtype=np.float64)}
    hits = [
        predicted[:, columns].argmax(axis=1) == true[:, columns].argmax(axis=1)
        for parameter, columns in _parameters(spec)
        if isinstance(parameter, Categorical)
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


def _parameters(spec: ParamSpec) -> list[tuple[object, slice]]:
    return [(parameter, spec.slices[parameter.name]) for parameter in spec.parameters]


def per_parameter_mse(predicted: Rows, true: Rows, spec: ParamSpec) -> dict[str, float]:
    """Mean squared error of each parameter over its columns and all rows."""
    error = np.square(predicted - true).mean(axis=0, dtype=np.float64)
    return {name: float(error[columns].mean()) for name, columns in spec.slices.items()}


def summarise(values: PerRow, seed: int = 0, resamples: int = 2_000) -> tuple[float, float, float]:
    """Mean with its 95 % bootstrap interval (percentile method): (mean, low, high)."""
    generator = np.random.default_rng(seed)
    count = len(values)
    means = [values[generator.integers(0, count, count)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
