"""Compares a model with random rows of its training data: python -m scripts.against_random --workdir=DIR BANK.syx...

The targets are the patches of preset files, each played with one note. The model answers a target's sound with K rows
drawn from its posterior, key and times of the note included. Against them stand K rows of the data that the model
learnt from, played with the target's own key and times. Of K rows the one whose sound ranks first counts, on both sides
by the same ranking. Prints every metric of both, and the difference with its interval over the targets; a negative
difference means that the model is nearer (for RMS a positive one).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_pipeline.audio.contract import SECONDS
from data_pipeline.console import cli
from data_pipeline.console.atomic import make_folder
from data_pipeline.console.cli import UserError
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.counter_rng import LIBRARY_SEED
from data_pipeline.params.spec import ParamSpec
from data_pipeline.shards.reader import PARAM_ARRAY
from data_pipeline.synths.choice import open_synth, synth_for
from data_pipeline.synths.preset_files import read
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH
from synthjax.cluster import distributed, jax_settings
from synthjax.evaluation.table import PREDICTION, RANDOM, print_table, tabulate, write_table
from synthjax.inference import renderer_flags
from synthjax.inference.predictor import Candidate, Predictor
from synthjax.runs.model import Model
from synthjax.runs.workdir import Workdir
from synthjax.tasks.rendered import RenderedOrder, RenderedRows, render_settings

FLAGS = flags.FLAGS
MEASURED = ("mss", "wmfcc", "sot", "rms")


def main(argv: list[str]) -> None:
    """The command."""
    if len(argv) < 2:
        raise UserError("give preset files: python -m scripts.against_random --workdir=DIR BANK.syx...")
    if FLAGS.output:
        make_folder(Path(FLAGS.output))  # Before the long part.
    jax_settings.apply()
    distributed.require_devices()
    model = Model.load(Workdir(FLAGS.workdir), checkpoint=FLAGS.checkpoint)
    sounds = target_sounds(list(map(Path, argv[1:])), model.spec)
    with renderer_flags.start_renderer(model.spec) as renderer:
        predictor = Predictor(model, renderer)
        for count in FLAGS.candidates:
            figures = compare(predictor, sounds, int(count))
            about = {"checkpoint": model.step, "renders": int(count), "note": FLAGS.note, "seconds": FLAGS.seconds}
            table = tabulate(about, len(sounds), figures)
            print(f"\nbest of {count}")
            print_table(table)
            if FLAGS.output:
                write_table(Path(FLAGS.output) / f"best_of_{count}.json", table)


def target_sounds(files: Sequence[Path], spec: ParamSpec) -> list[NDArray[np.float32]]:
    """The sounds (2, T) of all patches of preset files, played with the note of the flags."""
    synth = open_synth(synth_for(spec))
    note = {PITCH: FLAGS.note, NOTE_TIMES: (0.0, FLAGS.seconds)}
    return [synth.render(note, base=patch.base) for file in files for patch in read(file)[0]]


def compare(predictor: Predictor, sounds: list, count: int) -> dict[str, dict[str, NDArray]]:
    """Metrics (S,) by name of the model's best of ``count`` rows, of the best random row, and their differences."""
    assert predictor.model is not None
    rows = random_rows(predictor.spec, len(sounds) * count, predictor.model.config.data.get("prior", ""))
    found: dict[str, list[dict[str, float]]] = {PREDICTION: [], RANDOM: []}
    with progress_bar(f"best of {count}", len(sounds)) as advance:
        for index, sound in enumerate(sounds):
            [answer] = predictor.predict([sound], candidates=count, batch_size=1)
            found[PREDICTION].append(dict(answer.best.distances))
            drawn = rows[index * count : (index + 1) * count]
            [answer] = predictor.rank([sound], [[Candidate(row) for row in drawn]])
            found[RANDOM].append(dict(answer.best.distances))
            advance(1)
    figures = {kind: {name: np.array([one[name] for one in all_]) for name in MEASURED} for kind, all_ in found.items()}
    figures["difference"] = {name: figures[PREDICTION][name] - figures[RANDOM][name] for name in MEASURED}
    return figures


def random_rows(spec: ParamSpec, count: int, prior: str) -> NDArray[np.float32]:
    """Rows (N, W) of the training data, but of the seed of libraries, with the note of the targets."""
    rows = RenderedRows(render_settings(spec, LIBRARY_SEED, prior), RenderedOrder(count, 1)).read_rows(
        PARAM_ARRAY, np.arange(count)
    )
    note = spec.encode({**spec.decode(rows[0]), PITCH: FLAGS.note, NOTE_TIMES: (0.0, FLAGS.seconds)})
    for name in (PITCH, NOTE_TIMES):
        rows[:, spec.slices[name]] = note[spec.slices[name]]
    return rows


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    flags.DEFINE_string("checkpoint", "best", "best (by validation), latest, or a step.")
    renderer_flags.define()
    flags.DEFINE_list("candidates", ["1", "32"], "Rows for each target, on both sides.")
    flags.DEFINE_integer("note", 60, "MIDI note number of the targets.", lower_bound=0, upper_bound=127)
    flags.DEFINE_float("seconds", 3.0, "Length of the targets' note.", lower_bound=0.01, upper_bound=SECONDS)
    flags.DEFINE_string("output", None, "Folder for the tables as JSON.")
    cli.run(main)
