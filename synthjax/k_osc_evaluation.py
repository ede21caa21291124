"""Measures a model of the k-osc task on held-out rows, beside the random predictor.

Shapes: N rows, W = 3K columns of a row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipeline.atomic import atomic_path
from data_pipeline.progress import progress_bar
from synthjax import k_osc, sharding
from synthjax.inference import TrainedModel
from synthjax.k_osc_task import HELD_OUT_BATCH, KOscHeldOut, KOscTask
from synthjax.param_metrics import PerRow, summarise

# Keeps the random predictor's draws apart from the task's, of which no seed is negative.
RANDOM_STREAM = 0x52414E44
RANDOM = "random"

Figures = dict[str, PerRow]


def evaluate_k_osc(model: TrainedModel, split: str, rows: int) -> dict[str, Figures]:
    """Figures (N,) by name, under ``model`` and under ``random`` of rows drawn without listening."""
    task = model.task
    assert isinstance(task, KOscTask)
    held_out = KOscHeldOut(task, split, rows, sharding.batch_sharding(model.mesh))
    predicted, true = [], []
    with progress_bar("sampling", total=rows) as advance:
        for number in range(len(held_out)):
            batch = held_out[number]
            predicted.append(np.asarray(model.sampler(model.params, batch, model.stats)))
            true.append(sharding.gather(batch["x1"]))
            advance(min(HELD_OUT_BATCH, rows - number * HELD_OUT_BATCH))
    truth = np.concatenate(true)[:rows]
    key = jax.random.fold_in(jax.random.key(task.seed), RANDOM_STREAM)
    guesses = np.asarray(k_osc.draw_rows(key, rows, task.settings.oscillators))
    answers = {"model": np.concatenate(predicted)[:rows], RANDOM: guesses}
    return {name: held_out.judge(answer, truth) for name, answer in answers.items()}


def write_k_osc_report(output: Path, about: Mapping[str, Any], figures: Mapping[str, Figures]) -> None:
    """metrics.json and per_sample.csv in ``output``, and the table on the terminal."""
    count = len(next(iter(figures["model"].values())))
    metrics: dict[str, Any] = {**about, "count": count}
    print(f"{'metric':<36}{'mean':>10}   95 % interval     n = {count}")
    for who, of_rows in figures.items():
        metrics[who] = {}
        for name, values in of_rows.items():
            mean, low, high = summarise(values)
            metrics[who] |= {name: mean, f"{name}_ci95": [low, high]}
            label = name if who == "model" else f"{name}, {who}"
            print(f"{label:<36}{mean:>10.5f}   {low:.5f} .. {high:.5f}")
    with atomic_path(output / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    with atomic_path(output / "per_sample.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", *figures["model"]])
        writer.writerows(
            [index, *map(float, row)] for index, row in enumerate(zip(*figures["model"].values(), strict=True))
        )
    print(f"wrote metrics.json and per_sample.csv to {output}")
