"""Rows from spectrograms with a trained model: the jitted sampler, and a workdir's model ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from data_pipeline.cli import UserError
from data_pipeline.param_spec import ParamSpec
from data_pipeline.stats import MelStats
from synthjax import sharding
from synthjax.checkpoints import Checkpoints
from synthjax.data import HostBatch, from_model_scale
from synthjax.k_osc_task import KOscTask
from synthjax.sampling import Sampling
from synthjax.tasks import Batch, SpectrogramTask, Task
from synthjax.train_step import Trainer, abstract_state
from synthjax.workdir import Workdir


def jit_sampler(trainer: Trainer, mesh: Mesh, sampling: Sampling) -> jax.stages.Wrapped:
    """A jitted (params, batch, stats) -> rows like ``batch["x0"]`` (B, *K, W) on [-1, 1], on every host.

    The batch holds besides what ``Task.inputs`` takes, such as ``mel_spec`` (B, C, M, F) in dB.
    """
    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    params = sharding.parameter_shardings(trainer.abstract, mesh, fsdp=trainer.config.mesh.fsdp)

    def sample(params: Any, batch: Batch, stats: Any) -> jax.Array:
        inputs = trainer.task.inputs(batch, stats)
        model = trainer.model(trainer.gathered(params, mesh))
        return trainer.method.rows(model, inputs, batch["x0"], sampling)

    return jax.jit(sample, in_shardings=(params, split, whole), out_shardings=whole)


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of a workdir, on the devices of this process or pod, with what goes around it."""

    config: ml_collections.ConfigDict
    task: Task
    step: int
    mesh: Mesh
    params: Any
    stats: MelStats | None
    sampler: jax.stages.Wrapped

    @classmethod
    def load(
        cls,
        workdir: Workdir,
        *,
        checkpoint: str = "best",
        use_ema: bool = True,
        solver: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        tolerance: float | None = None,
    ) -> TrainedModel:
        """Reads config, spec, statistics and weights of a run; the sampler's settings default to the config's.

        Raises:
          UserError: if the workdir holds no run or not that checkpoint, or for a solver that does not exist.
        """
        config = workdir.read_config()
        chosen = {
            "solver": solver,
            "steps": steps,
            "guidance": guidance,
            "guidance_interval": guidance_interval,
            "tolerance": tolerance,
        }
        config.sampling.update({name: value for name, value in chosen.items() if value is not None})
        task, stats = _task_of(config, workdir)
        trainer = Trainer.create(config, task)
        mesh = _mesh(config.mesh)
        abstract = abstract_state(trainer, trainer.state_shardings(mesh))
        with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
            step = checkpoints.resolve(checkpoint)
            params = checkpoints.restore_weights(step, abstract.params, "ema" if use_ema else "params")
        sampler = jit_sampler(trainer, mesh, Sampling.from_config(config.sampling))
        stats = jax.device_put(stats, sharding.replicated(mesh))
        return cls(config, task, step, mesh, params, stats, sampler)

    @property
    def sampling(self) -> Sampling:
        """How the sampler draws rows."""
        return Sampling.from_config(self.config.sampling)

    @property
    def spec(self) -> ParamSpec:
        """What the columns of a row mean. Raises UserError for a model of no synthesizer."""
        if not isinstance(self.task, SpectrogramTask):
            raise UserError(
                "this workdir holds a run of the k-osc task, which is no synthesizer: only evaluate takes it"
            )
        return self.task.spec

    def sample(self, batch: HostBatch) -> np.ndarray:
        """Rows (B, *K, W) in [0, 1] columns, not clipped, for a host batch of ``mel_spec`` and ``x0`` (B, *K, W)."""
        placed = sharding.place({name: batch[name] for name in ("mel_spec", "x0")}, sharding.batch_sharding(self.mesh))
        rows = self.sampler(self.params, placed, self.stats)
        return from_model_scale(np.asarray(rows))

    def draw(self, mels: np.ndarray, x0: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """Rows (S, K, W) in [0, 1] columns, not clipped, for S spectrograms (S, C, M, F) in dB and noise (S, K, W).

        ``batch_size`` is how many sounds are sampled at once; every other size is compiled anew.
        """
        sounds, draws, _ = x0.shape
        size = batch_size or self.batch_size(sounds, draws)
        mine = self.local_rows(size)
        rows = []
        for first in range(0, sounds, size):
            # Padding repeats the last sound.
            batch = np.minimum(np.arange(first + mine.start, first + mine.stop), sounds - 1)
            rows.append(self.sample({"mel_spec": mels[batch], "x0": x0[batch]}))
        return np.concatenate(rows)[:sounds]

    def batch_size(self, sounds: int, draws: int = 1) -> int:
        """Sounds to sample at once: the config's sampling batch in rows of ``draws`` for each sound, no more than
        ``sounds``, rounded up to a multiple of the data axis.
        """
        return sharding.round_up(min(max(1, self.config.sampling.batch_size // draws), sounds), self.mesh)

    def local_rows(self, batch_size: int) -> range:
        """This process's rows of a batch."""
        return sharding.rows_of_this_process(sharding.batch_sharding(self.mesh), batch_size)


def _task_of(config: ml_collections.ConfigDict, workdir: Workdir) -> tuple[Task, MelStats | None]:
    if config.get("data", {}).get("source") == "k_osc":
        return KOscTask.from_config(config), None
    spec, stats = workdir.read_spec(), workdir.read_stats()
    return SpectrogramTask(spec, stats.mean.shape, config.data.min_std_db), stats


def _mesh(config: ml_collections.ConfigDict) -> Mesh:
    """The mesh of training where it can be laid over the devices here; a pod's run is often evaluated on one."""
    devices, rest = jax.device_count(), config.model * config.get("slices", 1)
    if devices % rest == 0 and config.data in (-1, devices // rest):
        return sharding.make_mesh(config)
    return sharding.make_mesh(ml_collections.ConfigDict({"data": -1, "model": 1, "slices": 1}))
