"""Lists the kernels of a config's train step or sampler on GPUs, heaviest first; no GPU is needed.

    python scripts/gpu_kernels.py --config=configs/important.py [--gpu=h100] [--devices=8] [--program=sample]

Compiles the real program for a mesh of GPUs ahead of time, with JAX's CUDA plugin (requirements-gpu.txt), and runs
nothing. All figures are those of one GPU.
Times are estimates, not measurements: of every kernel max(FLOP / the GPU's peak, bytes / its bandwidth) and a launch.
That is a bound: kernels reach less of both, some of them much less; only what stays in the L2 cache may be faster. It
ranks kernels and compares two variants of a model; ``products_alone_ms``, all FLOPs at the peak, is what would be left
without traffic and launches.

A row of the table stands for all kernels of one kind, shape and place in the code, such as those of unrolled layers:
``ms`` of all their runs, ``mb_read``, ``mb_written`` and ``gflop`` of one. Products are cuBLAS's: on a device, XLA also
times Triton's, which it can join with what is around them. What GPUs send one another counts as copies within one;
``network_mb`` is the size of what these exchanges yield on one of them in a call: rings of n send (n - 1)/n of it, and
twice that to add up.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from bench_report import Report, Row
from compile_memory import step_shapes, task_of
from hlo_kernels import Kernel, list_kernels
from hlo_network import network_bytes
from jax.experimental import topologies
from jax.sharding import Mesh

from data_pipeline import cli, config_flag
from synthjax import sharding
from synthjax.inference import jit_sampler
from synthjax.models.cudnn_attention import kernel_of_nvidia
from synthjax.models.platform import as_on_accelerators
from synthjax.sampling import Sampling
from synthjax.solvers import FIXED_STEPS
from synthjax.train_step import Trainer, jit_train_step

# FLOP/s of a product of large bfloat16 matrices, known of an H200; an H100 SXM has the same cores and clock. Products
# of float32 (in TF32) do half.
PRODUCT_FLOPS = {"h100": 790e12, "h200": 790e12}
# From the end of a kernel to the begin of the next one that is queued.
LAUNCH_SECONDS = 1.5e-6
# As they are sold.
GPUS_OF_HOST = 8
# Triton's products are chosen by timing them, which takes a device.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: its description for XLA (gpus/NAME.txtpb), and what it does at most in a second."""

    description: str
    flops: float
    bandwidth: float

    @classmethod
    def named(cls, name: str, dtype: str) -> Gpu:
        """One of ``PRODUCT_FLOPS``, computing in ``dtype``."""
        description = (Path(__file__).parent / "gpus" / f"{name}.txtpb").read_text(encoding="utf-8")
        (bandwidth,) = re.findall(r"memory_bandwidth: (\d+)", description)
        return cls(description, PRODUCT_FLOPS[name] * 2 / jnp.dtype(dtype).itemsize, float(bandwidth))

    def seconds(self, kernel: Kernel) -> float:
        """The estimate for one run."""
        return max(kernel.flop / self.flops, (kernel.read + kernel.written) / self.bandwidth) + LAUNCH_SECONDS


def main(argv: list[str]) -> None:
    """The command."""
    f, config = flags.FLAGS, config_flag.read()
    # The GPU is only compiled for: one that is here stays free for others, and without one the plugin asks for none.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", f.devices)
    if f.program == "sample":
        _check_sampler(config)
    gpu = Gpu.named(f.gpu, config.compute_dtype)
    mesh = _mesh(gpu, config)
    if f.program == "sample":
        config.data.batch_size = sharding.round_up(config.sampling.batch_size, mesh)
    else:
        sharding.check_batch(config.data.batch_size, mesh, config.train.accumulate)
    trainer = trainer_for_gpu(config)
    compiled: Any = compile_program(trainer, mesh, f.program)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    kernels = list_kernels(text)
    report = Report()
    report.setting = {
        "gpu": mesh.devices.flat[0].device_kind,
        "mesh": sharding.shape_of(mesh),
        "program": f.program,
        "batch_size": config.data.batch_size,
        "compute_dtype": config.compute_dtype,
        "attention": trainer.attention_kernel,
        "jax": version("jax"),
        "peak_tflop_per_second": gpu.flops / 1e12,
        "peak_gb_per_second": gpu.bandwidth / 1e9,
        **totals(kernels, gpu),
        "network_mb": network_bytes(text) / 1e6,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "memory_gb": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9,
    }
    report.rows = rows(kernels, gpu)
    report.tell(f.json, f.top)


def _mesh(gpu: Gpu, config: Any) -> Mesh:
    """The config's mesh, of such GPUs, as many as there are devices here."""
    here = sharding.make_mesh(config.mesh)
    of_host = min(here.size, GPUS_OF_HOST)
    if here.size % of_host:
        raise cli.UserError(f"--devices={here.size}: above {of_host} they come in hosts of {of_host}")
    shape = f"1x{here.size // of_host}x{of_host}"
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=gpu.description, topology=shape)
    except NotImplementedError as error:
        raise cli.UserError(
            "JAX's CUDA plugin, which compiles for GPUs, is not installed here: pip install -r requirements-gpu.txt"
        ) from error
    devices: np.ndarray = np.array(topology.devices).reshape(here.devices.shape)
    return Mesh(devices, here.axis_names, axis_types=here.axis_types)


def trainer_for_gpu(config: Any) -> Trainer:
    """With the attention of a GPU on which cuDNN's works, whatever is here."""
    return Trainer.create(config, task_of(config), kernel_of_nvidia(config.attention, config.compute_dtype))


def compile_program(trainer: Trainer, mesh: Mesh, program: str) -> jax.stages.Compiled:
    """The train step as ``train`` has it, or the sampler as ``evaluate`` and ``predict`` do."""
    state, batch, stats = step_shapes(trainer, mesh)
    with as_on_accelerators():
        if program == "step":
            traced = jit_train_step(trainer, mesh, trainer.state_shardings(mesh)).trace(state, batch, stats)
        else:
            sampler = jit_sampler(trainer, mesh, Sampling.from_config(trainer.config.sampling))
            traced = sampler.trace(state.params, {name: batch[name] for name in ("mel_spec", "x0")}, stats)
        return traced.lower().compile(compiler_options=COMPILER_OPTIONS)


def _check_sampler(config: Any) -> None:
    if config.data.source != "shards":
        raise cli.UserError(f"data.source={config.data.source} is not sampled here: use a config of shards")
    if config.sampling.solver not in FIXED_STEPS:
        raise cli.UserError(
            f"how long sampling.solver={config.sampling.solver} takes depends on the weights: "
            f"use {', '.join(FIXED_STEPS)}"
        )


def totals(kernels: Sequence[Kernel], gpu: Gpu) -> dict[str, Any]:
    """Figures of one call."""
    flop = sum(one.runs * one.flop for one in kernels)
    return {
        "estimated_ms": 1e3 * sum(one.runs * gpu.seconds(one) for one in kernels),
        "products_alone_ms": 1e3 * flop / gpu.flops,
        "kernels": sum(one.runs for one in kernels),
        "gb_through_memory": sum(one.runs * (one.read + one.written) for one in kernels) / 1e9,
        "tflop_of_products": flop / 1e12,
    }


def rows(kernels: Sequence[Kernel], gpu: Gpu) -> list[Row]:
    """One for all kernels that are equal but for how often they run, those first that take longest together."""
    runs: dict[Kernel, int] = defaultdict(int)
    for one in kernels:
        runs[replace(one, runs=1)] += one.runs
    seconds = {one: count * gpu.seconds(one) for one, count in runs.items()}
    everything = sum(seconds.values())
    return [
        {
            "name": f"{one.kind} {one.shape}",
            "runs": runs[one],
            "ms": 1e3 * seconds[one],
            "percent": 100 * seconds[one] / everything,
            "mb_read": one.read / 1e6,
            "mb_written": one.written / 1e6,
            "gflop": one.flop / 1e9,
            "where": one.where,
        }
        for one in sorted(runs, key=lambda one: -seconds[one])
    ]


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_enum("gpu", "h200", sorted(PRODUCT_FLOPS), "The GPU.")
    flags.DEFINE_integer("devices", 1, "How many of them.", lower_bound=1)
    flags.DEFINE_enum("program", "step", ["step", "sample"], "What to compile.")
    flags.DEFINE_integer("top", 30, "Rows of the table; the JSON has all.", lower_bound=1)
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
