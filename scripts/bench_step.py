"""Measures the train step alone: python scripts/bench_step.py --config=configs/important.py --json=FILE

Batches are random numbers of the right shapes, so no data set is needed. Reports the compile time, samples/s, the
step's FLOPs and the peak memory of the process; then a table of medians beside the limits that scripts/roofline.py
measures: of a flow the forward passes of encoder and field, of any model the gradient and the whole step. What the step
takes longer than the gradient is the optimizer. Set batch and precision as in training:
--config.data.batch_size=16 --config.compute_dtype=float32.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from bench_report import Report
from compile_memory import batch_shapes, task_of
from roofline import Program, compile_program, device_row, measure_limits, median_seconds

from data_pipeline import cli, config_flag
from data_pipeline.stats import MelStats
from synthjax import sharding
from synthjax.host_figures import accelerator_memory_gb
from synthjax.tasks import Batch, SpectrogramTask, Task
from synthjax.train_step import Trainer, TrainState, jit_init, jit_train_step

# Time of the vector field's forward pass, which costs the same at every one.
TIME = 0.5


def main(argv: list[str]) -> None:
    """The command."""
    f = flags.FLAGS
    measure(config_flag.read(), f.steps).tell(f.json)


def measure(config: Any, steps: int) -> Report:
    """Compiles each part, runs it once unmeasured and ``steps`` times measured."""
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.data.batch_size, mesh, config.train.accumulate)
    task, report = task_of(config), Report()
    trainer = Trainer.create(config, task)
    limits = measure_limits(config.compute_dtype)
    shardings = trainer.state_shardings(mesh)
    state = jit_init(trainer, shardings)()
    batch, stats = random_batch(config, task, mesh), flat_stats(task, mesh)

    def add(name: str, program: Program, call: Callable[[], Any]) -> float:
        seconds = median_seconds(call, steps)
        report.add(device_row(name, seconds, config.data.batch_size, program.flop, program.moved, limits))
        return seconds

    for name, function, arguments in _parts(trainer, mesh, state, batch, stats):
        program = compile_program(function, *arguments)
        add(name, program, partial(program.call, *arguments))
    program = compile_program(jit_train_step(trainer, mesh, shardings), state, batch, stats)
    stepper = Stepper(program, state, batch, stats)
    seconds = add("train step", program, stepper)
    if not np.isfinite(stepper.loss):
        raise cli.UserError("the loss is not finite: these figures would mean nothing")
    report.setting |= limits.figures | {
        "batch_size": config.data.batch_size,
        "compute_dtype": config.compute_dtype,
        "attention": trainer.attention_kernel,
        "parameters": trainer.parameter_count(),
        "compile_seconds": program.compile_seconds,
        "step_seconds": seconds,
        "steps_per_second": 1 / seconds,
        "samples_per_second": config.data.batch_size / seconds,
        "gflop_per_step": program.flop / 1e9,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "peak_accelerator_gb": accelerator_memory_gb(),
    }
    return report


class Stepper:
    """The whole step on one batch again and again: each call takes the state that the last one left."""

    def __init__(self, program: Program, state: TrainState, batch: Batch, stats: MelStats | None) -> None:
        self._program, self._state, self._inputs = program, state, (batch, stats)
        self.loss = np.nan

    def __call__(self) -> TrainState:
        self._state, metrics = self._program.call(self._state, *self._inputs)
        self.loss = float(metrics["loss"])
        return self._state


def _parts(
    trainer: Trainer, mesh: jax.sharding.Mesh, state: TrainState, batch: Batch, stats: MelStats | None
) -> list[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """What the step is made of, as (name, function, its arguments)."""

    def encode(params: Any, batch: Batch, stats: Any) -> jax.Array:
        inputs = trainer.task.examples(batch, stats, jnp.zeros((), jnp.int32)).inputs
        return trainer.model(trainer.gathered(params, mesh)).encode(inputs)

    def velocity(params: Any, x: jax.Array, z: jax.Array) -> jax.Array:
        return trainer.model(trainer.gathered(params, mesh)).velocity(x, jnp.full(x.shape[:1], TIME), z)

    def gradient(state: TrainState, batch: Batch, stats: Any) -> dict[str, jax.Array]:
        return trainer.train_step(state, batch, stats, mesh)[1]  # Of the update nothing is returned: XLA leaves it out.

    parts: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [("gradient", gradient, (state, batch, stats))]
    if trainer.config.model.kind == "flow":
        rows = sharding.batch_sharding(mesh)
        z = jax.jit(encode, out_shardings=rows)(state.params, batch, stats)
        x = jax.device_put(np.zeros((len(z), trainer.task.width), np.float32), rows)
        forward = [("encoder forward", encode, (state.params, batch, stats))]
        parts = [*forward, ("field forward", velocity, (state.params, x, z)), *parts]
    return parts


def random_batch(config: Any, task: Task, mesh: jax.sharding.Mesh) -> Batch:
    """A batch as the data pipeline would give it."""
    shapes, generator = batch_shapes(config, task, mesh), np.random.default_rng(0)
    fills: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "mel_spec": lambda shape: generator.uniform(-80.0, 0.0, shape),
        "x1": lambda shape: generator.uniform(-1.0, 1.0, shape),
        "x0": generator.standard_normal,
        "order": lambda shape: np.arange(*shape),
    }
    return {
        name: jax.device_put(fills[name](one.shape).astype(one.dtype), one.sharding) for name, one in shapes.items()
    }


def flat_stats(task: Task, mesh: jax.sharding.Mesh) -> MelStats | None:
    """Statistics as plausible as the batch; None where the task has none."""
    if not isinstance(task, SpectrogramTask):
        return None
    mean, std = (np.full(task.input_shape, decibels, np.float32) for decibels in (-40.0, 20.0))
    return jax.device_put(MelStats(mean, std), sharding.replicated(mesh))


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_integer("steps", 5, "Measured steps.", lower_bound=1)
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
