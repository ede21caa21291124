"""Measures the train step alone: python scripts/bench_step.py --config=configs/important.py --json=FILE

Batches are random numbers of the right shapes, so no data set is needed. Reports the compile time, the median step,
samples/s, the step's FLOPs and the peak memory of the process. Set batch and precision as in
training: --config.data.batch_size=16 --config.compute_dtype=float32.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from data_pipeline import cli, config_flag
from data_pipeline.param_spec import load_spec
from data_pipeline.shards import MEL_SPEC, row_shapes
from data_pipeline.stats import MelStats
from synthjax import sharding
from synthjax.flops import program_flops
from synthjax.tasks import SpectrogramTask
from synthjax.train_step import Trainer, jit_init, jit_train_step


def main(argv: list[str]) -> None:
    """The command."""
    f = flags.FLAGS
    figures = measure(config_flag.read(), f.steps)
    for name, value in figures.items():
        print(f"{name:<22} {value:.4g}" if isinstance(value, float) else f"{name:<22} {value}")
    if f.json:
        Path(f.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def random_batch(config: Any, width: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A batch as the data pipeline would give it."""
    rows, generator = config.data.batch_size, np.random.default_rng(0)
    return {
        "mel_spec": generator.uniform(-80, 0, (rows, *shape)).astype(np.float16),
        "x1": generator.uniform(-1, 1, (rows, width)).astype(np.float32),
        "x0": generator.standard_normal((rows, width), np.float32),
    }


def measure(config: Any, steps: int) -> dict[str, Any]:
    """Compiles the step, runs it once unmeasured and ``steps`` times measured."""
    spec, mesh = load_spec(config.data.spec), sharding.make_mesh(config.mesh)
    shape = row_shapes(spec.width)[MEL_SPEC]
    sharding.check_batch(config.data.batch_size, mesh)
    trainer = Trainer.create(config, SpectrogramTask(spec, shape, config.data.min_std_db))
    shardings = trainer.state_shardings(mesh)
    state = jit_init(trainer, shardings)()
    batch = sharding.place(random_batch(config, spec.width, shape), sharding.batch_sharding(mesh))
    stats = MelStats(np.full(shape, -40, np.float32), np.full(shape, 20, np.float32))
    stats = jax.device_put(stats, sharding.replicated(mesh))
    started = time.perf_counter()
    traced = jit_train_step(trainer, mesh, shardings).trace(state, batch, stats)
    step = traced.lower().compile()
    compile_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch, stats))
        seconds.append(time.perf_counter() - started)
    if not np.isfinite(metrics["loss"]):
        raise cli.UserError("the loss is not finite: these figures would mean nothing")
    median = statistics.median(seconds[1:])
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "batch_size": config.data.batch_size,
        "compute_dtype": config.compute_dtype,
        "parameters": trainer.parameter_count(),
        "compile_seconds": compile_seconds,
        "step_seconds": median,
        "steps_per_second": 1 / median,
        "samples_per_second": config.data.batch_size / median,
        "gflop_per_step": program_flops(traced) / 1e9,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_integer("steps", 5, "Measured steps.", lower_bound=1)
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
