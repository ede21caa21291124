"""Measures the sampling of rows: python -m scripts.benchmarks.sampler --config=configs/flow_100k.py [--rows=10000]

Weights are random and spectrograms are noise, so neither a run nor a data set is needed. A batch has
sampling.batch_size sounds. The table has, of a flow, the encoder and one evaluation of the vector field (with guidance
on twice the batch), and the whole solve with the config's solver, steps and guidance, compiled as evaluate and predict
have it. --solves=rk4-100,heun-20 measures other solvers too. dopri5 is not measured: its number of steps depends on the
weights. Shares are those of measured limits (scripts/benchmarks/roofline.py). The bytes of a solve are those of its
parts, the field's once for each evaluation. --rows draws this many rows with the config's solver, batch after batch,
from arrays on the host to rows on the host.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from data_pipeline.console.cli import UserError
from data_pipeline.console.progress import progress_bar
from scripts.benchmarks import report
from scripts.benchmarks.random_model import TIME, RandomModel
from scripts.benchmarks.roofline import Program, compile_program, median_seconds, seconds_of
from synthjax.cluster import sharding
from synthjax.methods.examples import Batch, from_model_scale
from synthjax.methods.sampling import Sampling, guided_field
from synthjax.methods.solvers import FIXED_STEPS
from synthjax.runs.model import jit_sampler


def measure(config: Any) -> report.Report:
    """Measures the parts of a flow, each solve, and the rows that --rows asks for."""
    f, sampling = flags.FLAGS, Sampling.from_config(config.sampling)
    if config.data.source != "shards":
        raise UserError(f"data.source={config.data.source} is not measured here: use a config of shards")
    solves = [(sampling.solver, sampling.steps), *map(_parsed, f.solves)]
    for solver, steps in solves:
        if solver not in FIXED_STEPS or steps < 1:
            known = ", ".join(FIXED_STEPS)
            raise UserError(f"cannot measure solver {solver!r} with {steps} steps: use {known}, such as rk4-100")
    bench = SamplerBench(config)
    if config.model.kind == "flow":
        bench.measure_parts(sampling.guidance)
    first, *_ = [bench.measure_solve(replace(sampling, solver=solver, steps=steps)) for solver, steps in solves]
    if f.rows:
        bench.measure_rows(first, f.rows)
    return bench.report


def _parsed(text: str) -> tuple[str, int]:
    """Returns the solver and the steps of a text such as rk4-100."""
    solver, _, steps = text.partition("-")
    return solver, int(steps) if steps.isdecimal() else 0


class SamplerBench:
    """A model of random weights and a batch of spectrograms and noise for its sampler."""

    def __init__(self, config: Any) -> None:
        config.data.batch_size = sharding.round_up(config.sampling.batch_size, sharding.make_mesh(config.mesh))
        self._model = RandomModel.create(config)
        self._batch = {name: self._model.batch[name] for name in ("mel_spec", "x0")}
        self._inputs = self._model.state.params, self._batch, self._model.stats
        self._parts: tuple[Program, Program] | None = None
        self.report = self._model.report()

    def measure_parts(self, guidance: float) -> None:
        """Measures encoder and field of a flow."""
        model = self._model

        def encode(params: Any, batch: Batch, stats: Any) -> jax.Array:
            return model.network(params).encode(model.trainer.task.inputs(batch, stats))

        def evaluate(params: Any, x: jax.Array, z: jax.Array) -> jax.Array:
            return guided_field(model.network(params), z, guidance)(x, jnp.float32(TIME))

        jitted = jax.jit(encode, out_shardings=sharding.batch_sharding(model.mesh))
        encoder = self._measure("encoder", jitted, *self._inputs)
        z = encoder.call(*self._inputs)
        field = self._measure(f"field, guidance {guidance:g}", evaluate, self._inputs[0], self._batch["x0"], z)
        self._parts = encoder, field

    def measure_solve(self, sampling: Sampling) -> Program:
        """Measures the way from spectrograms to rows."""
        name = f"{sampling.solver}-{sampling.steps}, guidance {sampling.guidance:g}" if self._parts else "rows"
        return self._measure(name, jit_sampler(self._model.trainer, self._model.mesh, sampling), *self._inputs)

    def measure_rows(self, solve: Program, count: int) -> None:
        """Draws ``count`` rows in whole batches, host to host."""
        params, batch, stats = self._inputs
        on_host, size, seconds = jax.device_get(batch), len(batch["x0"]), []
        placement = sharding.batch_sharding(self._model.mesh)

        def draw() -> np.ndarray:
            return from_model_scale(np.asarray(solve.call(params, sharding.place(on_host, placement), stats)))

        with progress_bar("rows drawn", count) as advance:
            for first in range(0, count, size):
                seconds.append(seconds_of(draw))
                advance(min(size, count - first))
        self.report.setting |= {"drawn_rows": count, "drawn_rows_seconds": sum(seconds)}
        self._add("a batch, host to host", statistics.median(seconds), solve)

    def _measure(self, name: str, function: Any, *arguments: Any) -> Program:
        program = compile_program(function, *arguments)
        if self._parts:  # A solve moves the field's bytes again at every evaluation.
            encoder, field = self._parts
            evaluations = (program.flop - encoder.flop) / field.flop
            program = replace(program, moved=encoder.moved + evaluations * field.moved)
        self._add(name, median_seconds(partial(program.call, *arguments), flags.FLAGS.repeats), program)
        return program

    def _add(self, name: str, seconds: float, program: Program) -> None:
        self.report.add(self._model.limits.row(name, seconds, len(self._batch["x0"]), program))


if __name__ == "__main__":
    flags.DEFINE_integer("repeats", 5, "Measured calls of each row.", lower_bound=1)
    flags.DEFINE_list("solves", [], "More solvers and their steps to measure, such as rk4-100.")
    flags.DEFINE_integer("rows", 0, "Rows to draw from the host to the host; 0 draws none.", lower_bound=0)
    report.run(measure)
