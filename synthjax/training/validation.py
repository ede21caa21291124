"""Validation while training: losses with fixed noise, and metrics of sampled rows.

Shapes: S sampled rows, W row width, N tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from data_pipeline.console.cli import UserError
from synthjax.cluster import distributed, sharding
from synthjax.methods.examples import Batch, Examples, from_model_scale
from synthjax.methods.sampling import Sampling
from synthjax.runs.checkpoints import BEST_BY
from synthjax.runs.model import jit_sampler, sample_batches
from synthjax.tasks.training_data import HeldOut
from synthjax.training import plots
from synthjax.training.logbook import Logbook
from synthjax.training.probe import Probe, start_probe
from synthjax.training.setup import Run
from synthjax.training.trainer import Trainer, TrainState
from synthjax.training.writers import Writers


@dataclass(frozen=True)
class Result:
    """The result of one validation.

    Attributes:
      scalars: figures for the log, named ``val/...``.
      sampled: (S, W), the rows sampled for the first sounds of the split, on the model's scale.
      losses: the velocity loss by time; empty if the model is no flow.
      parameter_errors: the mean squared error by parameter; empty if the parameters have no order.
      assignment: (N, W), of Param2Tok; None if the model has none.
      embeddings: (W, 2 D), of Param2Tok, input beside output; None if the model has none.
    """

    scalars: dict[str, float]
    sampled: NDArray[np.floating]
    losses: dict[float, float]
    parameter_errors: dict[str, float]
    assignment: NDArray[np.floating] | None
    embeddings: NDArray[np.floating] | None

    def pictures(self, column_names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """The pictures for TensorBoard, by name; ``column_names`` are those of the W columns."""
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
    """Measures weights on the first rows of the validation split, with the same rows and noise every time."""

    def __init__(self, trainer: Trainer, mesh: Mesh, held_out: HeldOut) -> None:
        config = trainer.config
        self._trainer, self._mesh, self._held_out = trainer, mesh, held_out
        self._sampled_rows = min(config.validation.sampled_rows, held_out.rows)
        sampling = Sampling.for_validation(config.validation)
        self._sampler = jit_sampler(trainer, mesh, sampling)
        whole = sharding.replicated(mesh)
        placements = (trainer.param_shardings(mesh), sharding.batch_sharding(mesh), whole)
        self._losses = jax.jit(self._loss_sums, in_shardings=placements, out_shardings=whole)

    def _loss_sums(self, params: Any, batch: Batch, stats: Any) -> jax.Array:
        """The sum of every loss over the valid rows."""
        examples = Examples(self._trainer.task.inputs(batch, stats), batch["x0"], batch["x1"])
        params = self._trainer.gathered(params, self._mesh)
        errors = self._trainer.method.errors(partial(self._trainer.model, params), examples)
        return (errors * batch["valid"]).sum(axis=1)

    def __call__(self, params: Any, stats: Any) -> Result:
        """Measures ``params``."""
        method = self._trainer.method
        sums = np.zeros(len(method.names))
        for batch in iter(self._held_out):
            sums += np.asarray(self._losses(params, batch, stats))
        count = self._sampled_rows
        predicted = sample_batches(lambda batch: self._sampler(params, batch, stats), iter(self._held_out), count)
        targets = self._held_out.true_rows(count)
        means = (sums / self._held_out.rows).tolist()
        scalars = {BEST_BY: float(np.mean(means))}
        scalars |= {f"val/{name}": loss for name, loss in zip(method.names, means, strict=True)}
        figures = self._held_out.judge(predicted, targets)
        scalars |= {f"val/{name}": float(values.mean()) for name, values in figures.items()}
        return Result(
            scalars=scalars,
            sampled=predicted,
            losses=dict(zip(method.times, means, strict=False)),
            parameter_errors=self._held_out.parameter_errors(predicted, targets),
            **_param2tok(params),
        )


def _param2tok(params: Any) -> dict[str, NDArray[np.floating] | None]:
    """``assignment`` and ``embeddings`` of a ``Result``."""
    projection = params.get("field", {}).get("projection", {})
    if "assignment" not in projection:
        return {"assignment": None, "embeddings": None}
    embeddings = np.hstack([sharding.gather(projection[name]) for name in ("embed_in", "embed_out")])
    return {"assignment": sharding.gather(projection["assignment"]), "embeddings": embeddings}


def _probe(run: Run, writers: Writers, say: Callable[[str], None]) -> Probe | None:
    """The run's probe; None, with the reason printed, where the sounds of the validation split cannot be read."""
    try:
        targets = run.data.probe_targets()
    except UserError as error:
        say(f"no validation probe: {error}")
        return None
    return start_probe(*targets, writers, say) if targets else None


class LoggedValidation:
    """Validates the averaged weights, logs figures and pictures, and gives the sampled rows to the probe."""

    def __init__(self, run: Run, logbook: Logbook, writers: Writers, say: Callable[[str], None]) -> None:
        self._run, self._logbook = run, logbook
        held_out = run.data.held_out(sharding.batch_sharding(run.mesh))
        self._validator = None if held_out is None else Validator(run.trainer, run.mesh, held_out)
        if self._validator is None and run.config.train.eval_every:
            say(f"no val.h5 under {run.config.data.root}: no validation while training")
        self._probe: Probe | None = None
        if self._validator and distributed.is_main():
            self._probe = _probe(run, writers, say)

    def close(self) -> None:
        """Ends the probe."""
        if self._probe:
            self._probe.close()

    def __call__(self, state: TrainState, step: int) -> float | None:
        """Returns the validation loss; None if there is no validation split."""
        if self._validator is None:
            return None
        self._logbook.settle()  # The time of the steps under way is no part of validation's.
        result = self._validator(state.ema, self._run.stats)
        self._logbook.flush((step, result.scalars))
        if self._probe:
            self._probe.submit(step, from_model_scale(result.sampled))
        if distributed.is_main():
            for name, pixels in result.pictures(self._run.trainer.task.column_names).items():
                self._logbook.image(step, name, pixels)
        self._logbook.restart_clock()
        return result.scalars[BEST_BY]
