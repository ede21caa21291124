"""The report of ``synthjax.predict``: every sound beside its candidates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from data_pipeline.audio_io import LoadedSound
from synthjax.predictor import ONLY, REFINED, Candidate, Prediction
from synthjax.report import Clip, MetricRow, ReportWriter, SoundEntry
from synthjax.report_entries import AUDIO_METRICS, metric_row, parameter_rows


class PredictionReport:
    """A report in the making, of so many sounds at most; ``about`` stands under its title."""

    def __init__(self, path: Path, about: Mapping[str, str], sounds: int) -> None:
        self._writer = ReportWriter(path, "Predicted patches", about, AUDIO_METRICS, sounds)
        self._distances: list[Mapping[str, float]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, traceback)

    def add(self, name: str, sound: LoadedSound, prediction: Prediction) -> None:
        """Adds one sound; candidates that were not rendered are not shown, the prediction's parameters always are."""
        count = len(prediction.candidates)
        clips = [_clip(number, candidate, prediction) for number, candidate in enumerate(prediction.candidates)]
        notes = [*sound.notes, f"Chosen: {prediction.chosen}." if count > 1 or prediction.chosen != ONLY else ""]
        notes += [f"Not rendered: {one.fault}" for one in prediction.candidates if one.fault]
        self._writer.add(
            SoundEntry(
                name,
                Clip("Target", sound.audio),
                [clip for clip in clips if clip.audio is not None],
                parameter_rows(prediction.spec, prediction.best.row, spread=prediction.spread if count > 1 else None),
                [note for note in notes if note],
            )
        )
        if prediction.best.distances:
            self._distances.append(prediction.best.distances)

    def finish(self) -> None:
        """Puts the report in its place."""
        rows: list[MetricRow] = []
        if self._distances:
            rows = [
                metric_row(metric, np.array([distances[metric.key] for distances in self._distances]))
                for metric in AUDIO_METRICS
            ]
        self._writer.finish(rows)


def _clip(number: int, candidate: Candidate, prediction: Prediction) -> Clip:
    refined = prediction.chosen == REFINED
    if number == 0:
        label = "Prediction, refined" if refined else "Prediction"
    else:
        label = f"Candidate {number if refined else number + 1}"
    return Clip(label, candidate.audio, candidate.distances)
