"""Rows that are drawn and rendered while the model learns from them, so that training needs no shards.

Row k of the endless data set is the row k that ``render_shards`` would store for the same seed. The step number decides
the rows of a batch, so that a resumed run, any number of workers and any number of hosts see the same rows.

Shapes: B batch, N rows, W row width, C channels, M mels, F frames, T audio samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, SupportsIndex

import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int
from numpy.typing import NDArray

from data_pipeline.audio.contract import AUDIO_SHAPE, MAX_PEAK, MEL_SHAPE, MIN_LOUDNESS
from data_pipeline.audio.corruption import NONE, Corruption
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.cli import UserError
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.counter_rng import VALIDATION_SEED
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.render.config import with_prior
from data_pipeline.render.row_renderer import AcceptedRow, Refused, RenderSettings, RowRenderer
from data_pipeline.render.worker import ReopenedSynth
from data_pipeline.render.worker_messages import Batch as RenderBatch
from data_pipeline.shards.mel_stats import MelStats, RunningStats
from data_pipeline.shards.reader import MEL_SPEC, PARAM_ARRAY
from data_pipeline.synths.choice import synth_for, why_no_renderer
from data_pipeline.synths.protocol import DriftError, SynthSettings
from synthjax.cluster import distributed, sharding
from synthjax.methods.examples import CORRUPTION, Batch, HostBatch
from synthjax.methods.task import SpectrogramTask, Task
from synthjax.tasks.batches import TrainBatches, is_coupled, prefetch, require_shared_memory
from synthjax.tasks.shards import HeldOutRows

# A row of data.reuse=R is used again so many steps later. If the number of workers divides it, the worker that rendered
# a row makes the later steps too.
REUSE_STEPS = 24
# The statistics are those of the first rows of the training data.
STATISTICS_ROWS = 2048
# Rows that a worker renders at once for validation and statistics.
BLOCK = 32
VERIFY_EVERY = 200


class RenderedOrder:
    """The rows of every step: each row is used in R = ``reuse`` steps, ``REUSE_STEPS`` apart.

    Positions m R to m R + R - 1 of a batch are uses 0 to R - 1 of a row: position m R + r has the row that position m R
    had r ``REUSE_STEPS`` steps before. Rows are numbered as if steps had come before the first one, so that rows of
    the first steps are used again too; some of those are used less often.
    """

    def __init__(self, batch_size: int, reuse: int) -> None:
        self._batch_size, self._reuse = batch_size, reuse
        self._window = (reuse - 1) * REUSE_STEPS

    def __getitem__(self, step: int) -> Int[np.ndarray, " B"]:
        """The rows of the global batch of ``step``."""
        position = np.arange(self._batch_size)
        use = position % self._reuse
        return (self._window + step - use * REUSE_STEPS) * self._batch_size + position - use

    def may_be_used(self, row: int, newest: int) -> bool:
        """Whether the step of row ``newest``, or a later one, may use ``row``."""
        return newest // self._batch_size - row // self._batch_size <= self._window


class RenderedRows:
    """Rows by number, rendered when they are first read, and in memory as long as ``order`` may use them.

    It is pickled for worker processes. Each opens the synthesizer for itself.
    """

    def __init__(self, settings: RenderSettings, order: RenderedOrder, corruption: Corruption = NONE) -> None:
        self._order = order
        self._renderer = _Renderer(settings, corruption=corruption)
        self._memory: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_memory": {}}

    def read_rows(self, name: str, indices: Int[np.ndarray, " N"]) -> np.ndarray:
        """``MEL_SPEC`` (N, C, M, F) float16 in dB, or ``PARAM_ARRAY`` (N, W) float32."""
        newest = int(max(indices))
        self._memory = {row: kept for row, kept in self._memory.items() if self._order.may_be_used(row, newest)}
        for row in self._renderer([int(index) for index in indices if index not in self._memory]):
            self._memory[row.index] = row.mel, row.params
        column = (MEL_SPEC, PARAM_ARRAY).index(name)
        return np.stack([self._memory[int(index)][column] for index in indices])


@dataclass(frozen=True, eq=False)
class _Row:
    """A rendered row: spectrogram (C, M, F) in dB, parameters (W,), and audio (2, T) if it was asked for."""

    index: int
    mel: NDArray[np.float16]
    params: NDArray[np.float32]
    audio: NDArray[np.float32] | None


class _Renderer:
    """Renders rows by number, with a synthesizer that is opened when it is first needed.

    Rows below ``heard`` keep their audio, which is large. ``corruption`` changes the spectrograms only.
    """

    def __init__(self, settings: RenderSettings, heard: int = 0, corruption: Corruption = NONE) -> None:
        self._settings, self._heard, self._corruption = settings, heard, corruption
        self._opened: RowRenderer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def __call__(self, indices: Sequence[int]) -> list[_Row]:
        try:
            return self._rendered(indices)
        except DriftError:  # The rows since the last check are worthless.
            self._opened = None
            return self._rendered(indices)

    def _rendered(self, indices: Sequence[int]) -> list[_Row]:
        self._opened = self._opened or self._settings.renderer(ReopenedSynth(self._settings.synth))
        accepted = self._opened.accepted(RenderBatch(tuple(indices)), lambda _: None, Refused())
        return [self._row(row) for row in accepted]

    def _row(self, row: AcceptedRow) -> _Row:
        sound = self._corruption(row.audio, np.random.default_rng([CORRUPTION, self._settings.seed, row.index]))
        mel = mel_spectrogram(sound).astype(np.float16)
        return _Row(row.index, mel, row.params, row.audio if row.index < self._heard else None)


class _FirstRows:
    """Blocks of the first rows of the training data, then blocks of the validation rows, as host batches.

    Validation blocks have parameters too, and audio where the probe needs it.
    """

    def __init__(self, training: _Renderer, rows: int, validation: _Renderer, held_out: int) -> None:
        self._renderers = training, validation
        blocks = [(0, first, min(first + BLOCK, rows)) for first in range(0, rows, BLOCK)]
        self._blocks = blocks + [(1, first, min(first + BLOCK, held_out)) for first in range(0, held_out, BLOCK)]

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, item: SupportsIndex) -> HostBatch:
        which, first, stop = self._blocks[int(item)]
        rows = self._renderers[which](range(first, stop))
        batch = {"mel_spec": np.stack([row.mel for row in rows])}
        if which:
            heard = [row.audio for row in rows if row.audio is not None]
            batch |= {"params": np.stack([row.params for row in rows])}
            batch |= {"audio": np.stack(heard) if heard else np.zeros((0, *AUDIO_SHAPE), np.float32)}
        return batch


class MemoryRows:
    """Rows in memory, as ``StoredRows``: spectrograms (N, C, M, F) and parameters (N, W)."""

    def __init__(self, mels: NDArray[np.float16], params: NDArray[np.float32]) -> None:
        self._arrays: dict[str, np.ndarray] = {MEL_SPEC: mels, PARAM_ARRAY: params}
        self.width = params.shape[1]

    def __len__(self) -> int:
        return len(self._arrays[PARAM_ARRAY])

    def read_rows(self, name: str, indices: Int[np.ndarray, " N"]) -> np.ndarray:
        """Rows of ``MEL_SPEC`` or ``PARAM_ARRAY``."""
        return self._arrays[name][indices]


class RenderedTrainingData:
    """The ``TrainingData`` of rows that are rendered as they are needed.

    Statistics and validation rows are rendered at once, with a progress bar; all processes build it together.

    Args:
      saved: the statistics that the model has, if it has any; those of process 0 count.

    Raises:
      UserError: if the synthesizer is not known or not installed.
    """

    def __init__(self, config: ml_collections.ConfigDict, saved: MelStats | None) -> None:
        self._config, data = config, config.data
        if data.reuse > 1 and data.workers and REUSE_STEPS % data.workers:
            raise UserError(f"data.workers={data.workers} must divide {REUSE_STEPS} where data.reuse is above 1")
        self.spec = load_spec(data.spec)
        self._settings = render_settings(self.spec, data.seed, data.prior)
        self._corruption = Corruption(**data.corruption)
        self._corruption.require_installed()
        self.task: Task = SpectrogramTask(self.spec, MEL_SHAPE, data.min_std_db)
        self.identity = {
            "spec_hash": self.spec.content_hash,
            "prior_hash": self._settings.prior_hash,
            "seed": data.seed,
            "reuse": data.reuse,
        }
        if self._corruption != NONE:
            self.identity["corruption"] = vars(self._corruption)
        self.workers: int = data.workers
        self._held_out: MemoryRows | None = None
        self._heard = np.zeros((0, *AUDIO_SHAPE), np.float32)
        self.stats: MelStats | None = self._first_rows(saved)

    def _first_rows(self, saved: MelStats | None) -> MelStats:
        """Renders the rows for statistics, unless the run has some, and the validation rows; returns statistics."""
        wanted = self._config.validation
        counted = 0 if distributed.main_says(saved is not None) else STATISTICS_ROWS
        held_out = wanted.rows if self._config.train.eval_every else 0
        heard = min(wanted.probe_sounds, wanted.sampled_rows, held_out)
        validation = replace(self._settings, seed=VALIDATION_SEED)
        training = _Renderer(self._settings, corruption=self._corruption)
        source = _FirstRows(training, counted, _Renderer(validation, heard), held_out)
        accumulated = RunningStats()
        batches: list[HostBatch] = []
        self._require_memory(BLOCK)
        with (
            progress_bar("rendering rows for statistics and validation", counted + held_out) as advance,
            prefetch(source, workers=self.workers) as stream,
        ):
            for batch in stream:
                if "params" in batch:
                    batches.append({name: array.copy() for name, array in batch.items()})  # It lies in shared memory.
                else:
                    accumulated.add(batch["mel_spec"])
                advance(len(batch["mel_spec"]))
        if batches:
            arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
            self._held_out, self._heard = MemoryRows(arrays["mel_spec"], arrays["params"]), arrays["audio"]
        return MelStats(*distributed.from_main(saved or accumulated.result()))

    def _require_memory(self, rows: int) -> None:
        if self.workers:
            require_shared_memory(self.workers, rows * (2 * math.prod(MEL_SHAPE) + 2 * 4 * self.spec.width))

    def batches(self, local_rows: range) -> TrainBatches:
        """Batches whose rows are rendered by the worker that makes them."""
        config = self._config
        self._require_memory(len(local_rows))
        order = RenderedOrder(config.data.batch_size, config.data.reuse)
        return TrainBatches(
            RenderedRows(self._settings, order, self._corruption),
            order,
            batch_size=config.data.batch_size,
            seed=config.seed,
            coupled=is_coupled(config),
            local_rows=local_rows,
            steps=config.train.steps,
        )

    def rows_of_step(self, step: int) -> None:
        """None: no file holds the rows."""

    def load(self, mesh: Mesh) -> Callable[[HostBatch], Batch]:
        """There is no cache."""
        return partial(sharding.place, sharding=sharding.batch_sharding(mesh))

    def held_out(self, placement: NamedSharding) -> HeldOutRows | None:
        """The first ``validation.rows`` rows of the validation seed."""
        if self._held_out is None:
            return None
        return HeldOutRows.of_config(self._held_out, self.spec, self._config, placement)

    def probe_targets(self) -> tuple[ParamSpec, NDArray[np.floating]] | None:
        """Audio (S, 2, T) of the first validation rows; None with probe_sounds=0."""
        return (self.spec, self._heard) if len(self._heard) else None


def render_settings(spec: ParamSpec, seed: int, prior: str = "", synth: SynthSettings | None = None) -> RenderSettings:
    """The settings under which rows of a spec are drawn and accepted.

    ``prior`` is a folder of preset files, whose patches are mixed; without it the spec's weights draw the rows.
    ``synth`` is by default the spec's own synthesizer.
    Raises UserError without the synthesizer, or for a folder without patches of the spec.
    """
    synth = synth or synth_for(spec)
    if reason := why_no_renderer(synth, "the environment variable SURGE_XT_PLUGIN"):
        raise UserError(f"data.source=render: {reason}")
    return with_prior(RenderSettings(synth, seed, MIN_LOUDNESS, MAX_PEAK, VERIFY_EVERY), prior)
