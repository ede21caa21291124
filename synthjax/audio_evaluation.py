"""How predicted patches sound: rendered, measured against their targets, and put beside what could be reached.

Besides each prediction the true patch is rendered twice. ``oracle``: the true patch against the target, which no
prediction of parameters can beat but by luck. ``noise_floor``: one render of the true patch against the other, what is
left of it when only the synthesizer's own chance differs. All sounds are rounded to float16, as targets are stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data_pipeline.audio_metrics import METRICS, SoundFeatures
from data_pipeline.cli import UserError
from data_pipeline.measure_pairs import measure_pairs
from data_pipeline.patch_renderer import PatchRenderer
from data_pipeline.record_log import RecordLog

PREDICTION, ORACLE, NOISE_FLOOR = "prediction", "oracle", "noise_floor"
# Rows between two records on the disk: what a crash costs. A few dozen keep all workers busy most of the time.
ROWS_AT_ONCE = 32

Rows = Float[np.ndarray, "N W"]
Target = Callable[[int], NDArray[np.floating]]
Measured = dict[str, dict[str, float]]
"""Metrics of one row by kind of pair; empty where the prediction could not be rendered."""


class AudioEvaluation:
    """Measurements of a set of predicted rows, kept in ``path`` as they come, and taken up again from there.

    Args:
      identity: what the measurements belong to; another evaluation's are refused.
      predicted: the rows to render.
      true: the targets' own rows where they are known.
      target: audio (2, T) of the row with this index.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], predicted: Rows, true: Rows | None, target: Target
    ) -> None:
        self._predicted, self._true, self._target = predicted, true, target
        self._log = RecordLog(path)
        self._measured: dict[int, Measured] = {}
        try:
            self._recover(json.loads(json.dumps(identity)))
        except BaseException:
            self._log.close()
            raise

    def close(self) -> None:
        """Lets go of the file."""
        self._log.close()

    @property
    def missing(self) -> list[int]:
        """Rows that are not measured yet."""
        return [index for index in range(len(self._predicted)) if index not in self._measured]

    def run(self, renderer: PatchRenderer, advance: Callable[[int], None]) -> None:
        """Renders and measures what is missing; ``advance`` hears of every few rows when they are on the disk."""
        missing = self.missing
        for first in range(0, len(missing), ROWS_AT_ONCE):
            indices = missing[first : first + ROWS_AT_ONCE]
            measured: dict[int, Measured] = {index: {} for index in indices}
            for (index, kind), metrics in measure_pairs(self._pairs(renderer, indices), renderer.workers):
                measured[index][kind] = metrics
            self._log.append(json.dumps([[index, found] for index, found in measured.items()]).encode())
            self._measured |= measured
            advance(len(indices))

    def results(self) -> list[Measured]:
        """The measurements in the rows' order, when nothing is missing."""
        return [self._measured[index] for index in range(len(self._predicted))]

    def _pairs(
        self, renderer: PatchRenderer, indices: Sequence[int]
    ) -> Iterator[tuple[tuple[int, str], SoundFeatures, SoundFeatures]]:
        """Pairs to measure, as their sounds are rendered."""
        targets: dict[int, SoundFeatures] = {}
        oracles: dict[int, SoundFeatures] = {}
        for patch in renderer.render(self._patches(indices)):
            if patch.audio is None:
                continue
            kind, index = patch.key
            if index not in targets:
                targets[index] = SoundFeatures(self._target(index))
            sound = SoundFeatures(as_stored(patch.audio))
            if kind == PREDICTION:
                yield (index, PREDICTION), targets[index], sound
            elif index not in oracles:
                oracles[index] = sound
                yield (index, ORACLE), targets[index], sound
            else:
                yield (index, NOISE_FLOOR), oracles.pop(index), sound

    def _patches(self, indices: Sequence[int]) -> Iterator[tuple[tuple[str, int], NDArray[np.floating]]]:
        for index in indices:
            yield (PREDICTION, index), self._predicted[index]
        if self._true is not None:
            # The two renders of a patch are apart, since what a synthesizer plays after itself is no fresh start.
            for kind in (ORACLE, NOISE_FLOOR):
                for index in indices:
                    yield (kind, index), self._true[index]

    def _recover(self, identity: dict[str, Any]) -> None:
        for number, (_, payload) in enumerate(self._log.recover()):
            content = json.loads(payload)
            if number > 0:
                self._measured |= {index: measured for index, measured in content}
            elif content != identity:
                raise UserError(
                    f"{self._log.path} has measurements of another evaluation: give another --output, or remove it"
                )
        if self._log.empty:
            self._log.append(json.dumps(identity).encode())


def as_stored(audio: NDArray[np.floating]) -> NDArray[np.float32]:
    """Audio rounded as data sets store it."""
    return audio.astype(np.float16).astype(np.float32)


def by_metric(results: Sequence[Measured], kind: str) -> dict[str, NDArray[np.float64]]:
    """The values of every metric over the rows that have them, for one kind of pair."""
    found = [measured[kind] for measured in results if kind in measured]
    return {name: np.array([metrics[name] for metrics in found]) for name in METRICS} if found else {}
