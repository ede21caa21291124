"""The Model: a checkpoint of a run, loaded and ready to sample rows. It builds no optimizer.

Shapes: B batch, N sounds, K draws for each sound, W row width, C channels, M mels, F frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec
from data_pipeline.shards.mel_stats import MelStats
from synthjax.cluster import sharding
from synthjax.methods.examples import Batch, HostBatch, from_model_scale, to_model_scale
from synthjax.methods.sampling import Given, Sampling
from synthjax.methods.task import KOscTask, SpectrogramTask, Task
from synthjax.runs.architecture import Architecture
from synthjax.runs.bundles import Bundle
from synthjax.runs.checkpoints import Checkpoints
from synthjax.runs.workdir import Workdir

Advance = Callable[[int], None]
"""Is called with the number of sounds that are newly done, as ``progress_bar`` takes it."""


def no_progress(count: int) -> None:
    """Shows nothing."""


def jit_sampler(architecture: Architecture, mesh: Mesh, sampling: Sampling) -> jax.stages.Wrapped:
    """A jitted (params, batch, stats) -> rows on [-1, 1] of the shape of ``batch["x0"]`` (B, *K, W), on every host.

    The batch also holds what ``Task.inputs`` reads, such as ``mel_spec`` (B, C, M, F) in dB. It may hold ``known`` and
    ``start``, of the shape of ``x0``, and ``keep`` (B,), equal for all: see ``Given``.
    """
    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    def sample(params: Any, batch: Batch, stats: Any) -> jax.Array:
        inputs = architecture.task.inputs(batch, stats)
        model = architecture.model(architecture.gathered(params, mesh))
        given = Given(batch.get("known"), batch.get("start"), batch["keep"].max() if "keep" in batch else 0.0)
        return architecture.method.rows(model, inputs, batch["x0"], sampling, given)

    return jax.jit(sample, in_shardings=(architecture.param_shardings(mesh), split, whole), out_shardings=whole)


def sample_batches(
    sample: Callable[[Batch], jax.Array], batches: Iterable[Batch], count: int, advance: Advance = no_progress
) -> Float[np.ndarray, "N *K W"]:
    """Samples rows batch by batch until there are ``count`` rows, and drops those of padding.

    Args:
      sample: rows (B, *K, W) of a batch.
      batches: batches on the devices; the last one may be padded.
      count: N; no batch is read beyond it.
      advance: is called after every batch.
    """
    rows: list[np.ndarray] = []
    missing = count
    for batch in batches:
        rows.append(np.asarray(sample(batch))[:missing])
        advance(len(rows[-1]))
        missing -= len(rows[-1])
        if missing == 0:
            break
    return np.concatenate(rows)


@dataclass(frozen=True)
class Model:
    """A checkpoint of a run on the devices of this process or pod, with its config and its sampler."""

    config: ml_collections.ConfigDict
    task: Task
    step: int
    mesh: Mesh
    params: Any
    stats: MelStats | None
    sampler: jax.stages.Wrapped

    @classmethod
    def load(cls, workdir: Workdir, *, checkpoint: str = "best", use_ema: bool = True, **sampling: Any) -> Model:
        """Reads config, spec, statistics and weights of a run.

        Args:
          workdir: the run.
          checkpoint: ``best`` (by validation), ``latest``, or a step.
          use_ema: take the averaged weights.
          sampling: fields of ``Sampling`` to change; None keeps the value of the run's config.

        Raises:
          UserError: if the workdir holds no run or not that checkpoint, or for a value that the sampler cannot use.
        """
        config = workdir.read_config()
        task, stats = _task_of(config, workdir)

        def restore(abstract: Any) -> tuple[int, Any]:
            weights = "ema" if use_ema else "params"
            with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
                step = checkpoints.resolve(checkpoint)
                return step, checkpoints.restore(step, {weights: abstract})[weights]

        return cls._with(config, task, stats, restore, sampling)

    @classmethod
    def of_bundle(cls, bundle: Bundle, **sampling: Any) -> Model:
        """The model in a bundle; ``sampling`` as in ``load``. Raises UserError if the bundle's parts do not fit."""
        config, stats, step = bundle.config(), bundle.stats(), int(bundle.about["checkpoint"])
        try:
            task = SpectrogramTask(bundle.spec, stats.mean.shape, config.data.min_std_db)
            return cls._with(config, task, stats, lambda abstract: (step, bundle.params(abstract)), sampling)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{bundle.name}: its model cannot be built: {error!r}") from error

    @classmethod
    def _with(
        cls,
        config: ml_collections.ConfigDict,
        task: Task,
        stats: MelStats | None,
        restore: Callable[[Any], tuple[int, Any]],
        sampling: Mapping[str, Any],
    ) -> Model:
        """The model whose step and weights ``restore`` reads, placed as an abstract tree says."""
        changes = {name: value for name, value in sampling.items() if value is not None}
        config.sampling.update(asdict(replace(Sampling.from_config(config.sampling), **changes)))
        architecture = Architecture.create(config, task)
        mesh = _mesh(config.mesh)
        step, params = restore(architecture.abstract_params(mesh))
        sampler = jit_sampler(architecture, mesh, Sampling.from_config(config.sampling))
        stats = jax.device_put(stats, sharding.replicated(mesh))
        return cls(config, task, step, mesh, params, stats, sampler)

    @property
    def sampling(self) -> Sampling:
        """The settings of the sampler."""
        return Sampling.from_config(self.config.sampling)

    @property
    def spec(self) -> ParamSpec:
        """The spec of the rows. Raises UserError for a model of the k-osc task, which has no synthesizer."""
        if self.task.spec is None:
            raise UserError(
                "this workdir holds a run of the k-osc task, which has no synthesizer: only evaluate takes it"
            )
        return self.task.spec

    def sample(
        self, batches: Iterable[HostBatch], count: int, advance: Advance = no_progress
    ) -> Float[np.ndarray, "N *K W"]:
        """Rows in [0, 1] columns, not clipped, of the first ``count`` sounds.

        Args:
          batches: this process's part of each batch: ``mel_spec`` (b, C, M, F) in dB, noise ``x0`` (b, *K, W), and
            perhaps ``known``, ``start`` and ``keep``, see ``jit_sampler``. The last batch is padded. Every other batch
            size is compiled anew.
          count: N.
          advance: see ``sample_batches``.
        """
        placement = sharding.batch_sharding(self.mesh)
        names = ("mel_spec", "x0", "known", "start", "keep")
        placed = (
            sharding.place({name: batch[name] for name in names if name in batch}, placement) for batch in batches
        )
        return from_model_scale(sample_batches(self.sample_batch, placed, count, advance))

    def sample_batch(self, batch: Batch) -> jax.Array:
        """Rows (B, *K, W) on the model's scale [-1, 1] of one batch on the devices."""
        return self.sampler(self.params, batch, self.stats)

    def draw(
        self,
        mels: Float[np.ndarray, "N C M F"],
        x0: Float[np.ndarray, "N K W"],
        batch_size: int | None = None,
        advance: Advance = no_progress,
        known: Float[np.ndarray, " W"] | None = None,
        start: tuple[Float[np.ndarray, "N W"], float] | None = None,
    ) -> Float[np.ndarray, "N K W"]:
        """Rows in [0, 1] columns, not clipped, for spectrograms in dB and their noise.

        ``batch_size`` sounds are sampled at once; every other size is compiled anew. ``known`` has the values in [0, 1]
        of columns that all rows shall have, to the bit, and NaN elsewhere. ``start`` has a row in [0, 1] for each
        sound, and how much of these rows is kept, from 0 to 1.
        """
        sounds, draws, _ = x0.shape
        indices = self.batch_indices(sounds, batch_size or self.batch_size(sounds, draws))

        def batch_of(index: Int[np.ndarray, " b"]) -> HostBatch:
            batch = {"mel_spec": mels[index], "x0": x0[index]}
            if known is not None:
                batch["known"] = np.broadcast_to(to_model_scale(known), batch["x0"].shape)
            if start is not None:
                batch["start"] = np.broadcast_to(to_model_scale(start[0][index])[:, None], batch["x0"].shape)
                batch["keep"] = np.full(len(index), start[1], np.float32)
            return batch

        rows = self.sample(map(batch_of, indices), sounds, advance)
        # The solver and the scale round, and only flows use what is known.
        return rows if known is None else np.where(np.isnan(known), rows, known)

    def batch_indices(self, sounds: int, batch_size: int) -> Iterator[Int[np.ndarray, " b"]]:
        """The sounds of this process in each batch; padding repeats the last sound."""
        mine = self.local_rows(batch_size)
        for first in range(0, sounds, batch_size):
            yield np.minimum(np.arange(first + mine.start, first + mine.stop), sounds - 1)

    def batch_size(self, sounds: int, draws: int = 1) -> int:
        """The number of sounds to sample at once.

        It is the config's ``sampling.batch_size``, which counts rows, divided by the ``draws`` of a sound; at most
        ``sounds``; rounded up to a multiple of the mesh's data axis.
        """
        return sharding.round_up(min(max(1, self.config.sampling.batch_size // draws), sounds), self.mesh)

    def local_rows(self, batch_size: int) -> range:
        """The rows of a batch that this process holds."""
        return sharding.rows_of_this_process(sharding.batch_sharding(self.mesh), batch_size)


def _task_of(config: ml_collections.ConfigDict, workdir: Workdir) -> tuple[Task, MelStats | None]:
    """The task of a run, and the statistics of its spectrograms where it has any."""
    if config.get("data", {}).get("source") == "k_osc":
        return KOscTask.from_config(config), None
    spec, stats = workdir.read_spec(), workdir.read_stats()
    return SpectrogramTask(spec, stats.mean.shape, config.data.min_std_db), stats


def _mesh(config: ml_collections.ConfigDict) -> Mesh:
    """The mesh of training where the devices here allow it, else all devices along the data axis.

    A run that was trained on a pod is often evaluated on one device.
    """
    devices, rest = jax.device_count(), config.model * config.get("slices", 1)
    if devices % rest == 0 and config.data in (-1, devices // rest):
        return sharding.make_mesh(config)
    return sharding.make_mesh(ml_collections.ConfigDict({"data": -1, "model": 1, "slices": 1}))
