"""Trains and measures a grid of experiments: python -m synthjax.study configs/studies/k_osc.py --workdir=DIR

Every run has a folder of its own under DIR. The study prints and executes the commands that a person would type.
Started again, it goes on where it stopped: finished runs are kept, and an interrupted run goes on from its last
checkpoint. table.csv (a line for each run), table.md (a line for each experiment, over its seeds) and figure.png are
written after every run. Ctrl-C stops between or within runs; only the steps since the last checkpoint are lost.
"""

from __future__ import annotations

import itertools
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from data_pipeline.console import cli
from data_pipeline.console.atomic import make_folder
from data_pipeline.console.cli import UserError, run_command
from data_pipeline.console.config_flag import find
from synthjax.evaluation.study_table import Finished, write_tables
from synthjax.evaluation.table import METRICS_FILE, Table, read_table

SPLIT = "test"


@dataclass(frozen=True)
class StudyRun:
    """One point of the grid with one seed. ``choices`` has a value for each entry of the grid."""

    choices: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return "-".join([*(f"{key}={value}" for key, value in self.choices.items()), f"seed={self.seed}"])

    @property
    def argument(self) -> str:
        """The argument of the experiment's config: the task's name, and key=value for every other choice."""
        return ",".join(str(value) if key == "task" else f"{key}={value}" for key, value in self.choices.items())


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) != 2:
        raise UserError("usage: python -m synthjax.study CONFIG[:VARIANT] --workdir=DIR")
    study, folder = load_study(argv[1]), Path(flags.FLAGS.workdir)
    make_folder(folder)
    runs = list(plan(study))
    for number, run in enumerate(runs, start=1):
        if read_metrics(study, folder, run) is None:
            print(f"\nrun {number} of {len(runs)}: {run.name}", flush=True)
            if code := execute(study, folder, run):
                return code
            write_tables(folder, study, finished(study, folder, runs))
    write_tables(folder, study, finished(study, folder, runs))
    print(f"{len(runs)} runs are done: see table.md and figure.png in {folder}")
    return 0


def load_study(name: str) -> ml_collections.ConfigDict:
    """The study of a config file PATH[:VARIANT,...]. Raises UserError if it cannot be loaded."""
    path, _, arg = name.partition(":")
    if not (file := find(path)).is_file():
        raise UserError(f"there is no study {path}")
    module = runpy.run_path(str(file))
    if "get_config" not in module:
        raise UserError(f"{path} is no config: it has no get_config")
    study = module["get_config"](arg)
    if "grid" not in study:
        raise UserError(f"{path} is no study: it has no grid")
    layout = study.figure
    if set(study.grid) != {layout.panels, layout.against, layout.lines}:
        raise UserError(f"{path}: panels, lines and against of the figure must be the entries of the grid, each once")
    return study


def plan(study: ml_collections.ConfigDict) -> Iterator[StudyRun]:
    """Every run, seed by seed, so that a study that is stopped has covered as much of its grid as possible."""
    layout = study.figure
    entries = (layout.panels, layout.against, layout.lines)  # A ConfigDict would sort them by name.
    for seed in study.seeds:
        for values in itertools.product(*(study.grid[entry] for entry in entries)):
            yield StudyRun(dict(zip(entries, values, strict=True)), seed)


def commands(study: ml_collections.ConfigDict, folder: Path, run: StudyRun) -> list[list[str]]:
    """The commands of a run, each as module and arguments."""
    workdir = f"--workdir={folder / run.name}"
    overrides = [f"--config.{key}={value}" for key, value in _flat(study.overrides)]
    output = f"--output={_output(folder, run)}"
    config = f"--config={study.config}:{run.argument}"
    return [
        ["synthjax.train", config, workdir, f"--config.seed={run.seed}", *overrides],
        ["synthjax.evaluate", workdir, "--checkpoint=latest", f"--split={SPLIT}", f"--rows={study.rows}", output],
    ]


def execute(study: ml_collections.ConfigDict, folder: Path, run: StudyRun) -> int:
    """Runs the commands one after the other; returns the exit code of the first that fails, or 0.

    Raises:
      UserError: if training ended without error before its last step, as after SIGTERM.
    """
    for module, *arguments in commands(study, folder, run):
        if code := run_command(module, arguments):
            return code
    if read_metrics(study, folder, run) is None:
        raise UserError(f"{run.name} stopped short of {study.overrides.train.steps} steps: run the study again")
    return 0


def finished(study: ml_collections.ConfigDict, folder: Path, runs: list[StudyRun]) -> list[Finished]:
    """The finished runs with their tables."""
    measured = [(run, read_metrics(study, folder, run)) for run in runs]
    return [Finished(run.choices, run.seed, table) for run, table in measured if table is not None]


def read_metrics(study: ml_collections.ConfigDict, folder: Path, run: StudyRun) -> Table | None:
    """The table of a run that was measured after all its steps; None where the run is not done."""
    table = read_table(_output(folder, run) / METRICS_FILE)
    if table is None or (table.about.get("checkpoint"), table.count) != (study.overrides.train.steps, study.rows):
        return None
    return table


def _output(folder: Path, run: StudyRun) -> Path:
    return folder / run.name / "evaluation" / SPLIT


def _flat(tree: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the study: its runs, tables and figure.", required=True)
    cli.run(main)
