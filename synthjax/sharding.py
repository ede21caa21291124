"""Meshes, and one rule table from the names of parameter axes to mesh axes.

The mesh has two axes: ``data`` splits the batch, ``model`` splits heads and feed-forward widths (tensor
parallelism). With FSDP, parameters and optimizer state are also split over ``data``. Groups of devices that only a
slower network joins (slices of a TPU pod, hosts without a common fast fabric) are a third axis before them, ``slice``:
it splits the batch too and never a parameter, so that gradients alone cross it, once a step.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipeline.cli import UserError

SLICE, DATA, MODEL = "slice", "data", "model"

TENSOR_RULES = {"heads": MODEL, "mlp": MODEL}
FSDP_RULES = TENSOR_RULES | {"embed": DATA}


def make_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """The mesh of a config's ``mesh`` section over all devices; ``data=-1`` takes what the others leave.

    Raises:
      UserError: if the axes do not multiply to the number of devices, or slices are not as the devices are grouped.
    """
    devices, model, slices = jax.device_count(), config.model, config.slices
    rest = model * slices
    data = devices // rest if config.data == -1 and rest > 0 else config.data
    if min(data, model, slices) < 1 or data * rest != devices:
        several = f"mesh.slices={slices} x " if slices != 1 else ""
        raise UserError(
            f"{several}mesh.data={config.data} x mesh.model={model} does not divide the {devices} devices here: "
            "their product must be the number of devices (mesh.data=-1 fits itself)"
        )
    if slices > 1:
        return Mesh(_by_slice(slices, data, model), (SLICE, DATA, MODEL), axis_types=(AxisType.Auto,) * 3)
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def _by_slice(slices: int, data: int, model: int) -> np.ndarray:
    """The devices (slices, data, model), those of a TPU slice or of a process together."""
    told = {getattr(device, "slice_index", None) for device in jax.devices()}
    try:
        return mesh_utils.create_hybrid_device_mesh((1, data, model), (slices, 1, 1), process_is_granule=len(told) == 1)
    except ValueError as error:
        raise UserError(f"mesh.slices={slices} is not how these devices are grouped: {error}") from error


def batch_parts(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))


def _batch_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in (SLICE, DATA) if axis in mesh.shape)


def shape_of(mesh: Mesh) -> str:
    """Such as ``8 data x 1 model``."""
    return " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())


def round_up(rows: int, mesh: Mesh) -> int:
    """The smallest batch of at least ``rows`` rows that divides over the devices."""
    parts = batch_parts(mesh)
    return -(-rows // parts) * parts


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises UserError unless the batch divides over the devices, in each of the parts that one step accumulates."""
    parts = batch_parts(mesh)
    if batch_size % (parts * accumulate):
        times = f" x train.accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(f"data.batch_size={batch_size} is not a multiple of mesh.data={parts}{times}")


def partition_spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: dict[str, str]
) -> PartitionSpec:
    """Where a parameter lives; an axis that its mesh axis does not divide stays whole.

    Stacked layers lead with an L axis that ``axes`` does not name; it is never split.
    """
    names = (None,) * (len(shape) - len(axes)) + tuple(axes)
    spec: list[str | None] = []
    for name, size in zip(names, shape, strict=True):
        mesh_axis = rules.get(name) if name else None
        fits = mesh_axis is not None and mesh_axis not in spec and size % mesh.shape[mesh_axis] == 0
        spec.append(mesh_axis if fits else None)
    return PartitionSpec(*spec)


def parameter_shardings(state: nnx.State, mesh: Mesh, *, fsdp: bool) -> dict:
    """NamedShardings of a model's parameters, as a pure tree like ``nnx.to_pure_dict(state)``."""
    rules = FSDP_RULES if fsdp else TENSOR_RULES

    def sharding(variable: nnx.Variable) -> NamedSharding:
        axes = variable.get_metadata().get("axes", ())
        return NamedSharding(mesh, partition_spec(axes, variable.shape, mesh, rules))

    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(sharding, state, is_leaf=is_variable))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the data axis, and over slices where there are any."""
    return NamedSharding(mesh, PartitionSpec(_batch_axes(mesh)))


def micro_batches(rows: Any, count: int, mesh: Mesh | None) -> Any:
    """A tree of (rows, ...) arrays as (count, rows / count, ...): every device's rows are parted where they are."""
    parts = 1 if mesh is None else batch_parts(mesh)

    def part(array: jax.Array) -> jax.Array:
        by_device = array.reshape(parts, count, -1, *array.shape[1:])
        parted = by_device.swapaxes(0, 1).reshape(count, -1, *array.shape[1:])
        if mesh is None:
            return parted
        return jax.lax.with_sharding_constraint(parted, NamedSharding(mesh, PartitionSpec(None, _batch_axes(mesh))))

    return jax.tree.map(part, rows)


def rows_of_this_process(sharding: NamedSharding, rows: int) -> range:
    """The rows of a (rows, ...) array that this process's devices hold: what it has to read.

    With a model axis across processes several hold the same rows; they are contiguous by the mesh's order.
    """
    indices = sharding.addressable_devices_indices_map((rows,)).values()
    spans = [index[0].indices(rows)[:2] for index in indices if index is not None]
    held = range(min(start for start, _ in spans), max(stop for _, stop in spans))
    if len(held) != len({row for span in spans for row in range(*span)}):
        raise UserError("this mesh gives a process rows of the batch with gaps between them: exchange its axes")
    return held


def place(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """A host batch (this process's rows) as global arrays on the devices."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def gather(array: jax.Array) -> np.ndarray:
    """All of an array that may be spread over processes, on every one of them."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
