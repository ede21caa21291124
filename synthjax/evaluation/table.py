"""The table of metrics that every measurement prints and writes, and that ``study`` reads.

A metric has a value for every row (sound) that was measured. A kind says whose values they are: the model's prediction,
or what stands beside it, such as a random answer. metrics.json holds

    {"about": {...}, "count": N, "metrics": {KIND: {METRIC: SUMMARY}}, "details": {...}}

where SUMMARY has mean, low, high, median and count; low and high are the ends of the mean's 95 % interval.

The table takes any metric. Metrics of parameters are computed in ``metrics/parameters.py``, metrics of sounds in
``data_pipeline/audio/metrics.py``, metrics of the k-osc task in ``k_osc/metrics.py``.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import is_of_system, why
from synthjax.metrics.parameters import PerRow, Summary, summarise

METRICS_FILE = "metrics.json"
PREDICTION, ORACLE, NOISE_FLOOR, RANDOM = "prediction", "oracle", "noise_floor", "random"

Figures = Mapping[str, Mapping[str, PerRow]]
"""Values (N,) by kind and metric. A value that is missing is masked (``numpy.ma``)."""


@dataclass(frozen=True)
class Table:
    """Metrics over ``count`` rows.

    Attributes:
      about: what was measured, and how: the run, checkpoint, split and sampler.
      count: N.
      metrics: summaries by kind and metric.
      details: other figures, as JSON values.
    """

    about: Mapping[str, Any]
    count: int
    metrics: Mapping[str, Mapping[str, Summary]]
    details: Mapping[str, Any] = field(default_factory=dict)


def tabulate(about: Mapping[str, Any], count: int, figures: Figures, **details: Any) -> Table:
    """The table of the figures of ``count`` rows."""
    metrics = {
        kind: {name: summarise(np.ma.compressed(values)) for name, values in of_kind.items()}
        for kind, of_kind in figures.items()
    }
    return Table(about, count, metrics, details)


def print_table(table: Table) -> None:
    """Prints a line for each metric and kind; the kinds of a metric stand one below the other."""
    print(f"{'metric':<36}{'mean':>10}   95 % interval          median     n = {table.count}")
    for name in dict.fromkeys(name for of_kind in table.metrics.values() for name in of_kind):
        for kind, of_kind in table.metrics.items():
            if name in of_kind:
                one, label = of_kind[name], name if kind == PREDICTION else f"{name}, {kind}"
                interval = f"{one.low:.5f} .. {one.high:.5f}"
                print(f"{label:<36}{one.mean:>10.5f}   {interval:<20}{one.median:>10.5f}{one.count:>8}")


def write_table(path: Path, table: Table) -> None:
    """Writes metrics.json. It keeps what the file already says of the same rows and ``table`` does not measure."""
    before = read_table(path)
    metrics, details = dict(table.metrics), dict(table.details)
    if before is not None and (before.about, before.count) == (table.about, table.count):
        kinds = dict.fromkeys([*metrics, *before.metrics])
        metrics = {kind: {**before.metrics.get(kind, {}), **metrics.get(kind, {})} for kind in kinds}
        details = {**before.details, **details}
    content = {"about": table.about, "count": table.count, "metrics": summaries(metrics), "details": details}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def summaries(metrics: Mapping[str, Mapping[str, Summary]]) -> dict[str, dict[str, dict[str, float]]]:
    """Summaries by kind and metric, as JSON values."""
    return {kind: {name: asdict(one) for name, one in of_kind.items()} for kind, of_kind in metrics.items()}


def read_table(path: Path) -> Table | None:
    """The table of a metrics.json, also of one from before tables had kinds; None where there is none to read.

    Raises UserError if the system cannot read the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "metrics" not in content:
            return _read_old(content)
        metrics = {
            kind: {name: Summary(**summary) for name, summary in of_kind.items()}
            for kind, of_kind in content["metrics"].items()
        }
        return Table(content["about"], content["count"], metrics, content["details"])
    except OSError as error:
        if is_of_system(error):
            raise UserError(f"{path} cannot be read: {why(error)}") from error
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_old(content: dict[str, Any]) -> Table:
    """The table of a metrics.json of 2026-11 or before. There, settings and metrics stood side by side.

    A metric was written as NAME and NAME_ci95. Those of the k-osc task stood under "model" and "random"; those of
    rendered sounds, with their medians, under "audio".
    """
    audio = content.pop("audio", {})
    details: dict[str, Any] = {}
    kinds = {PREDICTION: content.pop("model", content), RANDOM: content.pop("random", {})}
    for name in ("per_parameter_mse", "per_parameter_mse_best_swap"):
        if name in content:
            details[name] = content.pop(name)
    count = content.pop("count") if "count" in content else content["rows"]
    metrics: dict[str, dict[str, Summary]] = {}
    for kind, values in kinds.items():
        names = [name for name in values if f"{name}_ci95" in values]
        for name in names:
            low, high = values.pop(f"{name}_ci95")
            metrics.setdefault(kind, {})[name] = Summary(values.pop(name), low, high, math.nan, count)
    if audio:
        details["not_rendered"] = audio["not_rendered"]
    for kind in (PREDICTION, ORACLE, NOISE_FLOOR):
        for name, one in audio.get(kind, {}).items():
            low, high = one["ci95"]
            metrics.setdefault(kind, {})[name] = Summary(one["mean"], low, high, one["median"], audio["count"])
    return Table(content, count, metrics, details)


def write_samples(path: Path, names: Sequence[str], figures: Figures) -> None:
    """Writes per_sample.csv: a line for each row with its ``name`` and every value; one that is missing is empty."""
    columns = {
        name if kind == PREDICTION else f"{name}_{kind}": values.tolist()
        for kind, of_kind in figures.items()
        for name, values in of_kind.items()
    }
    lines = [
        {"index": index, "name": name, **{column: values[index] for column, values in columns.items()}}
        for index, name in enumerate(names)
    ]
    write_csv(path, lines)


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes lines with the same keys as CSV, floats to their last digit."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number, line in enumerate(lines):
            if number == 0:
                writer.writerow(line)
            writer.writerow(line.values())
