"""Rows from spectrograms with a trained model: the jitted sampler, and a workdir's model ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from data_pipeline.param_spec import ParamSpec
from data_pipeline.stats import MelStats, standardise
from synthjax import sharding
from synthjax.checkpoints import Checkpoints
from synthjax.data import HostBatch, from_model_scale
from synthjax.sampling import sample_rows
from synthjax.train_step import Trainer, abstract_state
from synthjax.workdir import Workdir


def jit_sampler(trainer: Trainer, mesh: Mesh, *, guidance: float, solver: str, steps: int) -> jax.stages.Wrapped:
    """A jitted (params, mel (B, C, M, F) dB, x0 (B, *K, W), stats) -> rows like x0 on [-1, 1], on every host."""
    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    params = sharding.parameter_shardings(trainer.abstract, mesh, fsdp=trainer.config.mesh.fsdp)

    def sample(params: Any, mel: jax.Array, x0: jax.Array, stats: MelStats) -> jax.Array:
        model = trainer.model(params)
        return sample_rows(
            model,
            standardise(mel, stats, trainer.config.data.min_std_db),
            x0,
            guidance=guidance,
            solver=solver,
            steps=steps,
        )

    return jax.jit(sample, in_shardings=(params, split, split, whole), out_shardings=whole)


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of a workdir, on the devices of this process or pod, with what goes around it."""

    config: ml_collections.ConfigDict
    spec: ParamSpec
    step: int
    mesh: Mesh
    params: Any
    stats: MelStats
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
    ) -> TrainedModel:
        """Reads config, spec, statistics and weights of a run; the sampler's settings default to the config's.

        Raises:
          UserError: if the workdir holds no run or not that checkpoint, or for a solver that does not exist.
        """
        config, spec, stats = workdir.read_config(), workdir.read_spec(), workdir.read_stats()
        chosen = {"solver": solver, "steps": steps, "guidance": guidance}
        config.sampling.update({name: value for name, value in chosen.items() if value is not None})
        trainer = Trainer.create(config, width=spec.width, spectrogram_shape=stats.mean.shape)
        mesh = sharding.make_mesh(config.mesh if _fits(config.mesh) else _one_axis())
        abstract = abstract_state(trainer, trainer.state_shardings(mesh))
        with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
            step = checkpoints.resolve(checkpoint)
            params = checkpoints.restore_weights(step, abstract.params, "ema" if use_ema else "params")
        sampler = jit_sampler(
            trainer,
            mesh,
            guidance=config.sampling.guidance,
            solver=config.sampling.solver,
            steps=config.sampling.steps,
        )
        stats = jax.device_put(stats, sharding.replicated(mesh))
        return cls(config, spec, step, mesh, params, stats, sampler)

    def sample(self, batch: HostBatch) -> np.ndarray:
        """Rows (B, *K, W) in [0, 1] columns, not clipped, for a host batch of ``mel_spec`` and ``x0`` (B, *K, W)."""
        placed = sharding.place({name: batch[name] for name in ("mel_spec", "x0")}, sharding.batch_sharding(self.mesh))
        rows = self.sampler(self.params, placed["mel_spec"], placed["x0"], self.stats)
        return from_model_scale(np.asarray(rows))

    def draw(self, mels: np.ndarray, x0: np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """Rows (S, K, W) in [0, 1] columns, not clipped, for S spectrograms (S, C, M, F) in dB and noise (S, K, W).

        ``batch_size`` is how many sounds are sampled at once; every other size is compiled anew.
        """
        sounds, draws, _ = x0.shape
        size = batch_size or self.batch_size(sounds, draws)
        rows = []
        for first in range(0, sounds, size):
            batch = np.minimum(np.arange(first, first + size), sounds - 1)  # Padding repeats the last sound.
            rows.append(self.sample({"mel_spec": mels[batch], "x0": x0[batch]}))
        return np.concatenate(rows)[:sounds]

    def batch_size(self, sounds: int, draws: int = 1) -> int:
        """Sounds to sample at once: the config's sampling batch in rows of ``draws`` for each sound, no more than
        ``sounds``, rounded up to a multiple of the data axis.
        """
        parts = self.mesh.shape[sharding.DATA]
        return -(-min(max(1, self.config.sampling.batch_size // draws), sounds) // parts) * parts

    def local_rows(self, batch_size: int) -> range:
        """This process's rows of a batch."""
        return sharding.rows_of_this_process(sharding.batch_sharding(self.mesh), batch_size)


def _fits(mesh: ml_collections.ConfigDict) -> bool:
    """Whether the mesh of training can be laid over the devices here; a pod's run is often evaluated on one."""
    devices = jax.device_count()
    return devices % mesh.model == 0 and mesh.data in (-1, devices // mesh.model)


def _one_axis() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"data": -1, "model": 1})
