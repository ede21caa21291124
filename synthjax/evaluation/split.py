"""Samples the rows of a split, and measures them against the true rows.

Shapes: N rows, W row width.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import Categorical, ParamSpec
from data_pipeline.shards.reader import ShardReader
from synthjax.cluster import sharding
from synthjax.evaluation.table import PREDICTION, RANDOM, Figures
from synthjax.k_osc.synthesis import draw_rows
from synthjax.methods.task import KOscTask
from synthjax.metrics.parameters import per_parameter_mse, swap_to_best
from synthjax.runs.model import Model, sample_batches
from synthjax.tasks.batches import EvalBatches, prefetch
from synthjax.tasks.k_osc import KOscHeldOut

# Keeps the random answers apart from the task's own draws: no seed of those is negative.
RANDOM_STREAM = 0x52414E44

Rows = Float[np.ndarray, "N W"]


def sample_split(model: Model, reader: ShardReader) -> Rows:
    """One sampled row for each row of a split, in its order, in [0, 1] columns, not clipped."""
    size = model.batch_size(len(reader))
    batches = EvalBatches(reader, batch_size=size, seed=model.config.seed, local_rows=model.local_rows(size))
    with progress_bar("sampling", len(reader)) as advance, prefetch(batches, workers=0) as stream:
        return model.sample(stream, len(reader), advance)


def k_osc_figures(model: Model, split: str, rows: int) -> Figures:
    """Metrics of the model of a k-osc run on held-out rows, beside those of random answers."""
    task = KOscTask.from_config(model.config)
    held_out = KOscHeldOut(task, split, rows, sharding.batch_sharding(model.mesh))
    with progress_bar("sampling", rows) as advance:
        predicted = sample_batches(model.sample_batch, iter(held_out), rows, advance)
    key = jax.random.fold_in(jax.random.key(task.seed), RANDOM_STREAM)
    answers = {PREDICTION: predicted, RANDOM: np.asarray(draw_rows(key, rows, task.settings.oscillators))}
    true = held_out.true_rows(rows)
    return {kind: held_out.judge(answer, true) for kind, answer in answers.items()}


def parameter_lines(predicted: Rows, true: Rows, spec: ParamSpec) -> list[dict[str, Any]]:
    """The lines of per_parameter.csv: the errors of each parameter over all rows."""
    errors = per_parameter_mse(predicted, true, spec)
    swapped_errors = per_parameter_mse(swap_to_best(predicted, true, spec), true, spec)
    lines = []
    for parameter in spec.parameters:
        name, columns = parameter.name, spec.slices[parameter.name]
        line = {"parameter": name, "kind": type(parameter).__name__, "columns": parameter.width}
        line |= {"mse": errors[name], "mse_best_swap": swapped_errors[name], "category_accuracy": ""}
        if isinstance(parameter, Categorical):
            hits = predicted[:, columns].argmax(axis=1) == true[:, columns].argmax(axis=1)
            line["category_accuracy"] = float(hits.mean())
        lines.append(line)
    return lines
