"""Prints what a training step needs of each device, before machines are bought: memory, arithmetic, network traffic.

    python scripts/compile_memory.py --config=configs/flow_100k.py --devices=8 --config.mesh.fsdp=True

The script compiles the real step for --devices simulated CPU devices and runs nothing. Without --devices it compiles
for the accelerators of this machine. Sizes of weights, optimizer and batch, and FLOPs, are exact on every device.
Temporary memory depends on the compiler. It is larger on simulated devices for two reasons: they hold the scores of
attention, which cuDNN never stores, and they run layers in a loop, which accelerators do not.
With mesh.model above 1, simulated devices also sum three gradients of attention's input over the network, where XLA for
GPUs sums their total. Slices (mesh.slices) are not simulated.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from data_pipeline.audio.contract import MEL_SHAPE
from data_pipeline.console import cli, config_flag
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import MelStats
from synthjax.cluster import sharding
from synthjax.methods.task import KOscTask, SpectrogramTask, Task
from synthjax.models.kernels.platform import as_on_accelerators
from synthjax.training.flops import program_flops
from synthjax.training.trainer import Trainer, TrainState, abstract_state, jit_train_step

DTYPE_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16},
}
COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?P<start>-start)?\("
)


def main(argv: list[str]) -> None:
    """Runs the command."""
    f, config = flags.FLAGS, config_flag.read()
    if f.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", f.devices)
    figures = measure(config)
    for name, value in figures.items():
        print(f"{name:<36} {value:.4g}" if isinstance(value, float) else f"{name:<36} {value}")
    if f.json:
        Path(f.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(config: Any) -> dict[str, Any]:
    """Returns the figures of a config's step on its mesh, per device unless the name says "all"."""
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
    """Returns the task of a config without opening its data set."""
    if config.data.source == "k_osc":
        return KOscTask.from_config(config)
    spec = load_spec(config.data.spec)
    return SpectrogramTask(spec, MEL_SHAPE, config.data.min_std_db)


def step_shapes(
    trainer: Trainer, mesh: jax.sharding.Mesh
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct], MelStats | None]:
    """Returns shapes and placements of the state, the batch and the statistics of a step."""
    state = abstract_state(trainer, trainer.state_shardings(mesh))
    return state, batch_shapes(trainer.config, trainer.task, mesh), stats_shapes(trainer.task, mesh)


def batch_shapes(config: Any, task: Task, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and placements of the arrays that the host sends for a step."""
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
    """Returns shapes of the spectrogram statistics, which every device holds; None for a task without statistics."""
    if isinstance(task, KOscTask):
        return None
    one = jax.ShapeDtypeStruct(task.input_shape, np.float32, sharding=sharding.replicated(mesh))
    return MelStats(one, one)  # type: ignore[arg-type]  # Shapes stand for arrays.


def _per_device(tree: Any) -> int:
    """Returns the bytes that a tree of placed shapes takes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def network_bytes(program: str) -> int:
    """Returns the bytes that the collective operations of one device produce in a call of a compiled program.

    Args:
      program: the program as XLA prints it (``compiled.as_text()``).
    """
    lines, entry = _computations(program)

    @cache
    def count(name: str) -> int:
        return sum(_collective_bytes(line) + _turns(line) * sum(map(count, _called(line))) for line in lines[name])

    return count(entry)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation by its name, and the name of the entry computation."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = header[2]
            lines[name] = []
            entry = name if header[1] else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def _called(line: str) -> list[str]:
    """Returns the computations that an instruction runs. A reduction's to_apply is left out: it moves no data."""
    applied = "|to_apply" if " call(" in line else ""
    names = re.findall(rf"(?:body|calls|true_computation|false_computation{applied})=%([\w.\-]+)", line)
    branches = re.findall(r"branch_computations=\{([^}]*)\}", line)
    return names + re.findall(r"%([\w.\-]+)", " ".join(branches))


def _turns(line: str) -> int:
    """Returns how often an instruction runs what it calls: once, or the trip count of a loop if XLA knows it."""
    trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    return int(trips[1]) if trips else 1


def _collective_bytes(line: str) -> int:
    match = COLLECTIVE.search(line)
    if not match:
        return 0
    result = match["result"]
    # The result of a started operation holds its operands first; all-reduce, which works in place, has none.
    if match["start"] and match["kind"] != "all-reduce" and result.startswith("("):
        result = _tuple_parts(result)[1]
    return _type_bytes(result)


def _type_bytes(types: str) -> int:
    """Returns the bytes of all arrays in a type, such as ``(f32[2,3], bf16[4])``."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(DTYPE_BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays)


def _tuple_parts(types: str) -> list[str]:
    """Returns the types that a tuple's type is made of."""
    parts, depth = [""], 0
    for character in types[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_integer("devices", None, "Number of devices to simulate on the CPU.", lower_bound=1)
    flags.DEFINE_string("json", None, "File to write the figures to, as JSON.")
    cli.run(main)
