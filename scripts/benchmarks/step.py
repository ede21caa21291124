"""Measures the train step alone: python -m scripts.benchmarks.step --config=configs/important.py --json=FILE

Batches are random numbers of the right shapes, so no data set is needed. The report has the compile time, samples/s,
the step's FLOPs and the peak memory of the process. The table has medians, beside limits that are measured in the same
run (scripts/benchmarks/roofline.py): of a flow the forward passes of encoder and field, of any model the gradient and
the whole step. The optimizer takes the difference between step and gradient. Batch and precision are set as in
training: --config.data.batch_size=16 --config.compute_dtype=float32.
"""

from __future__ import annotations

import resource
from functools import partial
from typing import Any

import jax
from absl import flags

from scripts.benchmarks import report
from scripts.benchmarks.random_model import RandomModel, TrainStep, require_finite
from scripts.benchmarks.roofline import compile_program, median_seconds
from synthjax.training.process_figures import accelerator_memory_gb


def measure(config: Any) -> report.Report:
    """Compiles each part, calls it once unmeasured and --steps times measured."""
    model = RandomModel.create(config)
    results, batch_size = model.report(), config.data.batch_size

    def gradient(state: Any, batch: Any, stats: Any) -> dict[str, jax.Array]:
        # The updated state is not returned, so XLA leaves the update out.
        return model.trainer.train_step(state, batch, stats, model.mesh)[1]

    parts = model.encoder_and_field() if config.model.kind == "flow" else {}
    parts = {f"{name} forward": part for name, part in parts.items()}
    inputs = model.state, model.batch, model.stats
    parts["gradient"] = compile_program(gradient, *inputs), inputs
    for name, (program, arguments) in parts.items():
        seconds = median_seconds(partial(program.call, *arguments), flags.FLAGS.steps)
        results.add(model.limits.row(name, seconds, batch_size, program))
    step = TrainStep(model)
    seconds = median_seconds(step, flags.FLAGS.steps)
    results.add(model.limits.row("train step", seconds, batch_size, step.program))
    require_finite(step.loss)
    results.setting |= {
        "attention": model.trainer.attention_kernel,
        "compile_seconds": step.program.compile_seconds,
        "step_seconds": seconds,
        "steps_per_second": 1 / seconds,
        "samples_per_second": batch_size / seconds,
        "gflop_per_step": step.program.flop / 1e9,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "peak_accelerator_gb": accelerator_memory_gb(),
    }
    return results


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 5, "Measured steps.", lower_bound=1)
    report.run(measure)
