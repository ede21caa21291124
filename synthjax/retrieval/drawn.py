"""Patches that are drawn and rendered for an index. Their sounds are not kept, only the pooled spectrograms.

Every batch is on the disk when it is rendered: a log beside the index, from which the same command goes on.

Shapes: N patches, E pooled numbers, W row width.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.append_log import RecordLog
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.progress import RenderProgress
from data_pipeline.render.row_renderer import Refused, RenderSettings, RowRenderer
from data_pipeline.render.worker_messages import Attempt, Batch
from data_pipeline.render.worker_pool import WorkerPool
from data_pipeline.synths.protocol import Synth, SynthSettings
from synthjax.retrieval.embedding import POOLED, delay, pooled
from synthjax.retrieval.index import VERSION, Source

# A batch of the fastest synthesizer takes a second.
BATCH = 32


@dataclass(frozen=True, eq=False)
class PooledBatch:
    """Drawn patches as an index needs them: number, accepted attempt, delay, row (n, W), pooled spectrogram (n, E)."""

    indices: tuple[int, ...]
    attempts: tuple[int, ...]
    delays: tuple[int, ...]
    rows: NDArray[np.float32]
    pooled: NDArray[np.uint8]
    refused: Counter[str]


@dataclass(frozen=True)
class PooledSettings:
    """The settings of a worker that draws and renders patches for an index."""

    settings: RenderSettings

    @property
    def synth(self) -> SynthSettings:
        """The synthesizer to open."""
        return self.settings.synth

    def renderer(self, synth: Synth) -> PooledRenderer:
        """The renderer of drawn patches in a worker."""
        return PooledRenderer(RowRenderer(self.settings, synth), self.synth.spec)


class PooledRenderer:
    """Renders batches of drawn patches with one synthesizer in this process: the worker's side."""

    def __init__(self, rows: RowRenderer, spec: ParamSpec) -> None:
        self._rows = rows
        self._times, self._columns = spec.note_times, spec.slices[spec.note_times.name]

    def render(self, batch: Batch, announce: Callable[[Attempt], None]) -> PooledBatch:
        """Renders a whole batch, as ``RowRenderer.accepted`` does."""
        refused = Refused()
        found = []
        for row in self._rows.accepted(batch, announce, refused):
            mel = mel_spectrogram(row.audio)
            start, _ = self._times.decode(row.params[self._columns])
            found.append((row.index, row.attempt, delay(mel, start), row.params, pooled(mel)))
        indices, attempts, delays, params, sounds = zip(*found, strict=True)
        return PooledBatch(indices, attempts, delays, np.stack(params), np.stack(sounds), refused.counts)


class DrawLog:
    """The patches of an index that are drawn and rendered so far. Locked: only one process fills it.

    Args:
      path: the log's file.
      settings: those of the draw. Rows are kept only where a mixture draws them: else the attempt gives them back.
      numbers: the numbers of the patches.

    Raises UserError if another process fills the log, or it was begun with other settings.
    """

    def __init__(self, path: Path, settings: RenderSettings, numbers: range) -> None:
        self.path, self.settings, self.numbers = path, settings, numbers
        self.refused: Counter[str] = Counter()
        self.synth: tuple[str, str] | None = None
        self._found: dict[int, tuple[int, int]] = {}  # The accepted attempt and the delay of each patch.
        self._pooled = np.zeros((len(numbers), POOLED), np.uint8)
        self._rows = np.zeros((len(numbers) if settings.mixture else 0, settings.synth.spec.width), np.float32)
        self._log = RecordLog(path)
        try:
            self._recover()
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._found:
            self._log.remove()
        self._log.close()

    @property
    def missing(self) -> list[int]:
        """The numbers of the patches that are not rendered yet, in order."""
        return [number for number in self.numbers if number not in self._found]

    def render(self, pool: AbstractContextManager[WorkerPool[Batch, PooledBatch]]) -> None:
        """Renders the missing patches. Raises UserError where that cannot be done; what is rendered stays."""
        missing = self.missing
        with pool as workers, RenderProgress(len(self.numbers), len(self._found), self.refused) as progress:
            for outcome in workers.run(_batches(missing), progress.lost):
                self._commit(outcome.batch, (outcome.synth_name, outcome.synth_version))
                progress.update(len(outcome.batch.indices), outcome.batch.refused)

    def result(self) -> tuple[Source, UInt8[np.ndarray, "N E"]]:
        """All patches, and their pooled spectrograms."""
        about = {
            "seed": self.settings.seed,
            "first": self.numbers.start,
            "prior_hash": self.settings.prior_hash,
            "held": self.settings.held,
            "refused": dict(self.refused),
        }
        attempts, delays = zip(*(self._found[number] for number in self.numbers), strict=True)
        rows = self._rows if self.settings.mixture else None
        return Source(about, np.array(delays, np.uint8), np.array(attempts, np.uint16), rows=rows), self._pooled

    def remove(self) -> None:
        """Removes the log's file."""
        self._log.remove()

    def _commit(self, batch: PooledBatch, synth: tuple[str, str]) -> None:
        self._require_synth(synth)
        found = zip(batch.indices, batch.attempts, batch.delays, strict=True)
        line = {"synth": synth, "refused": batch.refused, "rows": [*found]}
        rows = batch.rows.tobytes() if self.settings.mixture else b""
        try:
            if self._log.empty:
                self._log.append(json.dumps(self._identity).encode())
            self._log.append(json.dumps(line).encode() + b"\n" + batch.pooled.tobytes() + rows)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {why(error)}; {len(self._found)} patches are safe, and the same command "
                "goes on from there"
            ) from error
        self._note(line, batch.pooled, batch.rows)

    @property
    def _identity(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "version": VERSION,
            "spec_hash": settings.synth.spec.content_hash,
            "prior_hash": settings.prior_hash,
            "seed": settings.seed,
            "numbers": [self.numbers.start, self.numbers.stop],
            "min_loudness": settings.min_loudness,
            "max_peak": settings.max_peak,
            "held": settings.held,
        }

    def _recover(self) -> None:
        for _, payload in self._log.recover():
            text, _, content = payload.partition(b"\n")
            line = json.loads(text)
            if self._log.empty:
                if name := next((name for name, value in self._identity.items() if line.get(name) != value), None):
                    raise UserError(
                        f"{self.path} was begun with another {name}: go on with the same settings, or remove it"
                    )
                continue
            self._require_synth(tuple(line["synth"]))
            count = len(line["rows"])
            sounds = np.frombuffer(content, np.uint8, count * POOLED).reshape(count, POOLED)
            rows = np.frombuffer(content, np.float32, offset=count * POOLED)
            self._note(line, sounds, rows.reshape(-1, self._rows.shape[1]))

    def _note(self, line: Mapping[str, Any], sounds: NDArray[np.uint8], rows: NDArray[np.float32]) -> None:
        places = [number - self.numbers.start for number, *_ in line["rows"]]
        self._pooled[places] = sounds
        if self.settings.mixture:
            self._rows[places] = rows
        self._found.update((number, tuple(rest)) for number, *rest in line["rows"])
        self.refused.update(line["refused"])

    def _require_synth(self, synth: tuple[str, str]) -> None:
        if self.synth not in (None, synth):
            raise UserError(f"{self.path} has patches of {' '.join(self.synth or ())}, this is {' '.join(synth)}")
        self.synth = synth


def _batches(numbers: list[int]) -> Iterator[Batch]:
    for start in range(0, len(numbers), BATCH):
        yield Batch(tuple(numbers[start : start + BATCH]))
