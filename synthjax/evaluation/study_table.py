"""The tables and the figure of a study.

An experiment is a point of the study's grid. Each of its seeds has the mean of every metric over held-out rows. The
random answers that every run was measured beside are experiments of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_pipeline.console.atomic import atomic_path
from synthjax.evaluation.table import PREDICTION, RANDOM, Table, write_csv

DPI = 120


@dataclass(frozen=True)
class Finished:
    """A run that is done: its point of the grid, its seed and its table of metrics."""

    choices: dict[str, Any]
    seed: int
    table: Table


@dataclass(frozen=True)
class Experiment:
    """A point of the grid, and the mean of each metric in every seed."""

    choices: dict[str, Any]
    means: dict[str, list[float]]


def write_tables(folder: Path, study: ml_collections.ConfigDict, runs: Sequence[Finished]) -> None:
    """Writes table.csv, table.md and figure.png of the finished runs."""
    experiments = list(collect(runs, study.figure.lines))
    write_csv(folder / "table.csv", [_line(run) for run in runs])
    with atomic_path(folder / "table.md") as path:
        path.write_text(markdown(study, experiments), encoding="utf-8")
    with atomic_path(folder / "figure.png") as path:
        FigureCanvasAgg(draw(study, experiments)).print_png(path)


def collect(runs: Sequence[Finished], lines: str) -> Iterator[Experiment]:
    """The experiments, each of the runs that differ only in their seed; those of the random answers come last."""
    groups: dict[tuple[Any, ...], tuple[dict[str, Any], list[dict[str, float]]]] = {}
    for kind in (PREDICTION, RANDOM):
        for run in runs:
            choices = run.choices if kind == PREDICTION else run.choices | {lines: RANDOM}
            of_seeds = groups.setdefault(tuple(choices.values()), (choices, []))[1]
            means = {name: summary.mean for name, summary in run.table.metrics[kind].items()}
            # All runs of a seed are measured beside the same random answers.
            if means not in of_seeds:
                of_seeds.append(means)
    for choices, of_seeds in groups.values():
        yield Experiment(choices, {name: [means[name] for means in of_seeds] for name in of_seeds[0]})


def _line(run: Finished) -> dict[str, Any]:
    """A run's line of table.csv: its choices, seed and steps, and every metric with its 95 % interval over rows."""
    line = run.choices | {"seed": run.seed, "steps": run.table.about["checkpoint"], "rows": run.table.count}
    for name, one in run.table.metrics[PREDICTION].items():
        line |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
    return line


def markdown(study: ml_collections.ConfigDict, experiments: Sequence[Experiment]) -> str:
    """A table with a line for each experiment: means over seeds, and half the distance between the extreme seeds."""
    if not experiments:
        return ""
    metrics = list(study.figure.metrics)
    keys = list(experiments[0].choices)
    rows = [[*keys, "seeds", *metrics], ["---"] * (len(keys) + 1 + len(metrics))]
    for experiment in experiments:
        seeds = len(experiment.means[metrics[0]])
        cells = [_cell(experiment.means[metric]) for metric in metrics]
        rows.append([*map(str, experiment.choices.values()), str(seeds), *cells])
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    steps, count = study.overrides.train.steps, study.rows
    return f"{steps:,} steps a run, {count:,} held-out rows a seed; lower is better.\n\n{lines}"


def _cell(means: Sequence[float]) -> str:
    spread = f" ± {(max(means) - min(means)) / 2:.3g}" if len(means) > 1 else ""
    return f"{np.mean(means):.4g}{spread}"


def draw(study: ml_collections.ConfigDict, experiments: Sequence[Experiment]) -> Figure:
    """The figure: a row for each metric, a column for each panel, a line for each model, a point for each seed."""
    layout = study.figure
    panels = [panel for panel in study.grid[layout.panels] if _of(experiments, {layout.panels: panel})]
    metrics = list(layout.metrics)
    size = (4.5 * max(len(panels), 1), 3.0 * len(metrics))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(len(metrics), max(len(panels), 1), squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(grid, metrics, strict=True):
        row[0].set_ylabel(metric.replace("_", " "))
        for axes, panel in zip(row, panels, strict=False):
            _draw_panel(axes, _of(experiments, {layout.panels: panel}), metric, layout)
    for axes, panel in zip(grid[0], panels, strict=False):
        axes.set_title(panel)
    for axes in grid[-1]:
        axes.set_xlabel(layout.against)
    # In an unfinished study, one panel may have more lines than another.
    lines = {line.get_label(): line for axes in grid[0] for line in axes.get_lines()}
    if lines:
        figure.legend(list(lines.values()), list(lines), loc="outside upper center", ncols=len(lines), fontsize=8)
    return figure


def _draw_panel(axes: Any, experiments: Sequence[Experiment], metric: str, layout: ml_collections.ConfigDict) -> None:
    against = sorted({experiment.choices[layout.against] for experiment in experiments})
    for name in dict.fromkeys(experiment.choices[layout.lines] for experiment in experiments):
        line = sorted(_of(experiments, {layout.lines: name}), key=lambda one: one.choices[layout.against])
        places = [one.choices[layout.against] for one in line]
        style = {"color": "gray", "linestyle": "--"} if name == RANDOM else {}
        (drawn,) = axes.plot(places, [np.mean(one.means[metric]) for one in line], marker="_", label=name, **style)
        for place, one in zip(places, line, strict=True):
            means = one.means[metric]
            axes.scatter([place] * len(means), means, s=8, color=drawn.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(against, [str(value) for value in against])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _of(experiments: Sequence[Experiment], choices: dict[str, Any]) -> list[Experiment]:
    return [one for one in experiments if all(one.choices[key] == value for key, value in choices.items())]
