"""Measures a training run as a person starts one, logging and checkpoints included: python scripts/bench_run.py

    python scripts/bench_run.py --config=configs/important.py --config.data.cache=device --steps=1000 --json=FILE

Starts synthjax.train with the same config on a data set of --rows rows (data.root, if given; none for the k-osc task),
and takes the time from the second logged step to the last: sustained is all of it, and the median is that of the
intervals. Unless the command line says otherwise there is no validation, and a checkpoint half-way and at the end. What
the run says of itself at its end (the devices' time of a step, MFU, data wait) is told as it says it.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
from absl import flags
from bench_data import given_or_made
from bench_report import Report

from data_pipeline import cli, config_flag

LOGGED = re.compile(r"step (\d+)/\d+  loss ")
SUMMARY = "steps measured"


@dataclass
class Progress:
    """Steps, and when each was logged; the last line of the run."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    summary: str = ""

    def read(self, line: str) -> None:
        """Takes note of a line that the run prints."""
        if match := LOGGED.match(line):
            self.steps.append(int(match[1]))
            self.seconds.append(time.perf_counter())
        elif SUMMARY in line:
            self.summary = line.strip()

    def row(self, batch_size: int) -> dict[str, Any]:
        """The figures, from the second logged step on: the first comes with what is made ready for it."""
        steps, seconds = self.steps[1:], self.seconds[1:]
        if len(steps) < 2:
            raise cli.UserError("fewer than three steps were logged: was the run interrupted, or begun before?")
        ends = zip(steps, seconds, strict=True)
        intervals = [(end - start) / (b - a) for (a, start), (b, end) in pairwise(ends)]
        sustained = (seconds[-1] - seconds[0]) / (steps[-1] - steps[0])
        return {
            "name": f"steps {steps[0]} to {steps[-1]}",
            "median_ms": 1e3 * statistics.median(intervals),
            "sustained_ms": 1e3 * sustained,
            "steps_per_second": 1.0 / sustained,
            "samples_per_second": batch_size / sustained,
        }


def main(argv: list[str]) -> None:
    """The command."""
    f, config, report = flags.FLAGS, config_flag.read(), Report()
    check(f, config)
    with tempfile.TemporaryDirectory(prefix="bench_run-") as folder:
        settings = {"train.eval_every": 0, "checkpoint.every": max(1, f.steps // 2)}
        settings |= f["config"].override_values | {"train.steps": f.steps}
        if config.data.source == "shards":
            settings["data.root"] = given_or_made(f["config"], f.rows, folder)
        own = [f"--config={f['config'].config_filename}", *(f"--config.{key}={settings[key]}" for key in settings)]
        progress = train([*own, f"--workdir={f.workdir or Path(folder, 'run')}"])
    report.add(progress.row(config.data.batch_size))
    report.setting |= {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "batch_size": config.data.batch_size,
        "compute_dtype": config.compute_dtype,
        "cache": config.data.get("cache"),
        "run": progress.summary,
    }
    report.tell(f.json)


def check(f: flags.FlagValues, config: Any) -> None:
    """Raises UserError for what would be found out only after the run."""
    if "train.steps" in f["config"].override_values:
        raise cli.UserError("--config.train.steps is --steps here")
    if f.steps < 3 * config.train.log_every:
        raise cli.UserError(f"--steps={f.steps} must be three times --config.train.log_every={config.train.log_every}")
    if f.workdir and Path(f.workdir, "config.json").exists():
        raise cli.UserError(f"{f.workdir} holds a run: measure in another --workdir")


def train(arguments: list[str]) -> Progress:
    """Runs the training command and passes on what it prints; ends as it does where it fails.

    Raises:
      UserError: if a signal ends it.
    """
    progress = Progress()
    # Colours would make it draw a bar in place of lines.
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    command = [sys.executable, "-m", "synthjax.train", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            for line in process.stderr or ():
                progress.read(line)
                sys.stderr.write(line)
                sys.stderr.flush()
        except KeyboardInterrupt:  # It had the same, and saves.
            process.communicate()
            raise
    if process.returncode < 0:
        raise cli.UserError(f"the run was ended by signal {-process.returncode}")
    if process.returncode:
        sys.exit(process.returncode)
    return progress


if __name__ == "__main__":
    config_flag.define(default="configs/important.py")
    flags.DEFINE_integer("steps", 1_000, "Training steps.", lower_bound=1)
    flags.DEFINE_integer("rows", 10_000, "Rows of the data set that is made, 320 of them different.", lower_bound=1)
    flags.DEFINE_string("workdir", None, "Keeps the run here, with its TensorBoard and profile; else nothing is kept.")
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
