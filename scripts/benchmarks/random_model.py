"""A config's model with random weights, and a random batch: times depend on neither, so no data set is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.console.cli import UserError
from data_pipeline.shards.mel_stats import MelStats
from scripts.benchmarks.report import Report
from scripts.benchmarks.roofline import Limits, Program, compile_program, measure_limits
from scripts.compile_memory import batch_shapes, task_of
from synthjax.cluster import sharding
from synthjax.methods.examples import Batch
from synthjax.methods.task import SpectrogramTask, Task
from synthjax.training.trainer import Trainer, TrainState, jit_init, jit_train_step

# Time t at which the vector field is evaluated; every time costs the same.
TIME = 0.5


@dataclass(frozen=True)
class RandomModel:
    """A model, its batch and statistics (None where the task has none), and the measured limits of the devices."""

    config: Any
    mesh: jax.sharding.Mesh
    trainer: Trainer
    limits: Limits
    state: TrainState
    batch: Batch
    stats: MelStats | None

    @classmethod
    def create(cls, config: Any) -> Self:
        """Makes all on the config's mesh. Raises UserError if the batch does not fit the mesh."""
        mesh, task = sharding.make_mesh(config.mesh), task_of(config)
        sharding.check_batch(config.data.batch_size, mesh, config.train.accumulate)
        trainer = Trainer.create(config, task)
        state = jit_init(trainer, trainer.state_shardings(mesh))()
        batch, stats = random_batch(config, task, mesh), flat_stats(task, mesh)
        return cls(config, mesh, trainer, measure_limits(config.compute_dtype), state, batch, stats)

    def report(self) -> Report:
        """Returns an empty report with the setting of this model."""
        return Report(
            **self.limits.figures,
            batch_size=self.config.data.batch_size,
            compute_dtype=self.config.compute_dtype,
            parameters=self.trainer.parameter_count(),
        )

    def network(self, params: Any) -> Any:
        """The model with these parameters, for use inside jit."""
        return self.trainer.model(self.trainer.gathered(params, self.mesh))

    def encoder_and_field(self) -> dict[str, tuple[Program, tuple[Any, ...]]]:
        """Compiles the forward passes of a flow; returns each program with its arguments, by name."""

        def encode(params: Any, batch: Batch, stats: Any) -> jax.Array:
            inputs = self.trainer.task.examples(batch, stats, jnp.zeros((), jnp.int32)).inputs
            return self.network(params).encode(inputs)

        def velocity(params: Any, x: jax.Array, z: jax.Array) -> jax.Array:
            return self.network(params).velocity(x, jnp.full(x.shape[:1], TIME), z)

        rows = sharding.batch_sharding(self.mesh)
        encoder = compile_program(jax.jit(encode, out_shardings=rows), self.state.params, self.batch, self.stats)
        z = encoder.call(self.state.params, self.batch, self.stats)
        x = jax.device_put(np.zeros((len(z), self.trainer.task.width), np.float32), rows)
        of_field = self.state.params, x, z
        return {
            "encoder": (encoder, (self.state.params, self.batch, self.stats)),
            "field": (compile_program(velocity, *of_field), of_field),
        }


class TrainStep:
    """The compiled train step of a model. Each step takes the state that the last step left."""

    def __init__(self, model: RandomModel) -> None:
        self._state, self._batch, self._stats, trainer = model.state, model.batch, model.stats, model.trainer
        step = jit_train_step(trainer, model.mesh, trainer.state_shardings(model.mesh))
        self.program = compile_program(step, self._state, self._batch, self._stats)
        self.loss = np.nan

    def __call__(self) -> TrainState:
        """Makes a step on the random batch and waits for its loss."""
        self.loss = float(self.advance(self._batch)["loss"])
        return self._state

    def advance(self, batch: Batch) -> dict[str, jax.Array]:
        """Starts a step on a batch; returns its metrics."""
        self._state, metrics = self.program.call(self._state, batch, self._stats)
        return metrics


def require_finite(*losses: float) -> None:
    """Raises UserError if a loss is not finite: such steps may take less time."""
    if not np.isfinite(losses).all():
        raise UserError("the loss is not finite, so the measured times would be worthless")


def random_batch(config: Any, task: Task, mesh: jax.sharding.Mesh) -> Batch:
    """Returns a batch of random numbers with the shapes, ranges and placement of the real ones."""
    generator = np.random.default_rng(0)
    fills: dict[str, Callable[..., Any]] = {
        "mel_spec": lambda shape: generator.uniform(-80.0, 0.0, shape),
        "x1": lambda shape: generator.uniform(-1.0, 1.0, shape),
        "x0": generator.standard_normal,
        "order": lambda shape: np.arange(*shape),
    }
    return {
        name: jax.device_put(fills[name](one.shape).astype(one.dtype), one.sharding)
        for name, one in batch_shapes(config, task, mesh).items()
    }


def flat_stats(task: Task, mesh: jax.sharding.Mesh) -> MelStats | None:
    """Returns statistics that fit the random spectrograms; None where the task has none."""
    if not isinstance(task, SpectrogramTask):
        return None
    mean, std = (np.full(task.input_shape, decibels, np.float32) for decibels in (-40.0, 20.0))
    return jax.device_put(MelStats(mean, std), sharding.replicated(mesh))
