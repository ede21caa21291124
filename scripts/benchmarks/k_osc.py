"""Measures training on the k-osc task beside a plain PyTorch loop: python -m scripts.benchmarks.k_osc [--json=FILE]

    python -m scripts.benchmarks.k_osc --config=configs/k_osc.py:model=param2tok,k=4 --config.data.batch_size=128

Both sides draw the same kind of data and train the same network on the same cores, in blocks of a few steps that take
turns. Ours runs as in synthjax.train: data are made inside the step, and a thread pairs the next batches; the table
also has both parts measured alone. PyTorch runs eagerly, one part after the other. It is no requirement of the project:
without it, or for a model that the loop here lacks, the report has our figures alone. FLOPs and bytes of both sides are
those of our step.

Idle cores give the best figures. cpu_ms, the processor time of all threads, tells work from waiting, best on one core
(taskset -c 0 python -m ...).
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from scipy.optimize import linear_sum_assignment

from data_pipeline.console.cli import UserError
from scripts.benchmarks import report
from scripts.benchmarks.comparison import lacking, ratios, torch_models
from scripts.benchmarks.random_model import RandomModel, TrainStep, require_finite
from synthjax.cluster import sharding
from synthjax.k_osc.synthesis import SAMPLE_RATE, SAMPLES
from synthjax.methods.coupling import group_rows
from synthjax.methods.examples import HostBatch
from synthjax.methods.task import KOscTask
from synthjax.runs.check_config import check_config
from synthjax.tasks.batches import prefetch
from synthjax.tasks.k_osc import KOscBatches

ROUNDS = 5
# Seconds of a step ("step"), its processor time ("cpu"), and its parts by their names in the table.
Figures = dict[str, float]
# The config values that the PyTorch loop covers, by the config's model.kind.
TORCH_HAS: dict[str, dict[str, Any]] = {
    "flow": {"model.field.kind": "transformer", "model.field.projection": "param2tok", "model.field.time_features": 1},
    "regression": {"model.loss": "mse"},
}
TORCH_ALWAYS = {"compute_dtype": "float32", "optim.name": "adam", "model.encoder.norm": "batch"}


def measure(config: Any) -> report.Report:
    """Measures ``ROUNDS`` blocks of each side in turn, after an unmeasured one."""
    if config.data.source != "k_osc":
        raise UserError(f"data.source={config.data.source} is not measured here: use configs/k_osc.py")
    check_config(config)
    if reason := why_no_torch(config):
        print(f"{reason}: these are our figures alone", file=sys.stderr, flush=True)
    model, steps = RandomModel.create(config), math.ceil(flags.FLAGS.steps / ROUNDS)
    results, size = model.report(), config.data.batch_size
    coupled = config.model.kind == "flow" and config.flow.coupling
    batches = KOscBatches(
        KOscTask.from_config(config), coupled=coupled, local_rows=range(size), steps=config.train.steps
    )
    with prefetch(batches, workers=0) as stream:
        ours = JaxLoop(model, batches, stream)
        sides: dict[str, Callable[[int], Figures]] = {"JAX": ours}
        if not reason:
            sides["PyTorch"] = TorchLoop(config, results.setting["parameters"])
        rounds = [{name: side(steps) for name, side in sides.items()} for _ in range(1 + ROUNDS)][1:]
    for name in sides:
        parts = {part: statistics.median(block[name][part] for block in rounds) for part in rounds[0][name]}
        step, cpu = parts.pop("step"), parts.pop("cpu")
        results.add(model.limits.row(name, step, size, ours.step.program) | {"cpu_ms": 1e3 * cpu})
        for part, seconds in parts.items():
            results.add(dict.fromkeys(results.rows[0]) | {"name": f"{name}, {part}", "median_ms": 1e3 * seconds})
    results.setting |= {"model": config.model.kind, "oscillators": config.k_osc.oscillators}
    results.setting |= ratios([{name: block[name]["step"] for name in sides} for block in rounds])
    return results


def why_no_torch(config: Any) -> str | None:
    """Returns in one line why PyTorch cannot be measured beside this config; None if it can."""
    if torch_models is None:
        return "PyTorch is not installed (pip install torch)"
    if jax.default_backend() != "cpu":
        return "PyTorch is measured on CPUs only (JAX_PLATFORMS=cpu)"
    missing = lacking(config, TORCH_HAS[config.model.kind] | TORCH_ALWAYS)
    return missing and f"the PyTorch loop has only {missing}"


class JaxLoop:
    """Training as ``synthjax.train`` runs it; a call makes a number of steps and returns the mean time of one."""

    def __init__(self, model: RandomModel, batches: KOscBatches, stream: Iterator[HostBatch]) -> None:
        self._batches, self._stream, self._done = batches, stream, 0
        self._placement = sharding.batch_sharding(model.mesh)
        self.step = TrainStep(model)
        self._make_data = jax.jit(lambda number: model.trainer.task.examples({}, None, number))

    def __call__(self, steps: int) -> Figures:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            metrics = self.step.advance(sharding.place(next(self._stream), self._placement))
        require_finite(float(metrics["loss"]))
        step, cpu = (time.perf_counter() - started) / steps, (time.process_time() - cpu) / steps
        numbers = range(self._done, self._done + steps)
        self._done += steps
        data, pairing = (mean_seconds(part, numbers) for part in (self._make_data, self._batches.__getitem__))
        return {"step": step, "cpu": cpu, "data alone": data, "pairing alone": pairing}


def mean_seconds(part: Callable[[int], Any], numbers: range) -> float:
    """Returns the mean seconds of a part of the steps with these numbers, one after the other."""
    started = time.perf_counter()
    for number in numbers:
        jax.block_until_ready(part(number))
    return (time.perf_counter() - started) / len(numbers)


class TorchLoop:
    """The same training in eager PyTorch; a call makes a number of steps and returns the mean time of one."""

    def __init__(self, config: Any, parameters: int) -> None:
        torch_models.prepare(config.seed)
        self._config, self._width, model = config, 3 * config.k_osc.oscillators, config.model
        nn, hidden = torch_models.torch.nn, model.encoder.dim
        encoder = torch_models.SpectralEncoder(model.encoder, SAMPLES)
        if model.kind == "flow":
            head = torch_models.Field(model.field, self._width, hidden)
        else:
            sizes = [hidden] * (model.trunk_blocks - 1) + [self._width]
            head = nn.Sequential(*(torch_models.mlp_block(hidden, size, size) for size in sizes))
        self._network = nn.ModuleList([encoder, head])
        self._train = torch_models.Training(config, self._network)
        if self._train.parameters != parameters:
            raise UserError("the PyTorch loop has another network than this config: nothing can be compared")

    def __call__(self, steps: int) -> Figures:
        torch, config = torch_models.torch, self._config
        parts, cpu = np.zeros(3), time.process_time()
        for _ in range(steps):
            times = [time.perf_counter()]
            rows = 2.0 * torch.rand(config.data.batch_size, self._width) - 1.0
            noise, signal = torch.randn_like(rows), synthesise(rows, config.k_osc)
            times.append(time.perf_counter())
            if config.model.kind == "flow" and config.flow.coupling:
                order = pair(noise, rows)
                rows, signal = rows[order], signal[order]
            times.append(time.perf_counter())
            require_finite(self._train(self._loss(signal, noise, rows)))
            times.append(time.perf_counter())
            parts += np.diff(times) / steps
        step, cpu = float(parts.sum()), (time.process_time() - cpu) / steps
        return {"step": step, "cpu": cpu, **dict(zip(("data", "pairing", "network"), parts.tolist(), strict=True))}

    def _loss(self, signal: Any, noise: Any, rows: Any) -> Any:
        encoder, head = self._network
        if self._config.model.kind == "flow":
            return torch_models.flow_loss(encoder, head, self._config.flow, signal, noise, rows)
        return (head(encoder(signal)[:, 0]) - rows).square().mean()


def synthesise(rows: Any, task: Any) -> Any:
    """Returns signals (B, S) of rows (B, 3K), by the formulas of ``synthjax.k_osc.synthesis`` for all oscillators."""
    torch = torch_models.torch
    frequency, amplitude, wave = rows.clamp(-1.0, 1.0)[..., None].chunk(3, dim=1)
    place = (frequency + 1.0) / 2.0
    if not task.symmetric:
        place = (torch.arange(task.oscillators)[:, None] + place) / task.oscillators
    low, high = task.frequency_range
    d = (low + (high - low) * place) / SAMPLE_RATE
    phase = (d * torch.arange(SAMPLES)).frac()

    def poly_blep(distance: Any) -> Any:
        """The correction of a step, within one sample on either side of it."""
        near = (1.0 - distance.abs() / d).square()
        return torch.where(distance.abs() < d, torch.where(distance < 0.0, -near, near), 0.0)

    at_0 = poly_blep(torch.where(phase > 0.5, phase - 1.0, phase))
    sine, saw = -torch.sin(2.0 * math.pi * phase), 2.0 * phase - 1.0 + at_0
    square = torch.where(phase > 0.5, 1.0, -1.0) + at_0 - poly_blep(phase - 0.5)
    mixed = (-wave).clamp(min=0.0) * sine + (1.0 - wave.abs()) * square + wave.clamp(min=0.0) * saw
    return ((amplitude + 1.0) / 2.0 * mixed).mean(dim=1)


def pair(noise: Any, rows: Any) -> Any:
    """Returns the number of the data row for each noise row, in groups as large as ours."""
    size, torch = group_rows(len(rows)), torch_models.torch
    costs = map(torch.cdist, noise.split(size), rows.split(size))
    return torch.cat([i * size + torch.from_numpy(linear_sum_assignment(cost)[1]) for i, cost in enumerate(costs)])


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 20, f"Measured steps a side, rounded up to {ROUNDS} blocks.", lower_bound=1)
    report.run(measure, default_config="configs/k_osc.py")
