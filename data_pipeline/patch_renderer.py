"""Renders given patches, such as a model's predictions, in supervised worker processes.

    with PatchRenderer(synth_for(spec), workers=4) as renderer:
        for patch in renderer.render(enumerate(rows)):
            ...  # patch.key, patch.audio or patch.fault

A data set draws another patch where one will not do (``row_renderer``); here each is somebody's answer. So there is no
rule of loudness, silence and clipping are results, and a patch that cannot be rendered is delivered with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.batch_renderer import Attempt, Batch
from data_pipeline.param_spec import ParamSpec
from data_pipeline.synths.protocol import CHANNELS, SAMPLES, Audio, Synth, SynthSettings
from data_pipeline.worker_pool import Loss, Outcome, Rejection, Supervision, WorkerPool

# Audio travels at 1.4 MB a patch, and a crash costs the batch: few, but enough to share the check that ends a batch.
MAX_BATCH = 4
# What follows may round to float16, which holds anything louder as infinity.
MAX_SAMPLE = float(np.finfo(np.float16).max)

KeyT = TypeVar("KeyT")


@dataclass(frozen=True, eq=False)
class RenderedPatch(Generic[KeyT]):
    """The sound (2, 176400) of the row that was given with ``key``, or None and the ``fault`` that prevented it.

    ``preset`` is the patch as a ``.vstpreset``, where it was asked for and the synthesizer is a plugin.
    """

    key: KeyT
    audio: Audio | None
    fault: str = ""
    preset: bytes | None = None


@dataclass(frozen=True, eq=False)
class PatchBatch(Batch):
    """The rows (W,) of a batch's indices, and whether presets of them are wanted too."""

    rows: tuple[NDArray[np.float64], ...] = field(kw_only=True)
    presets: bool = False


@dataclass(frozen=True)
class PatchSettings:
    """What a worker needs to render given patches."""

    synth: SynthSettings

    def renderer(self, synth: Synth) -> PatchBatchRenderer:
        """What a worker renders them with."""
        return PatchBatchRenderer(self.synth.spec, synth)


RenderedPatches = tuple[RenderedPatch[int], ...]
"""What became of a batch: patches by index, without those forbidden."""


class PatchBatchRenderer:
    """Renders batches of rows with one synthesizer of this process: the worker's side."""

    def __init__(self, spec: ParamSpec, synth: Synth) -> None:
        self._spec = spec
        self._synth = synth

    def render(self, batch: PatchBatch, announce: Callable[[Attempt], None]) -> RenderedPatches:
        """Renders the batch's rows in order, each announced as its index's attempt 0.

        Raises DriftError where the synthesizer does
        not hold what it was given.
        """
        rendered = []
        for index, row in zip(batch.indices, batch.rows, strict=True):
            attempt = (index, 0)
            if attempt in batch.forbidden:
                continue
            announce(attempt)
            rendered.append(self._render(index, row, batch.presets))
            if batch.verify_each:
                self._synth.verify()
        self._synth.verify()
        return tuple(rendered)

    def _render(self, index: int, row: NDArray[np.float64], with_preset: bool) -> RenderedPatch[int]:
        try:
            values = self._spec.decode(row)
        except ValueError as error:
            return RenderedPatch(index, None, f"the row is no patch: {error}")
        audio = self._synth.render(values)
        if audio.shape != (CHANNELS, SAMPLES):
            return RenderedPatch(index, None, f"audio of shape {audio.shape}, not {(CHANNELS, SAMPLES)}")
        if not np.abs(audio).max() <= MAX_SAMPLE:  # Nor is NaN, the maximum where any sample is NaN.
            return RenderedPatch(index, None, "non-finite audio")
        return RenderedPatch(index, audio, preset=self._synth.preset() if with_preset else None)


class PatchRenderer:
    """Worker processes that render rows of one spec. Use as a context manager: leaving it ends them.

    They start at once and stay warm from one ``render`` to the next. ``synth_name`` and ``synth_version`` are empty
    until a worker is known to be ready; ``restarts`` has a line for each worker that had to be replaced.
    """

    def __init__(self, synth: SynthSettings, workers: int, supervision: Supervision | None = None) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers cannot render")
        self.synth_name = self.synth_version = ""
        self.restarts: list[str] = []
        self._rejections: list[Rejection] = []
        self.synth, self.workers = synth, workers
        self._supervision = supervision or Supervision()
        # Keys may recur in a later call, and a patch's failures must not be held against it: indices never recur.
        self._indices = count()
        self._pool: WorkerPool[PatchBatch, RenderedPatches] | None = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers at once."""
        if self._pool:
            self._pool.close()
        self._pool = None

    def wait_until_ready(self) -> None:
        """Returns once a worker has opened the synthesizer. Raises UserError where none can."""
        if self._pool is None:
            self._pool = self._start()
        try:
            for outcome in self._pool.run([PatchBatch((), rows=())], self._note_loss):
                list(self._patches(outcome))  # None are new, but who renders them is noted.
        except BaseException:
            self.close()
            raise

    def render(self, rows: Iterable[tuple[KeyT, ArrayLike]], *, presets: bool = False) -> Iterator[RenderedPatch[KeyT]]:
        """Renders pairs of a key and a row (W,), and yields each as it is done, in any order.

        Rows are taken as they are needed. Any real row is a patch (``ParamSpec.decode``). One that cannot be rendered
        comes with a fault: NaN or a wrong number of columns, audio that is not finite, or three workers that died,
        hung or drifted over it.

        One call at a time; one that is not listened to till its end may be followed by another. After an exception,
        Ctrl-C included, another call starts with new workers. Raises UserError where no worker can do the work.
        ``presets`` asks for ``.vstpreset`` files too.
        """
        if self._pool is None:
            self._pool = self._start()
        keys: dict[int, KeyT] = {}
        try:
            for outcome in self._pool.run(self._batches(rows, keys, presets), self._note_loss):
                for patch in self._patches(outcome):
                    if patch.key in keys:  # Else an earlier call's, which was not listened to till its end.
                        yield RenderedPatch(keys.pop(patch.key), patch.audio, patch.fault, patch.preset)
        except GeneratorExit:
            raise
        except BaseException:
            self.close()  # Ctrl-C in the middle of a message leaves a pipe that makes no sense from there on.
            raise
        if keys:
            raise RuntimeError("another call of render has taken this one's patches")

    def preset(self, row: ArrayLike) -> bytes | None:
        """The ``.vstpreset`` of a row (W,), as the plugin has it when it has played it; None as in ``RenderedPatch``.

        Raises UserError where no worker can do the work.
        """
        [patch] = self.render([(None, row)], presets=True)
        return patch.preset

    def _start(self) -> WorkerPool[PatchBatch, RenderedPatches]:
        return WorkerPool(PatchSettings(self.synth), self.workers, self._supervision)

    def _note_loss(self, loss: Loss) -> None:
        self.restarts.append(f"{loss.reason}: {loss.detail}")
        if loss.rejection:
            self._rejections.append(loss.rejection)

    def _batches(
        self, rows: Iterable[tuple[KeyT, ArrayLike]], keys: dict[int, KeyT], presets: bool
    ) -> Iterator[PatchBatch]:
        """The rows in batches, the last ones shared evenly among the workers; ``keys`` is told who they are."""
        source = iter(rows)
        while share := list(islice(source, self.workers * MAX_BATCH)):
            size = -(-len(share) // self.workers)
            for start in range(0, len(share), size):
                part = share[start : start + size]
                indices = tuple(islice(self._indices, len(part)))
                keys.update(zip(indices, (key for key, _ in part), strict=True))
                # Rows may be arrays of JAX, which workers cannot read; they decode in float64 anyway.
                arrays = tuple(np.asarray(row, np.float64) for _, row in part)
                yield PatchBatch(indices, rows=arrays, presets=presets)

    def _patches(self, outcome: Outcome[RenderedPatches]) -> Iterator[RenderedPatch[int]]:
        self.synth_name, self.synth_version = outcome.synth_name, outcome.synth_version
        rejections, self._rejections = self._rejections, []
        for rejection in rejections:
            reason = f"it cost three workers ({rejection.reason}: {rejection.detail})"
            yield RenderedPatch(rejection.index, None, reason)
        yield from outcome.batch
