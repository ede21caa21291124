"""Ways of answering, measured side by side on the same targets, at equal numbers of renders.

random        the best of K rows of the prior, played with the target's own key and times
nearest       the library's nearest, by its stored sounds: one render, which nothing is chosen by
library       the best of the library's K nearest
prediction    the best of K draws of the model
both          the best of K/2 of the library's nearest and K/2 draws of the model
refined       the best of these, refined by the given budget
noise_floor   the target's own patch, rendered again
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.append_log import RecordLog
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.counter_rng import LIBRARY_SEED
from data_pipeline.shards.reader import PARAM_ARRAY
from synthjax.evaluation.audio import Measured, recover
from synthjax.evaluation.table import NOISE_FLOOR, PREDICTION, RANDOM, Figures
from synthjax.evaluation.targets import Targets
from synthjax.inference.predictor import Candidate, Prediction, Predictor
from synthjax.inference.refine import Budget
from synthjax.inference.target_note import with_note
from synthjax.metrics.parameters import Summary, summarise
from synthjax.tasks.rendered import RenderedOrder, RenderedRows, render_settings

NEAREST, LIBRARY, BOTH, REFINED = "nearest", "library", "both", "refined"
ORDER = (RANDOM, NEAREST, LIBRARY, PREDICTION, BOTH, REFINED, NOISE_FLOOR)
RENDERS, SECONDS = "renders", "seconds"

Answers = dict[str, Prediction]
"""The answers to one target by way."""


@dataclass(frozen=True)
class Settings:
    """How targets are answered.

    Attributes:
      renders: K.
      prior: folder of preset files whose mixtures the random rows are; empty: the weights of the spec.
      budget: of the refinement; None for none.
    """

    renders: int
    prior: str = ""
    budget: Budget | None = None


def measure_ways(
    predictor: Predictor,
    targets: Targets,
    settings: Settings,
    path: Path,
    identity: Mapping[str, Any],
    on_answers: Callable[[int, Answers], object],
) -> list[Measured]:
    """Answers every target in all ways; returns the metrics of each way, with renders and seconds.

    Args:
      path: keeps the measurements as they come. A second call takes them up from there.
      identity: what the measurements belong to, as JSON values.
      on_answers: is called with the answers of each target that is answered in this call.

    Raises:
      UserError: if ``path`` holds the measurements of another evaluation.
    """
    count = len(targets.names)
    with closing(RecordLog(path)) as log:
        measured = recover(log, json.loads(json.dumps(identity)))
        missing = [index for index in range(count) if index not in measured]
        if missing != list(range(count)):
            print(f"{count - len(missing)} of {count} targets were answered before")
        random = _random_rows(predictor, count * settings.renders, settings.prior) if missing else np.empty(0)
        try:
            with progress_bar("answering", len(missing)) as advance:
                for index in missing:
                    rows = random[index * settings.renders : (index + 1) * settings.renders]
                    measured[index], answers = _answer(predictor, targets, index, rows, settings)
                    log.append(json.dumps([(index, measured[index])]).encode())
                    on_answers(index, answers)
                    advance(1)
        except KeyboardInterrupt:
            print(f"{len(measured)} of {count} targets are answered; the same command goes on", file=sys.stderr)
            raise
    return [measured[index] for index in range(count)]


def _answer(
    predictor: Predictor, targets: Targets, index: int, random: Float[np.ndarray, "K W"], settings: Settings
) -> tuple[Measured, Answers]:
    """The metrics of all ways of answering one target, and the answers."""
    sound = targets.audio(index)
    measured: Measured = {}
    answers: Answers = {}
    for way, candidates in _proposals(predictor, targets, index, sound, random, settings.renders):
        begin = monotonic()
        [answers[way]] = predictor.rank([sound], [candidates], keep=1)
        measured[way] = _figures(answers[way], len(candidates), monotonic() - begin)
    if settings.budget:
        begin = monotonic()
        way = next(way for way in (BOTH, LIBRARY, PREDICTION, RANDOM) if way in answers)
        answers[REFINED], interrupted = predictor.refine(sound, answers[way], settings.budget)
        if interrupted:
            raise KeyboardInterrupt
        renders = settings.renders + answers[REFINED].evaluations
        measured[REFINED] = _figures(answers[REFINED], renders, monotonic() - begin)
    return measured, answers


def _proposals(
    predictor: Predictor,
    targets: Targets,
    index: int,
    sound: NDArray[np.floating],
    random: Float[np.ndarray, "K W"],
    renders: int,
) -> Iterator[tuple[str, list[Candidate]]]:
    """The candidates of every way but refinement."""
    note = targets.notes[index]
    yield RANDOM, [Candidate(with_note(row, predictor.spec, note), "random row") for row in random]
    mels = mel_spectrogram(sound)[None]
    nearest: list[Candidate] = []
    if predictor.libraries:
        share = renders // len(predictor.libraries)
        nearest = [
            one for library in predictor.libraries for one in predictor.nearest(library, [sound], mels, share)[0]
        ]
        yield NEAREST, nearest[:1]
        yield LIBRARY, nearest
    if predictor.model:
        drawn = predictor.drawn(mels, renders)[0]
        yield PREDICTION, drawn
        if nearest:
            yield BOTH, [*nearest[: renders - renders // 2], *drawn[: renders // 2]]
    if targets.rows is not None:
        yield NOISE_FLOOR, [Candidate(targets.rows[index], "the target's patch")]


def _figures(answer: Prediction, renders: int, seconds: float) -> dict[str, float]:
    if not answer.best.distances:
        return {}
    return {**answer.best.distances, RENDERS: renders, SECONDS: seconds}


def _random_rows(predictor: Predictor, count: int, prior: str) -> Float[np.ndarray, "N W"]:
    """Rows of the prior, accepted as those of a data set are."""
    assert predictor.renderer is not None
    settings = replace(render_settings(predictor.spec, LIBRARY_SEED, prior), synth=predictor.renderer.synth)
    rows = RenderedRows(settings, RenderedOrder(count, 1))
    found = []
    with progress_bar("drawing random rows", count) as advance:
        for first in range(0, count, 64):
            numbers = np.arange(first, min(first + 64, count))
            found.append(rows.read_rows(PARAM_ARRAY, numbers))
            advance(len(numbers))
    return np.concatenate(found)


def side_by_side(answers: Answers) -> Prediction:
    """The best answer of each way, as the candidates of one prediction, the last way first."""
    shown = [(way, answer) for way, answer in answers.items() if way != NOISE_FLOOR]
    best = tuple(replace(answer.best, origin=f"{way}: {answer.best.origin}") for way, answer in reversed(shown))
    return replace(shown[-1][1], candidates=best)


def way_figures(results: Sequence[Measured]) -> Figures:
    """The metrics by way; targets without an answer that could be rendered are masked."""
    figures: dict[str, dict[str, Any]] = {}
    for way in ORDER:
        names = dict.fromkeys(name for measured in results for name in measured.get(way, {}))
        for name in names:
            values = [measured.get(way, {}).get(name, np.nan) for measured in results]
            figures.setdefault(way, {})[name] = np.ma.masked_invalid(values)
    return figures


def differences(figures: Figures) -> dict[str, dict[str, Summary]]:
    """The differences of each way from the one before it, paired by target."""
    found: dict[str, dict[str, Summary]] = {}
    for before, way in pairwise(way for way in figures if way != NOISE_FLOOR):
        for name in figures[way]:
            if name in figures[before] and name not in (RENDERS, SECONDS):
                values = np.ma.compressed(figures[way][name] - figures[before][name])
                found.setdefault(f"{way} - {before}", {})[name] = summarise(values)
    return found
