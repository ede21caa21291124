"""Validation while training: velocity loss at fixed times and noise, parameter error of sampled rows.

Shapes: S sampled rows, W row width, N tokens, D model width, T audio samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from data_pipeline.param_spec import ParamSpec
from data_pipeline.shards import AUDIO, ShardReader
from data_pipeline.stats import MelStats, standardise
from synthjax import flow, plots, sharding
from synthjax.checkpoints import BEST_BY
from synthjax.data import EvalBatches, from_model_scale
from synthjax.inference import jit_sampler
from synthjax.param_metrics import per_parameter_mse, row_metrics
from synthjax.train_step import Batch, Trainer


@dataclass(frozen=True)
class Result:
    """What one validation found.

    ``scalars`` are to be logged. ``losses`` is the velocity loss by time, ``parameter_errors`` the mean squared error
    by parameter. ``sampled`` (S, W) are the rows drawn for the first sounds of the split, in [0, 1] columns, not
    clipped. ``assignment`` (N, W) and ``embeddings`` (W, 2 D), those of the way in beside those of the way out, are
    Param2Tok's.
    """

    scalars: dict[str, float]
    losses: dict[float, float]
    parameter_errors: dict[str, float]
    sampled: NDArray[np.floating]
    assignment: NDArray[np.floating]
    embeddings: NDArray[np.floating]

    def pictures(self, column_names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """The pictures that TensorBoard shows, by name; ``column_names`` are those of the W columns."""
        return {
            "assignment": plots.assignment_matrix(self.assignment, column_names),
            "token_similarity": plots.token_similarity(self.assignment, self.embeddings, column_names),
            "loss_by_time": plots.loss_by_time(self.losses),
            "parameter_mse": plots.parameter_bars(self.parameter_errors),
        }


class Validator:
    """Measures weights on the first rows of the validation split, the same rows, times and noise every time."""

    def __init__(self, trainer: Trainer, mesh: Mesh, reader: ShardReader, spec: ParamSpec) -> None:
        config = trainer.config
        self._trainer, self._spec, self._reader = trainer, spec, reader
        self._times: tuple[float, ...] = tuple(config.validation.times)
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
        self._losses = jax.jit(self._loss_sums, in_shardings=(params, self._placement, whole), out_shardings=whole)

    def sounds(self, count: int) -> NDArray[np.floating]:
        """The stored audio (S, 2, T) of the first sampled rows, at most ``count``."""
        return self._reader.read_rows(AUDIO, np.arange(min(count, self._sampled_rows)))

    def _loss_sums(self, params: Any, batch: Batch, stats: MelStats) -> jax.Array:
        """Velocity loss at every time, summed over the valid rows."""
        z = self._trainer.model(params).encode(standardise(batch["mel_spec"], stats, self._min_std_db))

        def at(t: jax.Array) -> jax.Array:
            times = jnp.full(batch["valid"].shape, t)
            # The model is merged anew inside the loop: a Flax module may not cross a trace.
            return flow.velocity_error(self._trainer.model(params), z, batch["x0"], batch["x1"], times)

        errors = jax.lax.map(at, jnp.asarray(self._times))
        return (errors * batch["valid"]).sum(axis=1)

    def __call__(self, params: Any, stats: MelStats) -> Result:
        """Measures ``params``; its scalars are called ``val/...``."""
        sums, sampled, true = np.zeros(len(self._times)), [], []
        for i in range(len(self._batches)):
            batch = sharding.place(self._batches[i], self._placement)
            sums += np.asarray(self._losses(params, batch, stats))
            if i * len(batch["valid"]) < self._sampled_rows:
                sampled.append(np.asarray(self._sampler(params, batch["mel_spec"], batch["x0"], stats)))
                true.append(_gather(batch["x1"]))
        predicted, targets = (from_model_scale(np.concatenate(rows)[: self._sampled_rows]) for rows in (sampled, true))
        errors = row_metrics(predicted, targets, self._spec)
        means = sums / self._batches.rows
        losses = dict(zip(self._times, means.tolist(), strict=True))
        scalars = {BEST_BY: float(means.mean())} | {f"val/loss_t{t:g}": loss for t, loss in losses.items()}
        scalars |= {f"val/{k}": float(v.mean()) for k, v in errors.items()}
        projection = params["field"]["projection"]
        return Result(
            scalars=scalars,
            losses=losses,
            parameter_errors=per_parameter_mse(predicted, targets, self._spec),
            sampled=predicted,
            assignment=_gather(projection["assignment"]),
            embeddings=np.hstack([_gather(projection[name]) for name in ("embed_in", "embed_out")]),
        )


def _gather(rows: jax.Array) -> np.ndarray:
    """All of an array that may be spread over hosts."""
    if rows.is_fully_addressable or rows.is_fully_replicated:
        return np.asarray(rows)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
