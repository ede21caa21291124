"""Validation while training: losses with fixed noise, and the rows that the model gives, judged.

Shapes: S sampled rows, W row width, N tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from synthjax import plots, sharding
from synthjax.checkpoints import BEST_BY
from synthjax.held_out import HeldOut
from synthjax.inference import jit_sampler
from synthjax.methods import FlowMatching
from synthjax.sampling import Sampling
from synthjax.tasks import Batch, Examples
from synthjax.train_step import Trainer


@dataclass(frozen=True)
class Result:
    """What one validation found.

    ``scalars`` are to be logged. ``sampled`` (S, W) are the rows given for the first sounds of the split, on the
    model's scale. What a kind of model does not have is empty: ``losses`` the velocity loss by time,
    ``parameter_errors`` the mean squared error by parameter, and of Param2Tok ``assignment`` (N, W) and ``embeddings``
    (W, 2 D), those of the way in beside those of the way out.
    """

    scalars: dict[str, float]
    sampled: NDArray[np.floating]
    losses: dict[float, float]
    parameter_errors: dict[str, float]
    assignment: NDArray[np.floating] | None
    embeddings: NDArray[np.floating] | None

    def pictures(self, column_names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """The pictures that TensorBoard shows, by name; ``column_names`` are those of the W columns."""
        pictures = {}
        if self.assignment is not None and self.embeddings is not None:
            pictures["assignment"] = plots.assignment_matrix(self.assignment, column_names)
            pictures["token_similarity"] = plots.token_similarity(self.assignment, self.embeddings, column_names)
        if self.losses:
            pictures["loss_by_time"] = plots.loss_by_time(self.losses)
        if self.parameter_errors:
            pictures["parameter_mse"] = plots.parameter_bars(self.parameter_errors)
        return pictures


class Validator:
    """Measures weights on the first rows of the validation split, the same rows and noise every time."""

    def __init__(self, trainer: Trainer, mesh: Mesh, held_out: HeldOut) -> None:
        config = trainer.config
        self._trainer, self._mesh, self._held_out = trainer, mesh, held_out
        self._sampled_rows = min(config.validation.sampled_rows, held_out.rows)
        sampling = Sampling(config.validation.guidance, config.validation.solver, config.validation.solver_steps)
        self._sampler = jit_sampler(trainer, mesh, sampling)
        whole = sharding.replicated(mesh)
        params = sharding.parameter_shardings(trainer.abstract, mesh, fsdp=config.mesh.fsdp)
        placements = (params, sharding.batch_sharding(mesh), whole)
        self._losses = jax.jit(self._loss_sums, in_shardings=placements, out_shardings=whole)

    def _loss_sums(self, params: Any, batch: Batch, stats: Any) -> jax.Array:
        """Every loss, summed over the valid rows."""
        examples = Examples(self._trainer.task.inputs(batch, stats), batch["x0"], batch["x1"])
        params = self._trainer.gathered(params, self._mesh)
        errors = self._trainer.method.errors(partial(self._trainer.model, params), examples)
        return (errors * batch["valid"]).sum(axis=1)

    def __call__(self, params: Any, stats: Any) -> Result:
        """Measures ``params``; its scalars are called ``val/...``."""
        method = self._trainer.method
        sums, sampled, true = np.zeros(len(method.names)), [], []
        for i in range(len(self._held_out)):
            batch = self._held_out[i]
            sums += np.asarray(self._losses(params, batch, stats))
            if i * len(batch["valid"]) < self._sampled_rows:
                sampled.append(np.asarray(self._sampler(params, batch, stats)))
                true.append(sharding.gather(batch["x1"]))
        predicted, targets = (np.concatenate(rows)[: self._sampled_rows] for rows in (sampled, true))
        means = (sums / self._held_out.rows).tolist()
        scalars = {BEST_BY: float(np.mean(means))}
        scalars |= {f"val/{name}": loss for name, loss in zip(method.names, means, strict=True)}
        figures = self._held_out.judge(predicted, targets)
        scalars |= {f"val/{name}": float(values.mean()) for name, values in figures.items()}
        times = method.times if isinstance(method, FlowMatching) else ()
        return Result(
            scalars=scalars,
            sampled=predicted,
            losses=dict(zip(times, means, strict=False)),
            parameter_errors=self._held_out.parameter_errors(predicted, targets),
            **_param2tok(params),
        )


def _param2tok(params: Any) -> dict[str, NDArray[np.floating] | None]:
    """What the model has of Param2Tok."""
    projection = params.get("field", {}).get("projection", {})
    if "assignment" not in projection:
        return {"assignment": None, "embeddings": None}
    embeddings = np.hstack([sharding.gather(projection[name]) for name in ("embed_in", "embed_out")])
    return {"assignment": sharding.gather(projection["assignment"]), "embeddings": embeddings}
