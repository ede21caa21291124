"""Measures a whole training run, logging and checkpoints included: python -m scripts.benchmarks.run

    python -m scripts.benchmarks.run --config=configs/important.py --config.data.cache=device --steps=1000 --json=FILE

Starts synthjax.train with the same config, on data.root if it is given, else on a data set of --rows rows (none for the
k-osc task). The time runs from the second logged step to the last: ``sustained_ms`` is the mean over all of it, and
``median_ms`` the median of its intervals. Unless the command line says otherwise there is no validation, and a
checkpoint half-way and at the end. The run's own summary (the devices' time of a step, MFU, data wait) is reported as
it is.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
from absl import flags

from data_pipeline.console.cli import UserError
from scripts.benchmarks import report
from scripts.benchmarks.data_sets import given_or_made

LOGGED = re.compile(r"step (\d+)/\d+  loss ")
SUMMARY = "steps measured"


def measure(config: Any) -> report.Report:
    """Runs the training and reports its times."""
    f = flags.FLAGS
    check(f, config)
    results = report.Report()
    with tempfile.TemporaryDirectory(prefix="bench_run-") as folder:
        settings = {"train.eval_every": 0, "checkpoint.every": max(1, f.steps // 2)}
        settings |= f["config"].override_values | {"train.steps": f.steps}
        if config.data.source == "shards":
            settings["data.root"] = given_or_made(f["config"], f.rows, folder)
        own = [f"--config={f['config'].config_filename}", *(f"--config.{key}={settings[key]}" for key in settings)]
        logged, summary = train([*own, f"--workdir={f.workdir or Path(folder, 'run')}"])
    results.add(row(logged, config.data.batch_size))
    results.setting |= {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "batch_size": config.data.batch_size,
        "compute_dtype": config.compute_dtype,
        "cache": config.data.get("cache"),
        "run": summary,
    }
    return results


def check(f: flags.FlagValues, config: Any) -> None:
    """Raises UserError for faults that would show only after the run."""
    if "train.steps" in f["config"].override_values:
        raise UserError("--config.train.steps is --steps here")
    if f.steps < 3 * config.train.log_every:
        raise UserError(f"--steps={f.steps} must be three times --config.train.log_every={config.train.log_every}")
    if f.workdir and Path(f.workdir, "config.json").exists():
        raise UserError(f"{f.workdir} holds a run: measure in another --workdir")


def train(arguments: list[str]) -> tuple[list[tuple[int, float]], str]:
    """Runs the training command and passes on its output; exits with its code if it fails.

    Returns:
      the logged steps with the time of each, and the run's summary.

    Raises:
      UserError: if a signal ends it.
    """
    logged, summary = [], ""
    # With FORCE_COLOR it would draw a progress bar in place of lines.
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    command = [sys.executable, "-m", "synthjax.train", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            for line in process.stderr or ():
                if match := LOGGED.match(line):
                    logged.append((int(match[1]), time.perf_counter()))
                summary = line.strip() if SUMMARY in line else summary
                print(line, end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # The run got the same signal, and saves.
            process.communicate()
            raise
    if process.returncode < 0:
        raise UserError(f"the run was ended by signal {-process.returncode}")
    if process.returncode:
        sys.exit(process.returncode)
    return logged, summary


def row(logged: list[tuple[int, float]], batch_size: int) -> dict[str, Any]:
    """Returns the figures of a run from its second logged step on: the first one includes the start."""
    measured = logged[1:]
    if len(measured) < 2:
        raise UserError("fewer than three steps were logged: was the run interrupted, or begun before?")
    intervals = [(end - start) / (b - a) for (a, start), (b, end) in pairwise(measured)]
    (first, started), (last, ended) = measured[0], measured[-1]
    sustained = (ended - started) / (last - first)
    return {
        "name": f"steps {first} to {last}",
        "median_ms": 1e3 * statistics.median(intervals),
        "sustained_ms": 1e3 * sustained,
        "steps_per_second": 1.0 / sustained,
        "samples_per_second": batch_size / sustained,
    }


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 1_000, "Training steps.", lower_bound=1)
    flags.DEFINE_integer("rows", 10_000, "Rows of the data set that is made, 320 of them different.", lower_bound=1)
    flags.DEFINE_string("workdir", None, "Folder to keep the run in, with its TensorBoard and profile; default: none.")
    report.run(measure, default_config="configs/important.py")
