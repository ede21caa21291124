"""Compares starts of the search on sounds or presets, at equal numbers of renders, those of the start included.

    python -m scripts.benchmarks.starts --targets=FOLDER --library=INDEX --presets=FOLDER --refine_evaluations=1000

random    64 random rows of the prior (--prior), played with the target's note
library   the 64 nearest of the library
presets   32 of these, and the 32 nearest of the presets
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console import cli
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.counter_rng import LIBRARY_SEED
from synthjax.evaluation.table import print_table, tabulate
from synthjax.evaluation.targets import Targets, targets_in
from synthjax.evaluation.ways import differences
from synthjax.inference import candidate_flags, renderer_flags
from synthjax.inference.candidates import Candidate
from synthjax.inference.predictor import NEIGHBOURS, Predictor
from synthjax.inference.refine import Budget
from synthjax.inference.target_note import with_note
from synthjax.runs import model_flags
from synthjax.tasks.rendered import render_settings

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}: starts takes flags only")
    for name in ("candidates", "refine", "workdir"):
        if FLAGS[name].present:
            raise cli.UserError(f"{FLAGS[name].serialize()} would be ignored: starts have 64 patches each and no model")
    _, library = candidate_flags.load()
    if library is None or not (FLAGS.targets and FLAGS.presets and FLAGS.refine_evaluations):
        raise cli.UserError("name --targets, --library or --bundle, --presets and --refine_evaluations")
    with renderer_flags.start_renderer(library.spec) as renderer:
        targets = targets_in(Path(FLAGS.targets), library.spec, renderer)
        libraries = candidate_flags.libraries(library, library.spec, renderer)
        predictors = [Predictor(None, renderer, one, sounding=targets.outside) for one in libraries]
        prior = render_settings(library.spec, LIBRARY_SEED, FLAGS.prior, renderer.synth).prior
        random = prior.sample(LIBRARY_SEED, range(NEIGHBOURS), [0] * NEIGHBOURS)
        measured = []
        with progress_bar("answering", len(targets.names)) as advance:
            for index in range(len(targets.names)):
                measured.append(_measure(predictors, random, targets, index))
                advance(1)
    figures: Any = {
        way: {name: np.array([one[way][name] for one in measured]) for name in distances}
        for way, distances in measured[0].items()
    }
    table = tabulate({}, len(measured), figures)
    print_table(table)
    print("\ndifferences, paired by target")
    print_table(replace(table, metrics=differences(figures)))


def _measure(
    predictors: Sequence[Predictor], random: NDArray[np.float32], targets: Targets, index: int
) -> dict[str, Mapping[str, float]]:
    """The distances of a target's best patch after all renders, by start."""
    sound = targets.audio(index)
    mels = mel_spectrogram(sound)[None]
    library, presets = (one.nearest([sound], mels, NEIGHBOURS)[0] for one in predictors)
    predictor = predictors[0]
    starts = {
        "random": [Candidate(with_note(row, predictor.spec, targets.notes[index])) for row in random],
        "library": library,
        "presets": [*library[: NEIGHBOURS // 2], *presets[: NEIGHBOURS // 2]],
    }
    found = {}
    for start, candidates in starts.items():
        [ranked] = predictor.rank([sound], [candidates], keep=1)
        budget = Budget(evaluations=FLAGS.refine_evaluations - len(candidates))
        refined, interrupted = predictor.refine(sound, ranked, budget)
        if interrupted:
            raise KeyboardInterrupt
        found[start] = refined.best.distances
    return found


if __name__ == "__main__":
    flags.DEFINE_string("targets", "", "Folder of sounds or preset files.")
    flags.DEFINE_string("prior", "", "Folder of preset files, whose mixtures are the random rows.")
    model_flags.define(required=False)
    candidate_flags.define(candidates=NEIGHBOURS)
    renderer_flags.define()
    cli.run(main)
