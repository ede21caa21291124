"""The report of ``synthjax.predict``: every sound beside its candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_pipeline.audio.contract import VELOCITY
from data_pipeline.audio.sound_files import LoadedSound
from data_pipeline.synths.decoding import note_name
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH
from synthjax.evaluation.table import PREDICTION
from synthjax.inference.candidates import ONLY, REFINED, Candidate, Prediction
from synthjax.metrics.parameters import summarise
from synthjax.report import Clip, ReportWriter, SoundEntry
from synthjax.report.entries import PREDICTION_METRICS, metric_rows, parameter_rows


@contextmanager
def prediction_report(
    path: Path, about: Mapping[str, str], sounds: int
) -> Iterator[Callable[[str, LoadedSound, Prediction], None]]:
    """Yields a function that adds a sound, its name first, to the report of so many sounds at most.

    The report is finished at the end, and on Ctrl-C with the sounds so far. ``about`` stands under its title.
    """
    distances: list[Mapping[str, float]] = []
    interruption: KeyboardInterrupt | None = None
    with ReportWriter(path, "Predicted patches", about, PREDICTION_METRICS, sounds) as writer:

        def add(name: str, sound: LoadedSound, prediction: Prediction) -> None:
            writer.add(_entry(name, sound, prediction))
            if prediction.best.distances:
                distances.append(prediction.best.distances)

        try:
            yield add
        except KeyboardInterrupt as error:
            interruption = error
        names = dict.fromkeys(name for one in distances for name in one)
        summaries = {name: summarise(np.array([one[name] for one in distances if name in one])) for name in names}
        writer.finish(metric_rows({PREDICTION: summaries}))
        if interruption is not None:
            raise interruption


def _entry(name: str, sound: LoadedSound, prediction: Prediction) -> SoundEntry:
    """One sound; candidates that were not rendered are not shown, the prediction's parameters always are."""
    several = len(prediction.candidates) > 1
    clips = [_clip(number, candidate, prediction) for number, candidate in enumerate(prediction.candidates)]
    notes = [*sound.notes, _note_played(prediction), f"From: {prediction.best.origin}."]
    if prediction.chosen != ONLY:
        notes.append(f"Chosen: {prediction.chosen}.")
    notes += [f"Not rendered: {one.fault}" for one in prediction.candidates if one.fault]
    return SoundEntry(
        name,
        Clip("Target", sound.audio),
        [clip for clip in clips if clip.audio is not None],
        parameter_rows(prediction.spec, prediction.best.row, spread=prediction.spread if several else None),
        notes,
    )


def _note_played(prediction: Prediction) -> str:
    """The note that the answer was made for: the files of many synthesizers hold none."""
    values = prediction.values
    start, end = values[NOTE_TIMES]
    return f"Answered for the key {note_name(values[PITCH])}, held {end - start:.2f} s, at velocity {VELOCITY}."


def _clip(number: int, candidate: Candidate, prediction: Prediction) -> Clip:
    refined = prediction.chosen == REFINED
    if number == 0:
        label = "Prediction, refined" if refined else "Prediction"
    else:
        label = f"Candidate {number if refined else number + 1}"
    return Clip(
        label if refined and number == 0 else f"{label}, {candidate.origin}", candidate.audio, candidate.distances
    )
