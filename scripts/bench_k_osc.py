"""Measures training on the k-osc task beside a plain PyTorch loop: python scripts/bench_k_osc.py [--json=FILE]

    python scripts/bench_k_osc.py --config=configs/k_osc.py:model=param2tok,k=4 --config.data.batch_size=128

Both sides draw the same kind of data and train the same network on the same cores, in blocks of a few steps that take
turns. Ours is driven as synthjax.train does it: data are made inside the step while a thread pairs the next batches;
the table has both parts as measured alone. PyTorch runs eagerly, one part after the other. It is no requirement of the
project: without it, or for a model that the loop here lacks, only our figures are told. FLOPs and bytes are those of
our step, on either side.

Idle cores give the best figures. Where others run too, PyTorch's threads would spin on cores that somebody else needs,
and seem several times as slow as they are: they are told to sleep instead, unless OMP_WAIT_POLICY says otherwise.
cpu_ms, the processor time of all threads, tells the work from the waiting, best on one core (taskset -c 0 python ...).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from bench_report import Report
from beside_torch import comparison, lacking, torch
from roofline import compile_program, device_row, measure_limits
from scipy.optimize import linear_sum_assignment

from data_pipeline import cli, config_flag
from data_pipeline.cores import usable_cores
from synthjax import sharding
from synthjax.coupling import group_rows
from synthjax.data import HostBatch, prefetch
from synthjax.k_osc import SAMPLE_RATE, SAMPLES
from synthjax.tasks import Batch
from synthjax.train import Run, set_up
from synthjax.train_step import jit_init, jit_train_step

ROUNDS = 5
# Seconds of a step, its processor time ("cpu"), and its parts by their names in the table.
Figures = dict[str, float]
# What the PyTorch loop is written for, by the config's model.kind.
TORCH_HAS: dict[str, dict[str, Any]] = {
    "flow": {"model.field.kind": "transformer", "model.field.projection": "param2tok", "model.field.time_features": 1},
    "regression": {"model.loss": "mse"},
}
TORCH_ALWAYS = {"compute_dtype": "float32", "optim.name": "adam", "model.encoder.norm": "batch"}


def main(argv: list[str]) -> None:
    """The command."""
    f, config = flags.FLAGS, config_flag.read()
    if config.data.source != "k_osc":
        raise cli.UserError(f"data.source={config.data.source} is not measured here: use configs/k_osc.py")
    config.train.eval_every = 0
    run, missing = set_up(config), why_no_torch(config)
    if missing:
        print(missing, flush=True)
    measure(run, math.ceil(f.steps / ROUNDS), with_torch=not missing).tell(f.json)


def why_no_torch(config: Any) -> str | None:
    """Why PyTorch cannot be measured beside this config, in one line."""
    if torch is None:
        return "PyTorch is not installed, these are our figures alone; to compare: pip install torch"
    if jax.default_backend() != "cpu":
        return "PyTorch is measured on CPUs only, these are our figures alone; to compare: JAX_PLATFORMS=cpu"
    missing = lacking(config, TORCH_HAS[config.model.kind] | TORCH_ALWAYS)
    return missing and f"the PyTorch loop has only {missing}, these are our figures alone"


def measure(run: Run, steps: int, *, with_torch: bool) -> Report:
    """Medians of ``ROUNDS`` blocks of ``steps`` steps a side in turn, after an unmeasured one."""
    config, report, limits = run.config, Report(), measure_limits(run.config.compute_dtype)
    with prefetch(run.batches, workers=0) as stream:
        ours = JaxLoop(run, stream)
        sides: dict[str, Callable[[int], Figures]] = {"JAX": ours}
        if with_torch:
            sides["PyTorch"] = TorchLoop(config, run.trainer.parameter_count())
        rounds = [{name: side(steps) for name, side in sides.items()} for _ in range(1 + ROUNDS)][1:]
    for name in sides:
        parts = {part: statistics.median(block[name][part] for block in rounds) for part in rounds[0][name]}
        step, cpu = parts.pop("step"), parts.pop("cpu")
        row = device_row(name, step, config.data.batch_size, ours.program.flop, ours.program.moved, limits)
        report.add(row | {"cpu_ms": 1e3 * cpu})
        for part, seconds in parts.items():
            report.add(dict.fromkeys(report.rows[0]) | {"name": f"{name}, {part}", "median_ms": 1e3 * seconds})
    ratios = [block["PyTorch"]["step"] / block["JAX"]["step"] for block in rounds if with_torch]
    report.setting |= limits.figures | {
        "model": config.model.kind,
        "oscillators": config.k_osc.oscillators,
        "batch_size": config.data.batch_size,
        "compute_dtype": config.compute_dtype,
        "parameters": run.trainer.parameter_count(),
        **comparison(ratios),
    }
    return report


def require_finite(loss: float) -> None:
    """Raises UserError for a loss after which steps may well be shorter."""
    if not math.isfinite(loss):
        raise cli.UserError("the loss is not finite: these figures would mean nothing")


class JaxLoop:
    """Training as ``synthjax.train`` drives it; a call makes so many steps and gives the mean time of one."""

    def __init__(self, run: Run, stream: Iterator[HostBatch]) -> None:
        self._run, self._stream, self._done = run, stream, 0
        self._state = jit_init(run.trainer, run.shardings)()
        step = jit_train_step(run.trainer, run.mesh, run.shardings)
        self.program = compile_program(step, self._state, self._place(run.batches[0]), None)
        self._make_data = jax.jit(lambda number: run.trainer.task.examples({}, None, number))

    def __call__(self, steps: int) -> Figures:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._state, metrics = self.program.call(self._state, self._place(next(self._stream)), None)
        require_finite(float(jax.block_until_ready((self._state, metrics))[1]["loss"]))
        step, cpu = (time.perf_counter() - started) / steps, (time.process_time() - cpu) / steps
        numbers = range(self._done, self._done + steps)
        self._done += steps
        data, pairing = (mean_seconds(part, numbers) for part in (self._make_data, self._run.batches.__getitem__))
        return {"step": step, "cpu": cpu, "data alone": data, "pairing alone": pairing}

    def _place(self, batch: HostBatch) -> Batch:
        return sharding.place(batch, sharding.batch_sharding(self._run.mesh))


def mean_seconds(part: Callable[[int], Any], numbers: range) -> float:
    """Of a part of the steps with these numbers, one after the other."""
    started = time.perf_counter()
    for number in numbers:
        jax.block_until_ready(part(number))
    return (time.perf_counter() - started) / len(numbers)


class TorchLoop:
    """The same training in eager PyTorch; a call makes so many steps and gives the mean time of one."""

    def __init__(self, config: Any, parameters: int) -> None:
        torch.set_num_threads(usable_cores())
        torch.manual_seed(config.seed)
        self._config, self._width = config, 3 * config.k_osc.oscillators
        self._network = make_network(config.model, self._width)
        weights, optim = list(self._network.parameters()), config.optim
        if sum(weight.numel() for weight in weights) != parameters:
            raise cli.UserError("the PyTorch loop has another network than this config: nothing can be compared")
        options = {"lr": optim.lr, "betas": (optim.b1, optim.b2), "eps": optim.eps, "weight_decay": optim.weight_decay}
        self._optimizer = torch.optim.Adam(weights, **options)

    def __call__(self, steps: int) -> Figures:
        parts, cpu = np.zeros(3), time.process_time()
        for _ in range(steps):
            times = [time.perf_counter()]
            rows = 2.0 * torch.rand(self._config.data.batch_size, self._width) - 1.0
            noise, signal = torch.randn_like(rows), synthesise(rows, self._config.k_osc)
            times.append(time.perf_counter())
            if self._config.model.kind == "flow" and self._config.flow.coupling:
                order = pair(noise, rows)
                rows, signal = rows[order], signal[order]
            times.append(time.perf_counter())
            self._update(signal, noise, rows)
            times.append(time.perf_counter())
            parts += np.diff(times) / steps
        step, cpu = float(parts.sum()), (time.process_time() - cpu) / steps
        return {"step": step, "cpu": cpu, **dict(zip(("data", "pairing", "network"), parts.tolist(), strict=True))}

    def _update(self, signal: Any, noise: Any, rows: Any) -> None:
        if self._config.model.kind == "flow":
            loss = flow_loss(self._network, self._config.flow, signal, noise, rows)
        else:
            loss = (chain(self._network["trunk"], encode(self._network["encoder"], signal)) - rows).square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._config.optim.clip_norm)
        self._optimizer.step()
        require_finite(loss.item())


def synthesise(rows: Any, task: Any) -> Any:
    """Signals (B, S) of rows (B, 3K), by the formulas of ``synthjax.k_osc`` for all oscillators at once."""
    frequency, amplitude, wave = rows.clamp(-1.0, 1.0)[..., None].chunk(3, dim=1)
    place = (frequency + 1.0) / 2.0
    if not task.symmetric:
        place = (torch.arange(task.oscillators)[:, None] + place) / task.oscillators
    low, high = task.frequency_range
    d = (low + (high - low) * place) / SAMPLE_RATE
    phase = (d * torch.arange(SAMPLES)).frac()
    at_0 = poly_blep(torch.where(phase > 0.5, phase - 1.0, phase), d)
    sine, saw = -torch.sin(2.0 * math.pi * phase), 2.0 * phase - 1.0 + at_0
    square = torch.where(phase > 0.5, 1.0, -1.0) + at_0 - poly_blep(phase - 0.5, d)
    mixed = (-wave).clamp(min=0.0) * sine + (1.0 - wave.abs()) * square + wave.clamp(min=0.0) * saw
    return ((amplitude + 1.0) / 2.0 * mixed).mean(dim=1)


def poly_blep(distance: Any, d: Any) -> Any:
    """What is added within one sample after a step, and taken away within one before it."""
    near = (1.0 - distance.abs() / d).square()
    return torch.where(distance.abs() < d, torch.where(distance < 0.0, -near, near), 0.0)


def pair(noise: Any, rows: Any) -> Any:
    """Which data row goes with each noise row, in groups as large as ours."""
    size = group_rows(len(rows))
    costs = map(torch.cdist, noise.split(size), rows.split(size))
    return torch.cat([i * size + torch.from_numpy(linear_sum_assignment(cost)[1]) for i, cost in enumerate(costs)])


def flow_loss(network: Any, settings: Any, signal: Any, noise: Any, rows: Any) -> Any:
    """Flow matching with guidance dropout, and the penalty on the assignment."""
    field, t = network["field"], torch.rand(len(rows), 1)
    dropped = torch.rand(len(rows), 1) < settings.guidance_dropout
    z = torch.where(dropped, field.cfg_dropout_token, encode(network["encoder"], signal))
    error = velocity(field, (1.0 - t) * noise + t * rows, t, z) - (rows - noise)
    return error.square().mean() + settings.projection_penalty * field["projection"]._assignment.abs().mean()


def velocity(field: Any, x: Any, t: Any, z: Any) -> Any:
    """The transformer vector field between the two sides of Param2Tok."""
    projection, c = field["projection"], field["conditioning_ffn"](torch.cat([z, t], dim=-1))
    embedded = projection["initial_ffn"](x[..., None] * projection._in_projection)
    tokens = torch.einsum("nw,bwd->bnd", projection._assignment, embedded)
    for layer in field["layers"]:
        g1, b1, a1, g2, b2, a2 = layer["cond"](c)[:, None].chunk(6, dim=-1)
        y = g1 * layer["norm1"](tokens) + b1
        tokens = tokens + a1 * layer["attn"](y, y, y, need_weights=False)[0]
        tokens = tokens + a2 * layer["ff"](g2 * layer["norm2"](tokens) + b2)
    return torch.einsum("nw,bnd,dw->bw", projection._assignment, tokens, projection._out_projection)


def encode(encoder: Any, signal: Any) -> Any:
    """The CNN spectral encoder."""
    spectrum = torch.fft.rfft(signal).abs()[:, None] / signal.shape[-1]
    flat, out = encoder["net"]
    return chain([out], flat(chain(encoder["conv_net"], spectrum).flatten(1)))


def chain(blocks: Any, x: Any) -> Any:
    """Blocks one after the other, each with its skip connection, if it has one."""
    for block in blocks:
        y = block["net"](x)
        x = y + block["residual"](x) if "residual" in block else y
    return x


def make_network(model: Any, width: int) -> Any:
    """Encoder and field or trunk; modules and weights have the reference's names, so that its weights can be loaded."""
    nn, encoder = torch.nn, make_encoder(model.encoder)
    if model.kind == "flow":
        return nn.ModuleDict({"encoder": encoder, "field": make_field(model.field, width, model.encoder.dim)})
    hidden = model.encoder.dim
    trunk = [mlp_block(hidden, size, size) for size in [hidden] * (model.trunk_blocks - 1) + [width]]
    return nn.ModuleDict({"encoder": encoder, "trunk": nn.ModuleList(trunk)})


def make_encoder(config: Any) -> Any:
    """Stages of two convolution blocks and a strided convolution, then a Linear and a residual MLP block."""
    nn, blocks, inputs, bins = torch.nn, [], 1, SAMPLES // 2 + 1
    for stage in range(config.stages):
        width = config.channels * 2**stage
        down = nn.Conv1d(width, 2 * width, 6, stride=3, padding=1)
        blocks += [conv_block(inputs, width), conv_block(width, width)]
        blocks.append(nn.ModuleDict({"net": nn.Sequential(nn.BatchNorm1d(width), down, nn.GELU())}))
        inputs, bins = 2 * width, (bins - 4) // 3 + 1
    hidden = SAMPLES // 2
    net = [nn.Linear(bins * inputs, hidden), mlp_block(hidden, hidden, config.dim)]
    return nn.ModuleDict({"conv_net": nn.ModuleList(blocks), "net": nn.ModuleList(net)})


def conv_block(inputs: int, width: int) -> Any:
    """Two convolutions with batch norm; the skip connection is one where channels change."""
    nn = torch.nn
    first = nn.Conv1d(inputs, width, 7, padding=3), nn.GELU(), nn.BatchNorm1d(width)
    net = nn.Sequential(*first, nn.Conv1d(width, width, 1), nn.GELU(), nn.BatchNorm1d(width))
    return nn.ModuleDict({"net": net, "residual": nn.Identity() if inputs == width else nn.Conv1d(inputs, width, 1)})


def mlp_block(inputs: int, hidden: int, outputs: int) -> Any:
    """LayerNorm and two Linears; the skip connection is one where widths differ."""
    nn = torch.nn
    net = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
    residual = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs, bias=False)
    return nn.ModuleDict({"net": net, "residual": residual})


def make_field(config: Any, width: int, conditioning: int) -> Any:
    """Param2Tok, the conditioning MLP and the transformer's layers."""
    nn, dim, tokens = torch.nn, config.dim, config.tokens

    def ff(inputs: int, hidden: int) -> Any:
        return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def layer() -> Any:
        attention, modulation = nn.MultiheadAttention(dim, config.heads, batch_first=True), nn.Linear(dim, 6 * dim)
        parts = {"norm1": nn.LayerNorm(dim), "attn": attention, "norm2": nn.LayerNorm(dim)}
        return nn.ModuleDict({**parts, "ff": ff(dim, config.ff_dim), "cond": nn.Sequential(nn.GELU(), modulation)})

    projection, shared = nn.ModuleDict({"initial_ffn": ff(dim, dim)}), torch.randn(dim) / math.sqrt(dim)
    assignment = torch.full((tokens, width), 1.0 / math.sqrt(tokens * width))
    embedding = shared.repeat(width, 1)
    starts = {"_assignment": assignment, "_in_projection": embedding, "_out_projection": embedding.T.contiguous()}
    for name, start in starts.items():
        projection.register_parameter(name, nn.Parameter(start + config.init_noise * torch.randn(start.shape)))
    parts = {"projection": projection, "conditioning_ffn": ff(conditioning + config.time_features, dim)}
    field = nn.ModuleDict({**parts, "layers": nn.ModuleList([layer() for _ in range(config.layers)])})
    field.register_parameter("cfg_dropout_token", nn.Parameter(torch.randn(1, conditioning)))
    return field


if __name__ == "__main__":
    config_flag.define(default="configs/k_osc.py")
    flags.DEFINE_integer("steps", 20, f"Measured steps a side, rounded up to {ROUNDS} blocks.", lower_bound=1)
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
