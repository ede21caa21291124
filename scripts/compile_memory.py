"""Tells what a training step needs before anything is bought: memory, arithmetic and network traffic per device.

    python scripts/compile_memory.py --config=configs/flow_100k.py --devices=8 --config.mesh.fsdp=True

Compiles the real step for --devices simulated CPU devices and runs nothing; without --devices, for the accelerators
here. Weights, optimizer, batch and FLOPs are exact wherever they are compiled; temporary memory is what this compiler
needs, and another one's may differ: simulated devices hold the scores of attention, which cuDNN's never does, and have
layers in a loop, which accelerators do not. With mesh.model above 1 they also add up three gradients of attention's
input over the network, where XLA for GPUs adds up their sum. Slices are not simulated.

scripts/gpu_kernels.py --devices=8 tells what GPUs need that are not here, where their compiler is installed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from hlo_network import network_bytes

from data_pipeline import cli, config_flag
from data_pipeline.param_spec import load_spec
from data_pipeline.shards import MEL_SPEC, row_shapes
from data_pipeline.stats import MelStats
from synthjax import sharding
from synthjax.flops import program_flops
from synthjax.k_osc_task import KOscTask
from synthjax.models.platform import as_on_accelerators
from synthjax.tasks import SpectrogramTask, Task
from synthjax.train_step import Trainer, TrainState, abstract_state, jit_train_step


def main(argv: list[str]) -> None:
    """The command."""
    f = flags.FLAGS
    config = config_flag.read()
    if f.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", f.devices)
    figures = measure(config)
    for name, value in figures.items():
        print(f"{name:<36} {value:.4g}" if isinstance(value, float) else f"{name:<36} {value}")
    if f.json:
        Path(f.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(config: Any) -> dict[str, Any]:
    """Compiles the step of a config on its mesh; figures are per device unless their name says otherwise."""
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.data.batch_size, mesh, config.train.accumulate)
    trainer = Trainer.create(config, task_of(config))
    state, batch, stats = arguments = step_shapes(trainer, mesh)
    with as_on_accelerators(layers=False):
        traced = jit_train_step(trainer, mesh, trainer.state_shardings(mesh)).trace(*arguments)
    compiled = traced.lower().compile()
    memory, gflop = compiled.memory_analysis(), program_flops(traced) / 1e9
    return {
        "mesh": sharding.shape_of(mesh),
        "device": jax.devices()[0].device_kind,
        "parameters, all": trainer.parameter_count(),
        "weights, optimizer, average in MB": _per_device(state) / 1e6,
        "batch in MB": _per_device((batch, stats)) / 1e6,
        "temporary memory in MB": memory.temp_size_in_bytes / 1e6,
        "memory in MB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6,
        "GFLOP a step": gflop / mesh.size,
        "GFLOP a sample": gflop / config.data.batch_size,
        "network MB a step": network_bytes(compiled.as_text()) / 1e6,
        "checkpoint in MB, all": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / 1e6,
    }


def task_of(config: Any) -> Task:
    """What a config's model is trained on, told without its data."""
    if config.data.source == "k_osc":
        return KOscTask.from_config(config)
    spec = load_spec(config.data.spec)
    return SpectrogramTask(spec, row_shapes(spec.width)[MEL_SPEC], config.data.min_std_db)


def step_shapes(
    trainer: Trainer, mesh: jax.sharding.Mesh
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct], MelStats | None]:
    """State, batch and statistics of a step, and where they are placed."""
    state = abstract_state(trainer, trainer.state_shardings(mesh))
    return state, batch_shapes(trainer.config, trainer.task, mesh), stats_shapes(trainer.task, mesh)


def batch_shapes(config: Any, task: Task, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What the host sends for a step, and where it is placed."""
    rows = config.data.batch_size
    shapes: dict[str, tuple[tuple[int, ...], Any]]
    if isinstance(task, KOscTask):
        coupled = config.model.kind == "flow" and config.flow.coupling
        shapes = {"order": ((rows,), np.int32)} if coupled else {}
    else:
        row = (rows, task.width)
        shapes = {
            "mel_spec": ((rows, *task.input_shape), np.float16),
            "x1": (row, np.float32),
            "x0": (row, np.float32),
        }
    placed = sharding.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=placed) for name, (shape, dtype) in shapes.items()}


def stats_shapes(task: Task, mesh: jax.sharding.Mesh) -> MelStats | None:
    """Mean and deviation of spectrograms, on every device."""
    if isinstance(task, KOscTask):
        return None
    one = jax.ShapeDtypeStruct(task.input_shape, np.float32, sharding=sharding.replicated(mesh))
    return MelStats(one, one)  # type: ignore[arg-type]  # Shapes stand for arrays.


def _per_device(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_integer("devices", None, "Simulate so many devices on the CPU.", lower_bound=1)
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
