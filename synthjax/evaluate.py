"""Measures a trained model: python -m synthjax.evaluate --workdir=DIR --split=test [--render]

Samples a patch for every row of a split. Writes metrics.json, per_parameter.csv and predictions.h5 to --output
(default: WORKDIR/evaluation/SPLIT-STEP, followed by the sampler settings that flags change).

--render also renders the patches and measures how far they sound from their targets. Beside them it measures the true
patches rendered again (oracle) and two renders of the true patch (noise floor). Where the data set has no audio, the
targets are renders of the true patches too. It adds per_sample.csv and report.html, which plays the sounds. An
evaluation that was interrupted goes on where it stopped: measurements.partial keeps the measurements. A folder that
holds another evaluation is refused.

--targets=drawn, or --targets=FOLDER of sounds or preset files, compares ways of answering by sound alone, at equal
numbers of renders (--candidates): random rows, the nearest of a library (--library), the draws of a model (--workdir),
both together, and the best of these refined (--refine, --refine_evaluations). --bundle names a model, a library or
both.

For a run of the k-osc task, evaluate draws --rows of the split and writes metrics.json and per_sample.csv, with the
metrics of random answers beside the model's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_pipeline.audio.sound_files import LoadedSound
from data_pipeline.cloud.urls import is_url
from data_pipeline.console import cli
from data_pipeline.console.atomic import make_folder
from data_pipeline.params.counter_rng import LIBRARY_SEED
from data_pipeline.shards.reader import AUDIO, PARAM_ARRAY
from data_pipeline.shards.splits import SPLITS
from synthjax.cluster import distributed, jax_settings
from synthjax.evaluation.audio import Predictions, audio_figures, measure_sounds
from synthjax.evaluation.predictions import PREDICTIONS_FILE, read_predictions, write_predictions
from synthjax.evaluation.split import k_osc_figures, parameter_lines, sample_split
from synthjax.evaluation.table import (
    METRICS_FILE,
    PREDICTION,
    Figures,
    Table,
    print_table,
    summaries,
    tabulate,
    write_csv,
    write_samples,
    write_table,
)
from synthjax.evaluation.targets import drawn_targets, targets_in
from synthjax.evaluation.ways import Answers, Settings, differences, measure_ways, side_by_side, way_figures
from synthjax.inference import candidate_flags, renderer_flags
from synthjax.inference.predictor import Predictor
from synthjax.metrics.parameters import row_metrics
from synthjax.report.entries import described
from synthjax.report.evaluation import write_evaluation_report
from synthjax.report.prediction import prediction_report
from synthjax.runs import model_flags
from synthjax.runs.model import Model
from synthjax.runs.workdir import fixed_digest
from synthjax.tasks.batches import open_split
from synthjax.tasks.rendered import render_settings
from synthjax.tasks.shards import first_rows_digest

DRAWN = "drawn"
# The numbers of rows that are drawn by default.
K_OSC_ROWS, DRAWN_ROWS = 2048, 100

Finish = Callable[[], int]
"""The part of an evaluation that needs no accelerator. It returns the command's exit code."""


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}: evaluate takes flags only")
    f = flags.FLAGS
    if f.targets:
        if f.rows and f.targets != DRAWN:
            raise cli.UserError("--rows would be ignored: the targets of a folder are all measured")
        return _evaluate_targets()
    if not f.workdir:
        raise cli.UserError("name a training run with --workdir, or targets with --targets")
    if is_url(f.workdir) and not f.output:
        raise cli.UserError("the run lies in a cloud: say where to write with --output=FOLDER")
    with distributed.joined():
        jax_settings.apply()
        model = model_flags.load_model()
        if f.render and distributed.is_main():
            renderer_flags.probe_renderer(model.spec)  # Before sampling, which may take hours.
        finish = _evaluate_k_osc(model) if model.task.spec is None else _evaluate_split(model)
        main_process = distributed.is_main()
    # The rest may take hours and needs one process only: the others end here.
    return finish() if main_process else 0


def _evaluate_targets() -> int:
    """Compares ways of answering on --targets; returns the command's exit code."""
    f = flags.FLAGS
    jax_settings.apply()
    distributed.require_devices()
    model, library = candidate_flags.load()
    spec = candidate_flags.spec_of(model, library)
    output = Path(f.output or "evaluation")
    make_folder(output)
    with renderer_flags.start_renderer(spec) as renderer:
        if f.targets == DRAWN:
            targets = drawn_targets(spec, f.rows or DRAWN_ROWS, f.prior, renderer, output / "targets")
        else:
            targets = targets_in(Path(f.targets), spec, renderer)
        libraries = candidate_flags.libraries(library, spec, renderer)
        predictor = Predictor(model, renderer, *libraries, sounding=targets.outside)
        random = render_settings(spec, LIBRARY_SEED, f.prior, renderer.synth)
        settings = Settings(f.candidates, random, candidate_flags.budget())
        about = {
            **targets.about,
            **(_about(model) if model else {}),
            **candidate_flags.about(),
            "libraries": [one.digest for one in libraries],
            "prior_hash": random.prior_hash,
            "synth": f"{renderer.synth_name} {renderer.synth_version}",
            "preset": f.preset,
        }
        with ExitStack() as opened:
            adds = cache(
                lambda: opened.enter_context(
                    prediction_report(output / "report.html", described(about), len(targets.names))
                )
            )

            def report(index: int, answers: Answers) -> None:
                # Begun with the first answer: a call that finds all targets answered leaves the report as it is.
                adds()(targets.names[index], LoadedSound(targets.audio(index), ()), side_by_side(answers))

            results = measure_ways(predictor, targets, settings, output / "measurements.partial", about, report)
    figures = way_figures(results)
    paired = differences(figures)
    table = _tabulate(output, about, len(results), figures, differences=summaries(paired))
    print("\ndifferences, paired by target")
    print_table(replace(table, metrics=paired))
    write_samples(output / "per_sample.csv", targets.names, figures)
    for fault in targets.faults:
        print(f"left out: {fault}", file=sys.stderr)
    print(f"wrote {METRICS_FILE}, per_sample.csv and report.html to {output}")
    return 1 if targets.faults else 0


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
    output, rows = _output(f.split, model), f.rows or K_OSC_ROWS
    figures = k_osc_figures(model, f.split, rows)

    def finish() -> int:
        _tabulate(output, {"split": f.split, **_about(model)}, rows, figures)
        write_samples(output / "per_sample.csv", [f"{f.split} {index}" for index in range(rows)], figures)
        print(f"wrote {METRICS_FILE} and per_sample.csv to {output}")
        return 0

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
    model_flags.define(required=False)
    candidate_flags.define(candidates=64)
    flags.DEFINE_enum("split", "test", SPLITS, "Split to measure on.")
    flags.DEFINE_bool("allow_external", False, "Read shards that lie outside the data set's parent folder.")
    flags.DEFINE_integer(
        "rows", None, "Rows to draw: of the k-osc task (2048), or for --targets=drawn (100).", lower_bound=1
    )
    flags.DEFINE_string(
        "output", None, "Where to write; default: WORKDIR/evaluation/SPLIT-STEP[-SETTINGS], with --targets: evaluation."
    )
    flags.DEFINE_bool("render", False, "Render the predicted patches and measure how they sound.")
    flags.DEFINE_integer(
        "report_sounds", 50, "Sounds in report.html, evenly from the best to the worst.", lower_bound=1
    )
    flags.DEFINE_string(
        "targets", None, "Compare ways of answering: drawn, or a folder of sounds or preset files. Instead of a split."
    )
    flags.DEFINE_string(
        "prior",
        "",
        "--targets: folder of preset files, whose mixtures are the random rows, and the rows of --targets=drawn.",
    )
    renderer_flags.define()
    distributed.define()
    cli.run(main)
