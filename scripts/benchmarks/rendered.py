"""Measures training on rendered rows: python -m scripts.benchmarks.rendered --config=configs/flow_dexed.py

Three rates in one run, in rows a second on this machine: a, steps alone, on one batch that stays on the device; b,
drawing, rendering and spectrograms alone, by ``data.workers`` processes; and training on rendered rows, where both
share the cores. If neither waited for the other, the third would be 1 / (1 / a + 1 / b); its share of that is reported.
Each row is used once (data.reuse=1), and nothing is validated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from scripts.benchmarks import report
from synthjax.tasks.batches import prefetch
from synthjax.training.setup import Run, set_up
from synthjax.training.trainer import jit_init, jit_train_step

FLAGS = flags.FLAGS
# Batches before the measured ones: as many as the workers have ready when the measurement starts.
BEFORE = 16


def measure(config: Any) -> report.Report:
    """Measures a, b, the training on rendered rows, and a again, which shows a drift of the machine."""
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
    kept = to_batch(run.batches[0])
    rates = {"a: steps alone": _rate(config, lambda: step(kept))}
    with prefetch(run.batches, workers=run.data.workers) as batches:
        rates["b: rows alone"] = _rate(config, lambda: next(batches))
        rates["rendered rows"] = _rate(config, lambda: step(to_batch(next(batches))))
    rates["a: steps alone, again"] = _rate(config, lambda: step(kept))
    bound = 1.0 / (1.0 / rates["a: steps alone"] + 1.0 / rates["b: rows alone"])
    for name, rate in rates.items():
        results.add({"name": name, "median_ms": None, "rows_per_s": rate, "share_of_bound": rate / bound})
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


def _rate(config: Any, do: Callable[[], Any]) -> float:
    """Rows a second of ``do``, which handles one batch."""
    for _ in range(BEFORE):
        do()
    start = time.perf_counter()
    for _ in range(FLAGS.steps):
        do()
    return float(FLAGS.steps * config.data.batch_size / (time.perf_counter() - start))


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 24, "Batches measured for each rate.", lower_bound=2)
    report.run(measure, "configs/flow_dexed.py")
