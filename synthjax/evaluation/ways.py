"""Ways of answering, measured side by side on the same targets, at equal numbers of renders.

random        the best of K rows of the prior, played with the target's own key and times
nearest       the library's nearest by its stored sounds, rendered once: no render chooses it
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
from numpy.typing import NDArray

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.append_log import RecordLog
from data_pipeline.console.progress import progress_bar
from data_pipeline.render.row_renderer import RenderSettings
from data_pipeline.render.worker_pool import Supervision, WorkerPool
from synthjax.evaluation.audio import Measured, recover
from synthjax.evaluation.table import NOISE_FLOOR, PREDICTION, RANDOM, Figures
from synthjax.evaluation.targets import Targets
from synthjax.inference.candidates import Candidate, Prediction
from synthjax.inference.predictor import Predictor
from synthjax.inference.refine import Budget
from synthjax.inference.target_note import with_note
from synthjax.metrics.parameters import Summary, summarise
from synthjax.retrieval.drawn import DrawLog, PooledSettings

NEAREST, LIBRARY, BOTH, REFINED = "nearest", "library", "both", "refined"
ORDER = (RANDOM, NEAREST, LIBRARY, PREDICTION, BOTH, REFINED, NOISE_FLOOR)
RENDERS, SECONDS = "renders", "seconds"

# At most so many random rows are rendered, which the targets share.
RANDOM_PATCHES = 1024

Row = NDArray[np.floating]
Answers = dict[str, Prediction]
"""The answers to one target by way."""


@dataclass(frozen=True)
class Settings:
    """How targets are answered.

    Attributes:
      renders: K.
      random: how random rows are drawn and accepted.
      budget: of the refinement; None for none.
    """

    renders: int
    random: RenderSettings
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
        random = _random_patches(predictor, settings, count, path.with_name("random.partial")) if missing else []
        try:
            with progress_bar("answering", len(missing)) as advance:
                for index in missing:
                    numbers = np.arange(index * settings.renders, (index + 1) * settings.renders) % len(random)
                    rows = [random[number] for number in numbers]
                    measured[index], answers = _answer(predictor, targets, index, rows, settings)
                    log.append(json.dumps([(index, measured[index])]).encode())
                    on_answers(index, answers)
                    advance(1)
        except KeyboardInterrupt:
            print(f"{len(measured)} of {count} targets are answered; the same command goes on", file=sys.stderr)
            raise
    return [measured[index] for index in range(count)]


def _answer(
    predictor: Predictor, targets: Targets, index: int, random: Sequence[Row], settings: Settings
) -> tuple[Measured, Answers]:
    """The metrics of all ways of answering one target, and the answers."""
    sound = targets.audio(index)
    measured: Measured = {}
    answers: Answers = {}
    begin = monotonic()
    for way, candidates in _proposals(predictor, targets, index, sound, random, settings.renders):
        [answers[way]] = predictor.rank([sound], [candidates], keep=1)
        measured[way] = _figures(answers[way], len(candidates), monotonic() - begin)
        begin = monotonic()
    if settings.budget:
        way = next(way for way in (BOTH, LIBRARY, PREDICTION, RANDOM) if way in answers)
        answers[REFINED], interrupted = predictor.refine(sound, answers[way], settings.budget)
        if interrupted:
            raise KeyboardInterrupt
        seconds = monotonic() - begin + measured[way].get(SECONDS, 0.0)
        renders = answers[REFINED].evaluations + measured[way].get(RENDERS, 0)
        measured[REFINED] = _figures(answers[REFINED], int(renders), seconds)
    return measured, answers


def _proposals(
    predictor: Predictor,
    targets: Targets,
    index: int,
    sound: NDArray[np.floating],
    random: Sequence[Row],
    renders: int,
) -> Iterator[tuple[str, list[Candidate]]]:
    """The candidates of every way but refinement."""
    note = targets.notes[index]
    yield RANDOM, [Candidate(with_note(row, predictor.spec, note), "random row") for row in random]
    mels = mel_spectrogram(sound)[None]
    nearest: list[Candidate] = []
    if predictor.libraries:
        nearest = predictor.nearest([sound], mels, renders)[0][:renders]
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


def _random_patches(predictor: Predictor, settings: Settings, targets: int, path: Path) -> list[Row]:
    """Rows (W,) of the prior, accepted as those of a data set are. Targets share them; ``path`` keeps them."""
    assert predictor.renderer is not None
    wanted = max(settings.renders, min(RANDOM_PATCHES, targets * settings.renders))
    with DrawLog(path, settings.random, range(wanted)) as log:
        if log.missing:
            log.render(WorkerPool(PooledSettings(settings.random), predictor.renderer.workers, Supervision()))
        source, _ = log.result()
    return [source.patch(number, predictor.spec)[0] for number in range(len(source))]


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
