"""Measures a trained model: python -m synthjax.evaluate --workdir=DIR --split=test [--render]

Samples a patch for every row of a split. Writes metrics.json, per_parameter.csv and predictions.h5 to --output
(default: WORKDIR/evaluation/SPLIT-STEP, followed by the sampler settings that flags change).

--render also renders the patches and measures how far they sound from their targets. Beside them it measures the true
patches rendered again (oracle) and two renders of the true patch (noise floor). Where the data set has no audio, the
targets are renders of the true patches too. It adds per_sample.csv and report.html, which plays the sounds. An
evaluation that was interrupted goes on where it stopped: measurements.partial keeps the measurements. A folder that
holds another evaluation is refused.

--dataset=FOLDER measures on sound files instead of a split, by sound alone. For a run of the k-osc task, evaluate draws
--rows of the split and writes metrics.json and per_sample.csv, with the metrics of random answers beside the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_pipeline.cloud.urls import is_url
from data_pipeline.console import cli
from data_pipeline.console.atomic import make_folder
from data_pipeline.shards.reader import AUDIO, PARAM_ARRAY
from data_pipeline.shards.splits import SPLITS
from synthjax.cluster import distributed, jax_settings
from synthjax.evaluation.audio import Predictions, audio_figures, measure_sounds
from synthjax.evaluation.foreign_sounds import ForeignSounds
from synthjax.evaluation.predictions import PREDICTIONS_FILE, read_predictions, write_predictions
from synthjax.evaluation.split import k_osc_figures, parameter_lines, sample_split
from synthjax.evaluation.table import (
    METRICS_FILE,
    PREDICTION,
    Figures,
    Table,
    print_table,
    tabulate,
    write_csv,
    write_samples,
    write_table,
)
from synthjax.inference import renderer_flags
from synthjax.metrics.parameters import row_metrics
from synthjax.report.evaluation import write_evaluation_report
from synthjax.runs import model_flags
from synthjax.runs.model import Model
from synthjax.runs.workdir import fixed_digest
from synthjax.tasks.batches import open_split
from synthjax.tasks.shards import first_rows_digest

Finish = Callable[[], int]
"""The part of an evaluation that needs no accelerator. It returns the command's exit code."""


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
        jax_settings.apply()
        model = model_flags.load_model()
        if f.render and distributed.is_main():
            renderer_flags.probe_renderer(model.spec)  # Before sampling, which may take hours.
        if model.task.spec is None:
            finish = _evaluate_k_osc(model)
        else:
            finish = _evaluate_folder(model) if f.dataset else _evaluate_split(model)
        main_process = distributed.is_main()
    # The rest may take hours and needs one process only: the others end here.
    return finish() if main_process else 0


def _evaluate_split(model: Model) -> Finish:
    """Samples the split with all processes; returns the rest, for process 0."""
    f = flags.FLAGS
    root = f.data_root or model.config.data.root
    allow_external = f.allow_external or model.config.data.allow_external
    reader = open_split(root, f.split, model.spec, allow_external=allow_external, flag="--data_root")
    output = _output(f.split, model)
    # The digest differs for another data set whose split has the same name and size.
    about = {"split": f.split, "rows": len(reader), "data": first_rows_digest(reader)[:12], **_about(model)}
    predicted = _rows(output, about, model, lambda: sample_split(model, reader), reuse=f.render)

    def finish() -> int:
        true = reader.read_rows(PARAM_ARRAY, np.arange(len(reader)))
        write_predictions(output, about, predicted, model.spec)
        figures = {PREDICTION: row_metrics(predicted, true, model.spec)}
        parameters = parameter_lines(predicted, true, model.spec)
        write_csv(output / "per_parameter.csv", parameters)
        details = {
            f"per_parameter_{error}": {line["parameter"]: line[error] for line in parameters}
            for error in ("mse", "mse_best_swap")
        }
        _tabulate(output, about, len(true), figures, **details)
        print(f"wrote {METRICS_FILE}, per_parameter.csv and {PREDICTIONS_FILE} to {output}")
        if f.render:
            names = [f"{f.split} {index}" for index in range(len(reader))]
            target = partial(reader.read, AUDIO) if AUDIO in reader.names else None
            predictions = Predictions(model.spec, names, predicted, target, true)
            _measure_sounds(predictions, output, about, figures[PREDICTION])
        return 0

    return finish


def _evaluate_k_osc(model: Model) -> Finish:
    """Measures drawn rows of the k-osc task with all processes."""
    f = flags.FLAGS
    output = _output(f.split, model)
    figures = k_osc_figures(model, f.split, f.rows)

    def finish() -> int:
        _tabulate(output, {"split": f.split, **_about(model)}, f.rows, figures)
        write_samples(output / "per_sample.csv", [f"{f.split} {index}" for index in range(f.rows)], figures)
        print(f"wrote {METRICS_FILE} and per_sample.csv to {output}")
        return 0

    return finish


def _evaluate_folder(model: Model) -> Finish:
    """Samples the sounds of --dataset with all processes."""
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
        predictions = Predictions(model.spec, sounds.names, predicted, sounds.load, None)
        _measure_sounds(predictions, output, about, {})
        return sounds.report_faults()

    return finish


def _measure_sounds(
    predictions: Predictions, output: Path, about: Mapping[str, Any], row_figures: Mapping[str, np.ndarray]
) -> None:
    """Renders and measures the predictions; writes their metrics and the report.

    ``row_figures`` are the metrics (N,) of their parameters, for per_sample.csv.
    """
    unusual = {}
    if predictions.target is None:
        print("the data set has no audio: its true patches are rendered as targets")
        unusual = {"targets": "rendered from the true patches"}
    identity = {**about, **unusual, "spec_hash": predictions.spec.content_hash}
    with renderer_flags.start_renderer(predictions.spec) as renderer:
        results = measure_sounds(predictions, renderer, output / "measurements.partial", identity)
        figures = audio_figures(results)
        failed = sum(PREDICTION not in measured for measured in results)
        table = _tabulate(output, about, len(results), figures, not_rendered=failed, **unusual)
        if failed:
            print(f"predicted patches that could not be rendered: {failed}")
        all_figures = {**figures, PREDICTION: {**row_figures, **figures.get(PREDICTION, {})}}
        write_samples(output / "per_sample.csv", predictions.names, all_figures)
        write_evaluation_report(output, predictions, results, table, renderer, flags.FLAGS.report_sounds)
    print(f"wrote {METRICS_FILE}, per_sample.csv, report.html and tensorboard/ to {output}")


def _tabulate(output: Path, about: Mapping[str, Any], count: int, figures: Figures, **details: Any) -> Table:
    """Prints the table of figures and writes it to metrics.json; returns it."""
    table = tabulate(about, count, figures, **details)
    print_table(table)
    write_table(output / METRICS_FILE, table)
    return table


def _rows(
    output: Path, about: Mapping[str, Any], model: Model, sample: Callable[[], np.ndarray], *, reuse: bool
) -> np.ndarray:
    """The rows that an earlier run of the same evaluation wrote, if ``reuse``, or else ``sample()``.

    All processes take the same way. Raises UserError if the output folder holds another evaluation.
    """
    before = read_predictions(output, about, model.spec) if distributed.is_main() else None
    if distributed.main_says(before is None or not reuse):
        return sample()
    return np.empty(0) if before is None else before  # Only process 0 needs them.


def _output(name: str, model: Model) -> Path:
    """The folder to write to. It is made before the long part."""
    f = flags.FLAGS
    folder = f"{name}-{model.step}{model_flags.changed_settings()}"
    output = Path(f.output or Path(f.workdir) / "evaluation" / folder)
    if distributed.is_main():
        make_folder(output)
    return output


def _about(model: Model) -> dict[str, Any]:
    """The settings that predictions depend on."""
    return {
        "run": fixed_digest(model.config)[:12],
        "checkpoint": model.step,
        "weights": "ema" if flags.FLAGS.use_ema else "params",
        "seed": model.config.seed,
        "sampling": model.sampling.about(),
    }


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
