"""Renders predicted patches and measures how far they sound from their targets.

Besides the prediction, the true patch is rendered twice where it is known. ``oracle`` is the true patch against the
target: predicted parameters rarely come nearer. ``noise_floor`` is one render of the true patch against the other: the
synthesizer's own chance. All sounds are rounded to float16, as targets are stored. In a data set without audio, the
true patch is rendered as the target too.

Shapes: N rows, W row width, T samples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data_pipeline.audio.metrics import METRICS, SoundFeatures, measure_pairs
from data_pipeline.console.append_log import RecordLog
from data_pipeline.console.cli import UserError
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from synthjax.evaluation.table import NOISE_FLOOR, ORACLE, PREDICTION, Figures

# Rows between two records on the disk: a crash loses no more. A few dozen keep all workers busy most of the time.
ROWS_AT_ONCE = 32

Measured = dict[str, dict[str, float]]
"""Metrics of one row by kind; without the prediction's where it could not be rendered."""


@dataclass(frozen=True)
class Predictions:
    """Predicted rows for N named targets.

    Attributes:
      spec: the spec of the rows.
      names: (N,).
      rows: the predicted rows.
      target: the audio (2, T) of an index; None for true rows without audio.
      true: the true rows, or None where they are not known.
    """

    spec: ParamSpec
    names: Sequence[str]
    rows: Float[np.ndarray, "N W"]
    target: Callable[[int], NDArray[np.floating]] | None
    true: Float[np.ndarray, "N W"] | None


def measure_sounds(
    predictions: Predictions, renderer: PatchRenderer, path: Path, identity: Mapping[str, Any]
) -> list[Measured]:
    """Renders and measures the predictions, with a progress bar.

    Args:
      path: keeps the measurements as they come. A second call takes them up from there.
      identity: what the measurements belong to, as JSON values.

    Raises:
      UserError: if ``path`` holds the measurements of another evaluation.
    """
    count = len(predictions.rows)
    with closing(RecordLog(path)) as log:
        measured = recover(log, json.loads(json.dumps(identity)))
        missing = [index for index in range(count) if index not in measured]
        if measured:
            print(f"{len(measured)} of {count} sounds were measured before")
        try:
            with progress_bar("rendering and measuring", len(missing)) as advance:
                for first in range(0, len(missing), ROWS_AT_ONCE):
                    found = _measure(predictions, renderer, missing[first : first + ROWS_AT_ONCE])
                    log.append(json.dumps(list(found.items())).encode())
                    measured |= found
                    advance(len(found))
        except KeyboardInterrupt:
            done = f"{len(measured)} of {count} sounds are measured"
            print(f"{done}; the same command goes on from there", file=sys.stderr)
            raise
    return [measured[index] for index in range(count)]


def recover(log: RecordLog, identity: dict[str, Any]) -> dict[int, Measured]:
    """The measurements that a log holds. Its first record is their identity.

    Raises UserError if they belong to another evaluation.
    """
    measured: dict[int, Measured] = {}
    for number, (_, payload) in enumerate(log.recover()):
        content = json.loads(payload)
        if number > 0:
            measured |= dict(content)
        elif content != identity:
            raise UserError(f"{log.path} has measurements of another evaluation: give another --output, or remove it")
    if log.empty:
        log.append(json.dumps(identity).encode())
    return measured


def _measure(predictions: Predictions, renderer: PatchRenderer, indices: Sequence[int]) -> dict[int, Measured]:
    measured: dict[int, Measured] = {index: {} for index in indices}
    for (index, kind), metrics in measure_pairs(_pairs(predictions, renderer, indices), renderer.workers):
        measured[index][kind] = metrics
    return measured


def _pairs(
    predictions: Predictions, renderer: PatchRenderer, indices: Sequence[int]
) -> Iterator[tuple[tuple[int, str], SoundFeatures, SoundFeatures]]:
    """The pairs to measure with their index and kind, in the order in which their sounds are rendered."""
    target_of = load_targets(predictions, renderer, indices)
    targets: dict[int, SoundFeatures] = {}
    oracles: dict[int, SoundFeatures] = {}
    for patch in renderer.render(_patches(predictions, indices)):
        if patch.audio is None:
            continue
        kind, index = patch.key
        if index not in targets:
            if (target := target_of(index)) is None:
                continue
            targets[index] = SoundFeatures(target)
        sound = SoundFeatures(as_stored(patch.audio))
        if kind == PREDICTION:
            yield (index, PREDICTION), targets[index], sound
        elif index not in oracles:
            oracles[index] = sound
            yield (index, ORACLE), targets[index], sound
        else:
            yield (index, NOISE_FLOOR), oracles.pop(index), sound


def load_targets(
    predictions: Predictions, renderer: PatchRenderer, indices: Sequence[int]
) -> Callable[[int], NDArray[np.float32] | None]:
    """The function from one of ``indices`` to the audio (2, T) of its target.

    Where no audio is stored, the true patches are rendered here, and it returns None for one that cannot be rendered.
    """
    if (stored := predictions.target) is not None:
        return lambda index: stored(index).astype(np.float32)
    assert predictions.true is not None
    patches = renderer.render([(index, predictions.true[index]) for index in indices])
    return {patch.key: as_stored(patch.audio) for patch in patches if patch.audio is not None}.get


def _patches(
    predictions: Predictions, indices: Sequence[int]
) -> Iterator[tuple[tuple[str, int], NDArray[np.floating]]]:
    for index in indices:
        yield (PREDICTION, index), predictions.rows[index]
    if predictions.true is not None:
        # The two renders of a patch do not follow each other: a synthesizer may carry its state over.
        for kind in (ORACLE, NOISE_FLOOR):
            for index in indices:
                yield (kind, index), predictions.true[index]


def as_stored(audio: NDArray[np.floating]) -> NDArray[np.float32]:
    """Audio rounded as data sets store it."""
    return audio.astype(np.float16).astype(np.float32)


def audio_figures(results: Sequence[Measured]) -> Figures:
    """The audio metrics by kind, of the kinds that were measured; values of rows without a render are masked."""
    figures: dict[str, dict[str, NDArray[np.float64]]] = {}
    for kind in (PREDICTION, ORACLE, NOISE_FLOOR):
        missing = [kind not in measured for measured in results]
        if not all(missing):
            values = [[measured.get(kind, {}).get(name, 0.0) for measured in results] for name in METRICS]
            figures[kind] = {n: np.ma.MaskedArray(v, missing) for n, v in zip(METRICS, values, strict=True)}
    return figures
