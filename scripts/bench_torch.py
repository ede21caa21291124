"""Measures training and sampling beside the same model in PyTorch: python scripts/bench_torch.py --json=FILE

    python scripts/bench_torch.py --config.data.batch_size=16 --config.compute_dtype=float32

The parts, each called in turns with PyTorch's, are the train step, and of sampling the encoder and one evaluation of
the vector field, without guidance. Both sides have the base flow (spectrogram transformer, Param2Tok, transformer
field) and train it with Adam and clipping on one batch of random numbers, on one device. PyTorch runs eagerly on CPUs
and compiled on GPUs, with its own fused attention, and below float32 by autocast. It is no requirement of the project:
pip install torch. Where other programs run too, its threads are told to sleep while they wait (OMP_WAIT_POLICY), as
scripts/bench_k_osc.py explains. Our step also averages the weights and takes the gradient norm of every module.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Leaves PyTorch its part of an accelerator.

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from bench_report import Report
from bench_step import Stepper, flat_stats, random_batch
from beside_torch import comparison, lacking, torch
from compile_memory import task_of
from roofline import Program, compile_program, device_row, measure_limits

from data_pipeline import cli, config_flag
from data_pipeline.cores import usable_cores
from synthjax import sharding
from synthjax.models.encoders import padding_to_patches
from synthjax.train_step import Trainer, jit_init, jit_train_step

# What the network here is written for.
WRITTEN_FOR = {
    "model.kind": "flow",
    "model.encoder.kind": "ast",
    "model.encoder.swapped_padding": False,
    "model.field.kind": "transformer",
    "model.field.projection": "param2tok",
    "optim.name": "adam",
    "train.accumulate": 1,
}


def main(argv: list[str]) -> None:
    """The command."""
    f, config = flags.FLAGS, config_flag.read()
    if torch is None:
        raise cli.UserError("PyTorch is not installed here: pip install torch")
    if jax.device_count() > 1:
        raise cli.UserError(f"one device is compared with one, and there are {jax.device_count()}")
    if missing := lacking(config, WRITTEN_FOR):
        raise cli.UserError(f"the PyTorch side has only {missing}")
    measure(config, f.steps).tell(f.json)


def measure(config: Any, steps: int) -> Report:
    """One unmeasured call of each part and side, and ``steps`` measured ones, in turns."""
    report, limits = Report(), measure_limits(config.compute_dtype)
    mesh, task = sharding.make_mesh(config.mesh), task_of(config)
    trainer = Trainer.create(config, task)
    shardings = trainer.state_shardings(mesh)
    inputs = random_batch(config, task, mesh), flat_stats(task, mesh)
    state = jit_init(trainer, shardings)()
    theirs = TorchStepper(config, task.width, task.input_shape)
    if theirs.parameters != trainer.parameter_count():
        raise cli.UserError(f"PyTorch has {theirs.parameters} parameters and we {trainer.parameter_count()}")
    report.setting |= limits.figures | {
        "batch_size": config.data.batch_size,
        "compute_dtype": config.compute_dtype,
        "parameters": theirs.parameters,
    }

    def compare(part: str, program: Program, ours: Callable[[], Any], other: Callable[[], Any]) -> None:
        sides = {"JAX": ours, "PyTorch": other}
        rounds = [{side: _seconds(call) for side, call in sides.items()} for _ in range(1 + steps)][1:]
        for side in sides:
            seconds = statistics.median(one[side] for one in rounds)
            row = device_row(f"{part}, {side}", seconds, config.data.batch_size, program.flop, program.moved, limits)
            report.add(row)
        report.setting |= comparison([one["PyTorch"] / one["JAX"] for one in rounds], part)

    for (part, program, arguments), other in zip(_sampling(trainer, task, state), theirs.sampling(), strict=True):
        compare(part, program, partial(program.call, *arguments), other)
    program = compile_program(jit_train_step(trainer, mesh, shardings), state, *inputs)
    ours = Stepper(program, state, *inputs)
    compare("train step", program, ours, theirs)
    if not np.isfinite([ours.loss, theirs.loss]).all():
        raise cli.UserError("a loss is not finite: these figures would mean nothing")
    return report


def _sampling(trainer: Trainer, task: Any, state: Any) -> Iterator[tuple[str, Program, tuple[Any, ...]]]:
    """Name, program and arguments of the encoder and of the vector field."""
    rows = trainer.config.data.batch_size
    mel, x = jnp.zeros((rows, *task.input_shape)), jnp.zeros((rows, task.width))
    encode = jax.jit(lambda params, mel: trainer.model(params).encode(mel))
    encoder = compile_program(encode, state.params, mel)
    yield "encoder", encoder, (state.params, mel)
    evaluate = jax.jit(lambda params, x, t, z: trainer.model(params).velocity(x, t, z))
    arguments = state.params, x, jnp.full((rows, 1), 0.5), encoder.call(state.params, mel)
    yield "field", compile_program(evaluate, *arguments), arguments


def _seconds(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - started


class TorchStepper:
    """The network on one random batch; a call makes a training step, and returns when it is done."""

    def __init__(self, config: Any, width: int, spectrogram: tuple[int, ...]) -> None:
        torch.set_num_threads(usable_cores())
        torch.manual_seed(config.seed)
        self._device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        self._dtype, self._flow, self._clip = getattr(torch, config.compute_dtype), config.flow, config.optim.clip_norm
        network = make_network(config.model, width, spectrogram).to(self._device)
        self._weights = list(network.parameters())
        self.parameters = sum(weight.numel() for weight in self._weights)
        optim = config.optim
        self._optimizer = torch.optim.Adam(self._weights, lr=optim.lr, betas=(optim.b1, optim.b2), eps=optim.eps)
        self._loss = self._compiled(self._loss_of)
        self._network = network
        shape = config.data.batch_size, width
        self._batch = [torch.randn(values, device=self._device) for values in ((shape[0], *spectrogram), shape, shape)]
        self.loss = np.nan

    def __call__(self) -> None:
        self._optimizer.zero_grad()
        loss = self._loss(*self._batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, self._clip)
        self._optimizer.step()
        self.loss = loss.item()

    def sampling(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Calls of the encoder and of the vector field, each of which returns when it is done."""
        mel, x, _ = self._batch
        with torch.inference_mode(), self._autocast():
            z = self._network.encode(mel)
        t = torch.full((len(x), 1), 0.5, device=self._device)
        encode, evaluate = (self._compiled(call) for call in (self._network.encode, self._network.velocity))

        def run(call: Callable[..., Any], *arguments: Any) -> None:
            with torch.inference_mode(), self._autocast():
                call(*arguments).sum().item()  # Waits for the device.

        return partial(run, encode, mel), partial(run, evaluate, x, t, z)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self._device == "cpu" else torch.compile(function, mode="max-autotune")

    def _autocast(self) -> Any:
        return torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32)

    def _loss_of(self, mel: Any, x0: Any, x1: Any) -> Any:
        with self._autocast():
            t = torch.rand(len(x0), 1, device=x0.device)
            dropped = torch.rand(len(x0), 1, 1, device=x0.device) < self._flow.guidance_dropout
            z = torch.where(dropped, self._network.dropout_token, self._network.encode(mel))
            velocity = self._network.velocity((1.0 - t) * x0 + t * x1, t, z)
        penalty = self._network.assignment.abs().mean()
        return (velocity.float() - (x1 - x0)).square().mean() + self._flow.projection_penalty * penalty


def make_network(model: Any, width: int, spectrogram: tuple[int, ...]) -> Any:
    """The base flow; its layers are as ``synthjax.models`` documents them."""
    nn, functional = torch.nn, torch.nn.functional
    base: Any = nn.Module
    encoder, field = model.encoder, model.field

    def feed_forward(inputs: int, hidden: int, outputs: int) -> Any:
        return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    class Attention(base):
        def __init__(self, dim: int, heads: int) -> None:
            super().__init__()
            self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

        def forward(self, x: Any) -> Any:
            query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            return self.out(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    class Layer(base):
        def __init__(self, dim: int, heads: int, hidden: int, *, modulated: bool) -> None:
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
            self.norm2, self.ff = nn.LayerNorm(dim), feed_forward(dim, hidden, dim)
            self.modulation = nn.Sequential(nn.GELU(), nn.Linear(dim, 6 * dim)) if modulated else None

        def forward(self, x: Any, c: Any = None) -> Any:
            if self.modulation is None:
                x = x + self.attention(self.norm1(x))
                return x + self.ff(self.norm2(x))
            g1, b1, a1, g2, b2, a2 = self.modulation(c)[:, None].chunk(6, dim=-1)
            x = x + a1 * self.attention(g1 * self.norm1(x) + b1)
            return x + a2 * self.ff(g2 * self.norm2(x) + b2)

    class Network(base):
        def __init__(self) -> None:
            super().__init__()
            channels, *plane = spectrogram
            axes = list(zip(plane, encoder.patch, encoder.stride, strict=True))
            pads = [padding_to_patches(*axis) for axis in axes]
            self.padding = (0, pads[1], 0, pads[0])
            count = [(size + pad - patch) // stride + 1 for (size, patch, stride), pad in zip(axes, pads, strict=True)]
            dim = encoder.dim
            self.patches = nn.Conv2d(channels, dim, encoder.patch, encoder.stride)
            self.queries = nn.Parameter(1e-6 * torch.randn(field.layers, dim))
            self.positions = nn.Parameter(0.02 * torch.randn(field.layers + count[0] * count[1], dim))
            self.encoder = nn.ModuleList(Layer(dim, encoder.heads, dim, modulated=False) for _ in range(encoder.layers))
            self.out = nn.Linear(dim, dim)
            self.dropout_token = nn.Parameter(torch.randn(dim))
            self.conditioning = feed_forward(dim + field.time_features, field.dim, field.dim)
            self.field = nn.ModuleList(
                Layer(field.dim, field.heads, field.ff_dim, modulated=True) for _ in range(field.layers)
            )
            self.up = feed_forward(field.dim, field.dim, field.dim)
            shared = torch.randn(field.dim) / field.dim**0.5
            self.assignment = nn.Parameter(torch.full((field.tokens, width), (field.tokens * width) ** -0.5))
            self.embedding = nn.Parameter(shared.repeat(width, 1))
            self.unembedding = nn.Parameter(shared.repeat(width, 1))

        def encode(self, mel: Any) -> Any:
            patches = self.patches(functional.pad(mel, self.padding)).flatten(2).transpose(1, 2)
            x = torch.cat([self.queries.expand(len(mel), -1, -1), patches], dim=1) + self.positions
            for layer in self.encoder:
                x = layer(x)
            return self.out(x[:, : len(self.queries)])

        def velocity(self, x: Any, t: Any, z: Any) -> Any:
            half = field.time_features // 2
            angle = t * 10_000.0 ** (-torch.arange(half, device=x.device) / half)
            time_encoding = torch.cat([angle.cos(), angle.sin()], dim=-1)[:, None].expand(-1, z.shape[1], -1)
            conditioning = self.conditioning(torch.cat([z, time_encoding], dim=-1))
            tokens = self.assignment @ self.up(x[..., None] * self.embedding)
            for layer, c in zip(self.field, conditioning.unbind(1), strict=True):
                tokens = layer(tokens, c)
            return ((self.assignment.T @ tokens) * self.unembedding).sum(dim=-1)

    return Network()


if __name__ == "__main__":
    config_flag.define(default="configs/important.py")
    flags.DEFINE_integer("steps", 5, "Measured steps of each side.", lower_bound=1)
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
