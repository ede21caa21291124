"""Measures a trained model on a split: python -m synthjax.evaluate --workdir=DIR --split=test

Writes metrics.json, per_parameter.csv and predictions.h5 to --output (default: WORKDIR/evaluation/SPLIT-STEP).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from absl import flags

from data_pipeline import cli
from data_pipeline.atomic import atomic_path, make_folder
from data_pipeline.param_spec import Categorical, NoteDuration, ParamSpec
from data_pipeline.progress import progress_bar
from data_pipeline.shards import PARAM_ARRAY, ShardReader
from synthjax import distributed, model_flags
from synthjax.data import EvalBatches, open_split, prefetch
from synthjax.inference import TrainedModel
from synthjax.param_metrics import per_parameter_mse, row_metrics, summarise, swap_to_best
from synthjax.workdir import Workdir


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}: evaluate takes flags only")
    f = flags.FLAGS
    distributed.initialise()
    workdir = Workdir(f.workdir)
    model = TrainedModel.load(workdir, checkpoint=f.checkpoint, use_ema=f.use_ema)
    root = f.data_root or model.config.data.root
    allow_external = f.allow_external or model.config.data.allow_external
    reader = open_split(root, f.split, model.spec, allow_external=allow_external)
    output = Path(f.output or workdir.path / "evaluation" / f"{f.split}-{model.step}")
    if distributed.is_main():
        make_folder(output)  # Before the long part.
    predicted = sample_split(model, reader)
    if not distributed.is_main():
        return 0
    true = reader.read_rows(PARAM_ARRAY, np.arange(len(reader)))
    about = {"split": f.split, "checkpoint": model.step, "weights": "ema" if f.use_ema else "params"}
    write_report(output, about, predicted, true, model.spec)
    return 0


def sample_split(model: TrainedModel, reader: ShardReader) -> np.ndarray:
    """One sampled row for every row of a split, in its order: (N, W) float32 in [0, 1] columns, not clipped."""
    size = model.batch_size(len(reader))
    batches = EvalBatches(reader, batch_size=size, seed=model.config.seed, local_rows=model.local_rows(size))
    rows = []
    with progress_bar("sampling", total=len(reader)) as advance, prefetch(batches, workers=0) as stream:
        for batch in stream:
            rows.append(model.sample(batch))
            advance(min(size, len(reader) - (len(rows) - 1) * size))
    return np.concatenate(rows)[: len(reader)]


def write_report(output: Path, about: dict[str, Any], predicted: np.ndarray, true: np.ndarray, spec: ParamSpec) -> None:
    """metrics.json, per_parameter.csv and predictions.h5 in ``output``, and the table on the terminal."""
    metrics: dict[str, Any] = about | {"count": len(true)}
    print(f"{'metric':<36}{'mean':>10}   95 % interval     n = {len(true)}")
    for name, values in row_metrics(predicted, true, spec).items():
        mean, low, high = summarise(values)
        metrics |= {name: mean, f"{name}_ci95": [low, high]}
        print(f"{name:<36}{mean:>10.5f}   {low:.5f} .. {high:.5f}")
    swapped = swap_to_best(predicted, true, spec)
    errors, swapped_errors = (per_parameter_mse(rows, true, spec) for rows in (predicted, swapped))
    metrics |= {"per_parameter_mse": errors, "per_parameter_mse_best_swap": swapped_errors}
    with atomic_path(output / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    _write_csv(output / "per_parameter.csv", predicted, true, spec, errors, swapped_errors)
    _write_predictions(output / "predictions.h5", predicted, spec)
    print(f"wrote metrics.json, per_parameter.csv and predictions.h5 to {output}")


def _write_csv(
    path: Path,
    predicted: np.ndarray,
    true: np.ndarray,
    spec: ParamSpec,
    errors: dict[str, float],
    swapped_errors: dict[str, float],
) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["parameter", "kind", "columns", "mse", "mse_best_swap", "category_accuracy"])
        for parameter in spec.parameters:
            columns, accuracy = spec.slices[parameter.name], ""
            if isinstance(parameter, Categorical):
                hits = predicted[:, columns].argmax(axis=1) == true[:, columns].argmax(axis=1)
                accuracy = repr(float(hits.mean()))
            name = parameter.name
            row = [name, type(parameter).__name__, parameter.width, errors[name], swapped_errors[name], accuracy]
            writer.writerow(row)


def value_names(spec: ParamSpec) -> list[str]:
    """A name for every decoded number: the parameters', with note start and end apart."""
    names: list[str] = []
    for parameter in spec.parameters:
        names += parameter.column_names if isinstance(parameter, NoteDuration) else [parameter.name]
    return names


def _write_predictions(path: Path, predicted: np.ndarray, spec: ParamSpec) -> None:
    """``rows`` (N, W), their decoded raw ``values`` (N, P) named by ``value_names``, and ``source_index`` (N,)."""
    decoded = [np.hstack([*map(np.atleast_1d, spec.decode(row).values())]) for row in predicted]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["rows"] = predicted.astype(np.float32)
        file["values"] = np.asarray(decoded, np.float64)
        file["value_names"] = value_names(spec)
        file["source_index"] = np.arange(len(predicted), dtype=np.int64)
        file.attrs["spec_name"], file.attrs["spec_hash"] = spec.name, spec.content_hash


if __name__ == "__main__":
    model_flags.define()
    flags.DEFINE_string("split", "test", "Split to measure on: test, val or train.")
    flags.DEFINE_bool("allow_external", False, "Read shards that lie outside the data set's parent folder.")
    flags.DEFINE_string("output", None, "Where to write; default: WORKDIR/evaluation/SPLIT-STEP.")
    cli.run(main)
