"""Measures a trained model: python -m synthjax.evaluate --workdir=DIR --split=test [--render]

Samples a patch for every row of a split and writes metrics.json, per_parameter.csv and predictions.h5 to --output
(default: WORKDIR/evaluation/SPLIT-STEP, followed by the settings of the sampler that flags change). With --render the
patches are also heard: rendered, measured against their targets, and put beside the true patches rendered again
(oracle) and the synthesizer's own chance (noise floor); per_sample.csv tells each one's figures and report.html plays
them. What was interrupted goes on where it stopped (measurements.partial keeps what is measured); a folder that holds
another evaluation is refused. --dataset=FOLDER measures on sound files instead, by sound alone. Of a run of the k-osc
task it draws --rows of the split, and writes metrics.json and per_sample.csv anew, with the figures of a random answer
beside the model's.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from absl import flags

from data_pipeline import cli
from data_pipeline.atomic import atomic_path, make_folder
from data_pipeline.hdf5_files import HDF5_ERRORS
from data_pipeline.param_spec import Categorical, NoteDuration, ParamSpec
from data_pipeline.progress import progress_bar
from data_pipeline.shards import AUDIO, PARAM_ARRAY, ShardReader
from data_pipeline.splits import SPLITS
from data_pipeline.storage_urls import is_url
from synthjax import compilation_cache, distributed, model_flags, renderer_flags
from synthjax.data import EvalBatches, open_split, prefetch
from synthjax.evaluation_sounds import Evaluated, evaluate_sounds
from synthjax.foreign_sounds import ForeignSounds
from synthjax.inference import TrainedModel
from synthjax.k_osc_evaluation import evaluate_k_osc, write_k_osc_report
from synthjax.k_osc_task import KOscTask
from synthjax.param_metrics import per_parameter_mse, row_metrics, summarise, swap_to_best
from synthjax.training_data import first_rows_digest
from synthjax.workdir import fixed_digest

PREDICTIONS = "predictions.h5"
METRICS = "metrics.json"


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}: evaluate takes flags only")
    f = flags.FLAGS
    if f.dataset and not f.render:
        raise cli.UserError("--dataset has sounds without parameters, which only --render can measure")
    if is_url(f.workdir) and not f.output:
        raise cli.UserError("the run lies in a cloud: say where to write with --output=FOLDER")
    with distributed.joined():
        compilation_cache.enable()
        model = model_flags.load_model()
        if isinstance(model.task, KOscTask):
            finish = _evaluate_k_osc(model)
        else:
            if f.render and distributed.is_main():
                renderer_flags.probe_renderer(model.spec)  # Sampling may take hours: what is amiss is said before.
            finish = _evaluate_folder(model) if f.dataset else _evaluate_split(model)
        main_process = distributed.is_main()
    # What remains needs no accelerator, and may take hours: the other processes are done.
    return finish() if main_process else 0


def _evaluate_split(model: TrainedModel) -> Callable[[], int]:
    """Samples with all processes; returns what process 0 has left to do, as the other two do."""
    f = flags.FLAGS
    root = f.data_root or model.config.data.root
    allow_external = f.allow_external or model.config.data.allow_external
    reader = open_split(root, f.split, model.spec, allow_external=allow_external, flag="--data_root")
    output = _output(f.split, model)
    # Of another data set a split may have the same name and size.
    data = {"split": f.split, "rows": len(reader), "data": first_rows_digest(reader)[:12]}
    about = {**data, **_about(model)}
    predicted = _rows(output, about, model, lambda: sample_split(model, reader), reuse=f.render)

    def finish() -> int:
        true = reader.read_rows(PARAM_ARRAY, np.arange(len(reader)))
        write_predictions(output, about, predicted, model.spec)
        metrics = write_parameter_report(output, about, predicted, true, model.spec)
        if f.render:
            names = [f"{f.split} {index}" for index in range(len(reader))]
            sounds = Evaluated(model.spec, names, predicted, lambda index: reader.read(AUDIO, index), true)
            _hear(sounds, output, about, metrics)
        return 0

    return finish


def _evaluate_k_osc(model: TrainedModel) -> Callable[[], int]:
    f = flags.FLAGS
    output = _output(f.split, model)
    rows = evaluate_k_osc(model, f.split, f.rows)

    def finish() -> int:
        write_k_osc_report(output, {"split": f.split, **_about(model)}, rows)
        return 0

    return finish


def _evaluate_folder(model: TrainedModel) -> Callable[[], int]:
    f = flags.FLAGS
    sounds = ForeignSounds.find(Path(f.dataset))
    output = _output(Path(f.dataset).resolve().name, model)
    about = {
        "dataset": str(Path(f.dataset).resolve()),
        "rows": len(sounds.paths),
        "data": sounds.digest[:12],
        **_about(model),
    }
    predicted = _rows(output, about, model, lambda: sounds.sample(model), reuse=True)

    def finish() -> int:
        write_predictions(output, about, predicted, model.spec)
        _hear(Evaluated(model.spec, sounds.names, predicted, sounds.load, None), output, about, {})
        return sounds.report_faults()

    return finish


def _rows(
    output: Path, about: Mapping[str, Any], model: TrainedModel, sample: Callable[[], np.ndarray], *, reuse: bool
) -> np.ndarray:
    """What an earlier run of the same evaluation has sampled, if it is to be used, or else ``sample()``; all processes
    do the same. Raises UserError where another evaluation's results would be overwritten.
    """
    before = read_predictions(output, about, model.spec) if distributed.is_main() else None
    if distributed.main_says(before is None or not reuse):
        return sample()
    return np.empty(0) if before is None else before  # Only process 0 goes on with them.


def _hear(sounds: Evaluated, output: Path, about: Mapping[str, Any], metrics: dict[str, np.ndarray]) -> None:
    with renderer_flags.start_renderer(sounds.spec) as renderer:
        evaluate_sounds(sounds, renderer, output, about, metrics, flags.FLAGS.report_sounds)


def _output(name: str, model: TrainedModel) -> Path:
    """The folder to write to, made before the long part."""
    f = flags.FLAGS
    folder = f"{name}-{model.step}{model_flags.changed_settings()}"
    output = Path(f.output or Path(f.workdir) / "evaluation" / folder)
    if distributed.is_main():
        make_folder(output)
    return output


def _about(model: TrainedModel) -> dict[str, Any]:
    """What predictions depend on."""
    weights = "ema" if flags.FLAGS.use_ema else "params"
    return {
        "run": fixed_digest(model.config)[:12],
        "checkpoint": model.step,
        "weights": weights,
        "seed": model.config.seed,
        "sampling": model.sampling.about(),
    }


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


def write_parameter_report(
    output: Path, about: Mapping[str, Any], predicted: np.ndarray, true: np.ndarray, spec: ParamSpec
) -> dict[str, np.ndarray]:
    """metrics.json and per_parameter.csv in ``output``, and the table on the terminal; returns every row's metrics."""
    metrics: dict[str, Any] = {**about, "count": len(true), **_heard_before(output / METRICS, about)}
    rows = row_metrics(predicted, true, spec)
    print(f"{'metric':<36}{'mean':>10}   95 % interval     n = {len(true)}")
    for name, values in rows.items():
        mean, low, high = summarise(values)
        metrics |= {name: mean, f"{name}_ci95": [low, high]}
        print(f"{name:<36}{mean:>10.5f}   {low:.5f} .. {high:.5f}")
    swapped = swap_to_best(predicted, true, spec)
    errors, swapped_errors = (per_parameter_mse(some, true, spec) for some in (predicted, swapped))
    metrics |= {"per_parameter_mse": errors, "per_parameter_mse_best_swap": swapped_errors}
    with atomic_path(output / METRICS) as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    _write_csv(output / "per_parameter.csv", predicted, true, spec, errors, swapped_errors)
    print(f"wrote metrics.json, per_parameter.csv and predictions.h5 to {output}")
    return rows


def _heard_before(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier --render of the same evaluation has measured: it holds as long as its other files do."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        same = all(before[key] == value for key, value in about.items())
        return {"audio": before["audio"]} if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


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


def write_predictions(output: Path, about: Mapping[str, Any], predicted: np.ndarray, spec: ParamSpec) -> None:
    """predictions.h5: ``rows`` (N, W), their decoded raw ``values`` (N, P) named by ``value_names``, and
    ``source_index`` (N,); the attribute ``about`` tells what they are predictions of.
    """
    decoded = [np.hstack([*map(np.atleast_1d, spec.decode(row).values())]) for row in predicted]
    with atomic_path(output / PREDICTIONS) as temporary, h5py.File(temporary, "w") as file:
        file["rows"] = predicted.astype(np.float32)
        file["values"] = np.asarray(decoded, np.float64)
        file["value_names"] = value_names(spec)
        file["source_index"] = np.arange(len(predicted), dtype=np.int64)
        file.attrs["spec_name"], file.attrs["spec_hash"] = spec.name, spec.content_hash
        file.attrs["about"] = json.dumps(about)


def read_predictions(output: Path, about: Mapping[str, Any], spec: ParamSpec) -> np.ndarray | None:
    """The rows that an earlier run of the same evaluation has written; None where there are none.

    Raises UserError where the folder holds another evaluation.
    """
    try:
        with h5py.File(output / PREDICTIONS) as file:
            same = file.attrs["spec_hash"] == spec.content_hash and json.loads(file.attrs["about"]) == about
            rows = file["rows"][:]
    except (KeyError, ValueError, *HDF5_ERRORS):
        return None
    if not same:
        raise cli.UserError(f"{output} holds another evaluation: give another --output, or remove it")
    return rows


if __name__ == "__main__":
    model_flags.define()
    flags.DEFINE_enum("split", "test", SPLITS, "Split to measure on.")
    flags.DEFINE_bool("allow_external", False, "Read shards that lie outside the data set's parent folder.")
    flags.DEFINE_integer("rows", 2048, "How many rows of the k-osc task to draw.", lower_bound=1)
    flags.DEFINE_string("output", None, "Where to write; default: WORKDIR/evaluation/SPLIT-STEP[-SETTINGS].")
    flags.DEFINE_bool("render", False, "Render the predicted patches and measure how they sound.")
    flags.DEFINE_string("dataset", None, "Folder of sounds from elsewhere to measure on, instead of a split.")
    flags.DEFINE_integer(
        "report_sounds", 50, "Sounds in report.html, evenly from the best to the worst.", lower_bound=1
    )
    renderer_flags.define()
    distributed.define()
    cli.run(main)
