"""Measures how rows are drawn: python scripts/bench_sampler.py --config=configs/flow_100k.py [--rows=10000]

Weights are random and sounds are noise, so neither a run nor a data set is needed; time depends on neither. A batch has
sampling.batch_size sounds. The table has, of a flow, the encoder and one evaluation of the vector field (guidance
makes it one of twice the batch), and the whole solve with the config's solver, steps and guidance, compiled as evaluate
and predict have it; --solves=rk4-100,heun-20 measures others too. dopri5 is not measured: how many steps it takes
depends on the weights. Shares are of the limits that scripts/roofline.py measures; the bytes of a solve are those of
its parts, the field's as often as the FLOPs say that it runs. --rows draws so many rows with the config's solver, batch
after batch, from arrays on the host to rows on the host.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from bench_report import Report
from bench_step import flat_stats
from compile_memory import task_of
from roofline import Program, compile_program, device_row, measure_limits, median_seconds

from data_pipeline import cli, config_flag
from data_pipeline.progress import progress_bar
from synthjax import sharding
from synthjax.data import PREDICT_NOISE, draw_noise, from_model_scale
from synthjax.inference import jit_sampler
from synthjax.sampling import Sampling, guided_field
from synthjax.solvers import FIXED_STEPS
from synthjax.tasks import Batch
from synthjax.train_step import Trainer, jit_init

# Where the field is evaluated, which costs the same at every time.
TIME = 0.5


def main(argv: list[str]) -> None:
    """The command."""
    f, config = flags.FLAGS, config_flag.read()
    if config.data.source != "shards":
        raise cli.UserError(f"data.source={config.data.source} is not measured here: use a config of shards")
    sampling = Sampling.from_config(config.sampling)
    others = [_parse(text) for text in f.solves]
    _check(sampling.solver, sampling.steps)
    bench = SamplerBench(config, f.repeats)
    if config.model.kind == "flow":
        bench.measure_parts(sampling.guidance)
    solve = bench.measure_solve(sampling)
    for solver, steps in others:
        bench.measure_solve(replace(sampling, solver=solver, steps=steps))
    if f.rows:
        bench.measure_rows(solve, f.rows)
    bench.report.tell(f.json)


def _parse(text: str) -> tuple[str, int]:
    """A solver and its steps."""
    solver, _, steps = text.partition("-")
    count = int(steps) if steps.isdecimal() else 0
    _check(solver, count)
    return solver, count


def _check(solver: str, steps: int) -> None:
    if solver not in FIXED_STEPS or steps < 1:
        raise cli.UserError(
            f"cannot measure solver {solver!r} with {steps} steps: use {', '.join(FIXED_STEPS)}, such as rk4-100"
        )


class SamplerBench:
    """A model of random weights and a batch for it; each row is the median of ``repeats`` calls."""

    def __init__(self, config: Any, repeats: int) -> None:
        self._repeats, self._mesh, task = repeats, sharding.make_mesh(config.mesh), task_of(config)
        self._trainer = Trainer.create(config, task)
        self._limits = measure_limits(config.compute_dtype)
        self._size = sharding.round_up(config.sampling.batch_size, self._mesh)
        self._params = jit_init(self._trainer, self._trainer.state_shardings(self._mesh))().params
        self._stats = flat_stats(task, self._mesh)
        mel = np.random.default_rng(0).uniform(-80.0, 0.0, (self._size, *task.input_shape)).astype(np.float16)
        self._host_batch = {"mel_spec": mel, "x0": draw_noise(self._size, task.width, PREDICT_NOISE, config.seed)}
        self._rows = sharding.batch_sharding(self._mesh)
        self._batch = sharding.place(self._host_batch, self._rows)
        self._parts: tuple[Program, Program] | None = None
        self.report = Report()
        self.report.setting |= self._limits.figures | {
            "batch_size": self._size,
            "compute_dtype": config.compute_dtype,
            "parameters": self._trainer.parameter_count(),
        }

    def measure_parts(self, guidance: float) -> None:
        """Encoder and field of a flow."""

        def encode(params: Any, batch: Batch, stats: Any) -> jax.Array:
            return self._model(params).encode(self._trainer.task.inputs(batch, stats))

        def evaluate(params: Any, x: jax.Array, z: jax.Array) -> jax.Array:
            return guided_field(self._model(params), z, guidance)(x, jnp.float32(TIME))

        jitted = jax.jit(encode, out_shardings=self._rows)
        encoder = self._measure("encoder", jitted, self._params, self._batch, self._stats)
        z = encoder.call(self._params, self._batch, self._stats)
        field = self._measure(f"field, guidance {guidance:g}", evaluate, self._params, self._batch["x0"], z)
        self._parts = encoder, field

    def measure_solve(self, sampling: Sampling) -> Program:
        """Rows from spectrograms."""
        jitted = jit_sampler(self._trainer, self._mesh, sampling)
        name = f"{sampling.solver}-{sampling.steps}, guidance {sampling.guidance:g}" if self._parts else "rows"
        return self._measure(name, jitted, self._params, self._batch, self._stats)

    def measure_rows(self, solve: Program, count: int) -> None:
        """Draws ``count`` rows, those that fill the last batch beside them."""
        seconds = []
        with progress_bar("rows drawn", count) as advance:
            for first in range(0, count, self._size):
                started = time.perf_counter()
                placed = sharding.place(self._host_batch, self._rows)
                from_model_scale(np.asarray(solve.call(self._params, placed, self._stats)))
                seconds.append(time.perf_counter() - started)
                advance(min(self._size, count - first))
        self.report.setting |= {"drawn_rows": count, "drawn_rows_seconds": sum(seconds)}
        self._add("a batch, host to host", statistics.median(seconds), solve)

    def _model(self, params: Any) -> Any:
        return self._trainer.model(self._trainer.gathered(params, self._mesh))

    def _measure(self, name: str, function: Any, *arguments: Any) -> Program:
        program = self._with_moved_in_loops(compile_program(function, *arguments))
        self._add(name, median_seconds(partial(program.call, *arguments), self._repeats), program)
        return program

    def _with_moved_in_loops(self, program: Program) -> Program:
        """Of a solve the field's bytes, which are moved again at every evaluation."""
        if self._parts is None:
            return program
        encoder, field = self._parts
        evaluations = (program.flop - encoder.flop) / field.flop
        return replace(program, moved=encoder.moved + evaluations * field.moved)

    def _add(self, name: str, seconds: float, program: Program) -> None:
        self.report.add(device_row(name, seconds, self._size, program.flop, program.moved, self._limits))


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_integer("repeats", 5, "Measured calls of each row.", lower_bound=1)
    flags.DEFINE_list("solves", [], "More solvers and their steps to measure, such as rk4-100.")
    flags.DEFINE_integer("rows", 0, "Rows to draw from the host to the host; 0 draws none.", lower_bound=0)
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
