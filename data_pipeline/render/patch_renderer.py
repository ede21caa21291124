"""Renders given patches, such as a model's predictions, in supervised worker processes.

    with PatchRenderer(synth_for(spec), workers=4) as renderer:
        for patch in renderer.render(enumerate(rows)):
            ...  # patch.key, patch.audio or patch.fault

A data set draws another patch where a sound is not accepted (``row_renderer``). A given patch is a result, so its sound
is returned even if it is silent or clipped, and a patch that cannot be rendered is returned with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.audio.contract import AUDIO_SHAPE
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.worker_messages import Attempt, Batch
from data_pipeline.render.worker_pool import Loss, Rejection, Supervision, WorkerPool
from data_pipeline.synths.protocol import Audio, SoundingError, Synth, SynthSettings

# A patch's audio takes 1.4 MB in the pipe, and a crash costs the whole batch: few patches, but enough of them to share
# the check at a batch's end.
MAX_BATCH = 4
# Callers may round to float16, which holds louder samples as infinity.
MAX_SAMPLE = float(np.finfo(np.float16).max)

KeyT = TypeVar("KeyT")


@dataclass(frozen=True, eq=False)
class OnBase:
    """A patch of a preset file with other values: raw values by parameter name. All others stay."""

    values: Mapping[str, Any]
    base: bytes


GivenPatch = ArrayLike | OnBase
"""A row (W,), or a changed patch of a preset file."""
Measure = Callable[[Audio], Any]
"""A function of a sound (2, 176400) that a worker calls. It must be picklable."""


@dataclass(frozen=True, eq=False)
class RenderedPatch(Generic[KeyT]):
    """The sound (2, 176400) of the row that was given with ``key``, or None and the ``fault`` that prevented it.

    ``preset`` is the patch as a ``.vstpreset``, if it was asked for and the synthesizer is a plugin. ``measured`` is
    the result of the function that was given as ``measure``; the sound is left out then.
    """

    key: KeyT
    audio: Audio | None
    fault: str = ""
    preset: bytes | None = None
    measured: Any = None


@dataclass(frozen=True, eq=False)
class PatchBatch(Batch):
    """The patches of a batch's indices. ``presets`` asks for their presets too, ``measure`` for its results only."""

    rows: tuple[NDArray[np.float64] | OnBase, ...] = field(kw_only=True)
    presets: bool = False
    measure: Measure | None = None


@dataclass(frozen=True)
class PatchSettings:
    """The settings of a worker that renders given patches."""

    synth: SynthSettings

    def renderer(self, synth: Synth) -> PatchBatchRenderer:
        """The renderer of given patches in a worker."""
        return PatchBatchRenderer(self.synth.spec, synth)


RenderedPatches = tuple[RenderedPatch[int], ...]
"""The patches of a batch by index, without forbidden ones."""


class PatchBatchRenderer:
    """Renders batches of rows with one synthesizer in this process: the worker's side."""

    def __init__(self, spec: ParamSpec, synth: Synth) -> None:
        self._spec = spec
        self._synth = synth

    def render(self, batch: PatchBatch, announce: Callable[[Attempt], None]) -> RenderedPatches:
        """Renders the batch's rows in order, each announced as attempt 0 of its index.

        Raises DriftError where the synthesizer does not hold the patch it was given.
        """
        rendered = []
        for index, row in zip(batch.indices, batch.rows, strict=True):
            if (index, 0) in batch.forbidden:
                continue
            announce((index, 0))
            rendered.append(self._render(index, row, batch))
            if batch.verify_each:
                self._synth.verify()
        self._synth.verify()
        return tuple(rendered)

    def _render(self, index: int, patch: NDArray[np.float64] | OnBase, batch: PatchBatch) -> RenderedPatch[int]:
        try:
            on_base = patch if isinstance(patch, OnBase) else OnBase(self._spec.decode(patch), b"")
        except ValueError as error:
            return RenderedPatch(index, None, f"the row is no patch: {error}")
        try:
            audio = self._synth.render(on_base.values, base=on_base.base or None)
        except UserError as error:
            if not on_base.base:
                raise
            return RenderedPatch(index, None, str(error))
        except SoundingError as error:  # A fresh instance sounds before the note too: this belongs to the patch.
            audio = error.audio
        if audio.shape != AUDIO_SHAPE:
            return RenderedPatch(index, None, f"audio of shape {audio.shape}, not {AUDIO_SHAPE}")
        if not np.abs(audio).max() <= MAX_SAMPLE:  # The maximum is NaN where any sample is NaN.
            return RenderedPatch(index, None, "non-finite audio")
        preset = self._synth.preset() if batch.presets else None
        if batch.measure:
            return RenderedPatch(index, None, preset=preset, measured=batch.measure(audio))
        return RenderedPatch(index, audio, preset=preset)


class PatchRenderer:
    """Worker processes that render rows of one spec. Use as a context manager: leaving it ends them.

    The workers start at once and are kept from one ``render`` to the next. ``synth_name`` and ``synth_version`` are
    empty until a worker is ready. ``restarts`` has a line for each worker that was replaced.
    """

    def __init__(self, synth: SynthSettings, workers: int, supervision: Supervision | None = None) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers cannot render")
        self.synth_name = self.synth_version = ""
        self.restarts: list[str] = []
        self._rejections: list[Rejection] = []
        self.synth, self.workers = synth, workers
        self._supervision = supervision or Supervision()
        # Keys may recur in a later call. Indices never do, so that failures of one patch do not count against another.
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
        for _ in self._rendered([PatchBatch((), rows=())]):
            pass

    def render(
        self, rows: Iterable[tuple[KeyT, GivenPatch]], *, presets: bool = False, measure: Measure | None = None
    ) -> Iterator[RenderedPatch[KeyT]]:
        """Renders pairs of a key and a row (W,) or ``OnBase``, and yields each patch when it is done, in any order.

        Rows are taken as they are needed. Any real row is a patch (``ParamSpec.decode``). A patch that cannot be
        rendered has a fault: NaN or a wrong number of columns, audio that is not finite, or three workers that died,
        hung or drifted over it. ``presets`` asks for ``.vstpreset`` files too. ``measure`` is called with each sound in
        the worker that rendered it, and its result comes instead of the sound.

        Only one call may run at a time. The next call may follow before the first is exhausted. After an exception,
        Ctrl-C included, the next call starts new workers. Raises UserError where no worker can do the work.
        """
        keys: dict[int, KeyT] = {}
        for patch in self._rendered(self._batches(rows, keys, presets=presets, measure=measure)):
            if patch.key in keys:  # Else it belongs to an earlier call that was not exhausted.
                yield RenderedPatch(keys.pop(patch.key), patch.audio, patch.fault, patch.preset, patch.measured)
        if keys:
            raise RuntimeError("another call of render has taken this one's patches")

    def preset(self, row: ArrayLike) -> bytes | None:
        """Returns the plugin's state as a ``.vstpreset`` after rendering a row (W,); None as in ``RenderedPatch``.

        Raises UserError where no worker can do the work.
        """
        [patch] = self.render([(None, row)], presets=True)
        return patch.preset

    def _start(self) -> WorkerPool[PatchBatch, RenderedPatches]:
        return WorkerPool(PatchSettings(self.synth), self.workers, self._supervision)

    def _rendered(self, batches: Iterable[PatchBatch]) -> Iterator[RenderedPatch[int]]:
        """The patches of all batches, and rejected ones with the reason. Closes the workers on an exception."""
        self._pool = self._pool or self._start()
        try:
            for outcome in self._pool.run(batches, self._note_loss):
                self.synth_name, self.synth_version = outcome.synth_name, outcome.synth_version
                rejections, self._rejections = self._rejections, []
                for rejection in rejections:
                    reason = f"it cost three workers ({rejection.reason}: {rejection.detail})"
                    yield RenderedPatch(rejection.index, None, reason)
                yield from outcome.batch
        except GeneratorExit:
            raise
        except BaseException:
            self.close()  # Ctrl-C in the middle of a message leaves a pipe that cannot be read any further.
            raise

    def _note_loss(self, loss: Loss) -> None:
        self.restarts.append(f"{loss.reason}: {loss.detail}")
        if loss.rejection:
            self._rejections.append(loss.rejection)

    def _batches(
        self, rows: Iterable[tuple[KeyT, GivenPatch]], keys: dict[int, KeyT], **asked: Any
    ) -> Iterator[PatchBatch]:
        """The rows in batches; the last rows are shared evenly among the workers. Adds the key of each index."""
        source = iter(rows)
        while share := list(islice(source, self.workers * MAX_BATCH)):
            size = -(-len(share) // self.workers)
            for start in range(0, len(share), size):
                part = share[start : start + size]
                indices = tuple(islice(self._indices, len(part)))
                keys.update(zip(indices, (key for key, _ in part), strict=True))
                # Workers cannot unpickle arrays of JAX; decoding is in float64 anyway.
                given = tuple(row if isinstance(row, OnBase) else np.asarray(row, np.float64) for _, row in part)
                yield PatchBatch(indices, rows=given, **asked)
