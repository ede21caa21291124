"""Device meshes, the placement of parameters and batches on them, and the rules from parameter axes to mesh axes.

The mesh has two axes. ``data`` splits the batch; ``model`` splits attention heads and feed-forward widths (tensor
parallelism). With FSDP (fully sharded data parallelism), ``data`` also splits parameters and optimizer state. Groups of
devices that a slower network connects (slices of a TPU pod, hosts without a fast network) form a third, first axis
``slice``. It splits the batch and never a parameter, so that only gradients cross the slow network, once a step.
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

from data_pipeline.console.cli import UserError

SLICE, DATA, MODEL = "slice", "data", "model"

TENSOR_RULES = {"heads": MODEL, "mlp": MODEL}
FSDP_RULES = TENSOR_RULES | {"embed": DATA}


def make_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """The mesh of a config's ``mesh`` section over all devices; ``data=-1`` fits the number of devices.

    Raises:
      UserError: if the product of the axes is not the number of devices, or the slices do not fit the hardware.
    """
    devices, model, slices = jax.device_count(), config.model, config.slices
    rest = model * slices
    data = devices // rest if config.data == -1 and rest > 0 else config.data
    if min(data, model, slices) < 1 or data * rest != devices:
        several = f"mesh.slices={slices} x " if slices != 1 else ""
        raise UserError(
            f"{several}mesh.data={config.data} x mesh.model={model} does not divide the {devices} devices here: "
            "the product must be the number of devices (mesh.data=-1 chooses the size of that axis)"
        )
    if slices > 1:
        return Mesh(_by_slice(slices, data, model), (SLICE, DATA, MODEL), axis_types=(AxisType.Auto,) * 3)
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def _by_slice(slices: int, data: int, model: int) -> np.ndarray:
    """The devices (slices, data, model), grouped by TPU slice, or by process if there are no slices."""
    found = {getattr(device, "slice_index", None) for device in jax.devices()}
    by_process = len(found) == 1
    try:
        return mesh_utils.create_hybrid_device_mesh((1, data, model), (slices, 1, 1), process_is_granule=by_process)
    except ValueError as error:
        raise UserError(f"mesh.slices={slices} is not how these devices are grouped: {error}") from error


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))


def _batch_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in (SLICE, DATA) if axis in mesh.shape)


def shape_of(mesh: Mesh) -> str:
    """The sizes of a mesh as text, such as ``8 data x 1 model``."""
    return " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())


def round_up(rows: int, mesh: Mesh) -> int:
    """The smallest batch size of at least ``rows`` that the devices can split evenly."""
    parts = batch_parts(mesh)
    return -(-rows // parts) * parts


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises UserError unless the devices can split each of the ``accumulate`` parts of the batch evenly."""
    parts = batch_parts(mesh)
    if batch_size % (parts * accumulate):
        times = f" x train.accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(f"data.batch_size={batch_size} is not a multiple of mesh.data={parts}{times}")


def partition_spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: dict[str, str]
) -> PartitionSpec:
    """The placement of a parameter. An axis stays whole if the size of its mesh axis does not divide it.

    Parameters of stacked layers have a first axis L that ``axes`` does not name; it stays whole.
    """
    names = (None,) * (len(shape) - len(axes)) + tuple(axes)
    spec: list[str | None] = []
    for name, size in zip(names, shape, strict=True):
        mesh_axis = rules.get(name) if name else None
        fits = mesh_axis is not None and mesh_axis not in spec and size % mesh.shape[mesh_axis] == 0
        spec.append(mesh_axis if fits else None)
    return PartitionSpec(*spec)


def parameter_shardings(state: nnx.State, mesh: Mesh, *, fsdp: bool) -> dict:
    """The NamedSharding of every parameter of a model, as a pure tree like ``nnx.to_pure_dict(state)``."""
    rules = FSDP_RULES if fsdp else TENSOR_RULES

    def sharding(variable: nnx.Variable) -> NamedSharding:
        axes = variable.get_metadata().get("axes", ())
        return NamedSharding(mesh, partition_spec(axes, variable.shape, mesh, rules))

    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(sharding, state, is_leaf=is_variable))


def replicated(mesh: Mesh) -> NamedSharding:
    """The placement of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The placement of a batch: its rows are split over the data axis, and over slices if there are any."""
    return NamedSharding(mesh, PartitionSpec(_batch_axes(mesh)))


def micro_batches(rows: Any, count: int, mesh: Mesh) -> Any:
    """Reshapes a tree of (rows, ...) arrays to (count, rows / count, ...). No row moves to another device."""
    parts, placement = batch_parts(mesh), NamedSharding(mesh, PartitionSpec(None, _batch_axes(mesh)))

    def part(array: jax.Array) -> jax.Array:
        by_device = array.reshape(parts, count, -1, *array.shape[1:])
        parted = by_device.swapaxes(0, 1).reshape(count, -1, *array.shape[1:])
        return jax.lax.with_sharding_constraint(parted, placement)

    return jax.tree.map(part, rows)


def rows_of_this_process(sharding: NamedSharding, rows: int) -> range:
    """The rows of a (rows, ...) array that this process has to read: those that its devices hold.

    If the model axis spans processes, several processes hold the same rows.
    """
    indices = sharding.addressable_devices_indices_map((rows,)).values()
    spans = [index[0].indices(rows)[:2] for index in indices if index is not None]
    held = range(min(start for start, _ in spans), max(stop for _, stop in spans))
    if len(held) != len({row for span in spans for row in range(*span)}):
        raise UserError("this mesh gives a process rows of the batch with gaps between them: choose another mesh.model")
    return held


def place(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Puts a host batch, which holds this process's rows, on the devices as global arrays."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def gather(array: jax.Array) -> np.ndarray:
    """The whole array on the host, in every process, even if its parts are on devices of several processes."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
