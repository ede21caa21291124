"""Measures training on rendered rows: python -m scripts.benchmarks.rendered --config=configs/flow_dexed.py

Three rates in one run, in rows a second on this machine: a, steps alone, on one batch that stays on the device; b,
drawing, rendering and spectrograms alone, by ``data.workers`` processes; and training on rendered rows, where both
share the cores. If neither waited for the other, the third would be 1 / (1 / a + 1 / b); its share of that is reported.
Each row is used once (data.reuse=1), and nothing is validated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import jax
from absl import flags

from scripts.benchmarks import report
from synthjax.tasks.batches import prefetch
from synthjax.training.setup import Run, set_up
from synthjax.training.trainer import jit_init, jit_train_step

FLAGS = flags.FLAGS
# Batches before the measured ones: the workers fill their queues.
BEFORE = 8


def measure(config: Any) -> report.Report:
    """Measures the three rates, in an order that lets drifts of the machine show: b, both, a, and both again."""
    config.data.update({"source": "render", "reuse": 1})
    config.train.update({"eval_every": 0, "steps": 10 * (BEFORE + FLAGS.steps)})
    run = set_up(config)
    results = report.Report(
        device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        spec=config.data.spec,
        batch_size=config.data.batch_size,
        workers=run.data.workers,
    )
    step, to_batch = _stepper(run), run.data.load(run.mesh)
    with ExitStack() as stack:
        batches = stack.enter_context(prefetch(run.batches, workers=run.data.workers))
        batch = jax.tree.map(lambda leaf: leaf.copy(), to_batch(next(batches)))
        step(batch)  # Compiles.
        rates = {
            "b: rows alone": _rate(config, lambda: next(batches)),
            "rendered rows": _rate(config, lambda: step(to_batch(next(batches)))),
            "a: steps alone": _rate(config, lambda: step(batch)),
            "rendered rows, again": _rate(config, lambda: step(to_batch(next(batches)))),
        }
    bound = 1.0 / (1.0 / rates["a: steps alone"][0] + 1.0 / rates["b: rows alone"][0])
    for name, (rate, median) in rates.items():
        results.add({"name": name, "median_ms": 1e3 * median, "rows_per_s": rate, "share_of_bound": rate / bound})
    results.setting["bound_rows_per_s"] = bound
    return results


def _stepper(run: Run) -> Callable[[Any], None]:
    """Returns ``step(batch)``, which updates a state and waits for it."""
    state = [jit_init(run.trainer, run.shardings)()]
    train_step = jit_train_step(run.trainer, run.mesh, run.shardings)

    def step(batch: Any) -> None:
        state[0], metrics = train_step(state[0], batch, run.stats)
        jax.block_until_ready(metrics)

    return step


def _rate(config: Any, do: Callable[[], Any]) -> tuple[float, float]:
    """Rows a second of ``do``, which handles one batch, and its median seconds."""
    for _ in range(BEFORE):
        do()
    times = [time.perf_counter()]
    for _ in range(FLAGS.steps):
        do()
        times.append(time.perf_counter())
    rate = FLAGS.steps * config.data.batch_size / (times[-1] - times[0])
    return rate, statistics.median(end - start for start, end in pairwise(times))


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 24, "Batches measured for each rate.", lower_bound=2)
    report.run(measure, "configs/flow_dexed.py")
