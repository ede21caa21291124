"""Validation while training: velocity loss at fixed times and noise, parameter error of sampled rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipeline.param_spec import ParamSpec
from data_pipeline.shards import ShardReader
from data_pipeline.stats import MelStats, standardise
from synthjax import flow, sharding
from synthjax.checkpoints import BEST_BY
from synthjax.data import EvalBatches, from_model_scale
from synthjax.inference import jit_sampler
from synthjax.param_metrics import per_parameter_mse, row_metrics
from synthjax.train_step import Batch, Trainer


class Result(NamedTuple):
    """Scalars to log and the error of every parameter, both of the validation split."""

    scalars: dict[str, float]
    parameter_errors: dict[str, float]


class Validator:
    """Measures weights on the first rows of the validation split, the same rows, times and noise every time."""

    def __init__(self, trainer: Trainer, mesh: Mesh, reader: ShardReader, spec: ParamSpec) -> None:
        config = trainer.config
        self._trainer, self._spec, self._times = trainer, spec, jnp.asarray(config.validation.times)
        self._min_std_db = config.data.min_std_db
        self._placement = sharding.batch_sharding(mesh)
        size = config.data.batch_size
        self._batches = EvalBatches(
            reader,
            batch_size=size,
            seed=config.seed,
            local_rows=sharding.rows_of_this_process(self._placement, size),
            limit=config.validation.rows,
        )
        self._sampled_rows = min(config.validation.sampled_rows, self._batches.rows)
        self._sampler = jit_sampler(
            trainer,
            mesh,
            guidance=config.validation.guidance,
            solver=config.validation.solver,
            steps=config.validation.solver_steps,
        )
        whole = sharding.replicated(mesh)
        params = sharding.parameter_shardings(trainer.abstract, mesh, fsdp=config.mesh.fsdp)
        self._loss = jax.jit(self._loss_sum, in_shardings=(params, self._placement, whole), out_shardings=whole)

    def _loss_sum(self, params: Any, batch: Batch, stats: MelStats) -> jax.Array:
        """Velocity loss of the valid rows, averaged over the times, summed over rows."""
        z = self._trainer.model(params).encode(standardise(batch["mel_spec"], stats, self._min_std_db))

        def at(t: jax.Array) -> jax.Array:
            times = jnp.full(batch["valid"].shape, t)
            # The model is merged anew inside the loop: a Flax module may not cross a trace.
            return flow.velocity_error(self._trainer.model(params), z, batch["x0"], batch["x1"], times)

        errors = jax.lax.map(at, self._times).mean(axis=0)
        return (errors * batch["valid"]).sum()

    def __call__(self, params: Any, stats: MelStats) -> Result:
        """Scalars ``val/...`` and per-parameter errors of ``params``."""
        total, sampled, true = 0.0, [], []
        for i in range(len(self._batches)):
            batch = sharding.place(self._batches[i], self._placement)
            total += float(self._loss(params, batch, stats))
            if i * len(batch["valid"]) < self._sampled_rows:
                sampled.append(np.asarray(self._sampler(params, batch["mel_spec"], batch["x0"], stats)))
                true.append(_gather(batch["x1"]))
        predicted, targets = (from_model_scale(np.concatenate(rows)[: self._sampled_rows]) for rows in (sampled, true))
        errors = row_metrics(predicted, targets, self._spec)
        scalars = {BEST_BY: total / self._batches.rows} | {f"val/{k}": float(v.mean()) for k, v in errors.items()}
        return Result(scalars, per_parameter_mse(predicted, targets, self._spec))


def _gather(rows: jax.Array) -> np.ndarray:
    """All rows of an array that may be spread over hosts."""
    if rows.is_fully_addressable:
        return np.asarray(rows)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
