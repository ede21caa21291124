"""Spectrograms that stay in the devices' memory: the host sends row numbers, and no spectrogram after the first fill.

Shapes: N rows of the split, P devices along the mesh's data axis, B batch of one slice, C channels, M mels, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from data_pipeline.cached_reader import SHARE_OF_CACHE, TooLarge, shown_blocks, size_of
from data_pipeline.host_memory import available_memory
from data_pipeline.meter import data_size
from data_pipeline.shards import MEL_SPEC, ShardReader
from synthjax import sharding


class DeviceCache:
    """All spectrograms of a split in the type in which they are stored: N/P on each device, one copy in every slice.

    Every step moves the spectrograms of its batch between the devices of a slice, and needs room for B of them on each:
    made for one host, or a few with a fast network.

    Raises:
      TooLarge: if they do not fit into the memory that the devices have left.
    """

    def __init__(self, reader: ShardReader, mesh: Mesh) -> None:
        self._mesh, self._batch_placement = mesh, sharding.batch_sharding(mesh)
        placement, parts = NamedSharding(mesh, PartitionSpec(sharding.DATA)), mesh.shape[sharding.DATA]
        shape = (-(-len(reader) // parts) * parts, *reader.row_shape(MEL_SPEC))  # Rows of zeros fill the last part.
        _check_memory(reader, shape[0] // parts)
        self._rows = jax.block_until_ready(_fill(reader, shape, placement))
        self._take = jax.jit(self._taken, out_shardings=self._batch_placement)

    def fetch(self, rows: Int[Array, " B"]) -> Float[Array, "B C M F"]:
        """The spectrograms of the rows so numbered, both split like every batch."""
        return self._take(self._rows, rows)

    def _taken(self, cache: Array, rows: Array) -> Array:
        batch = self._batch_placement.spec
        specs = PartitionSpec(sharding.DATA), batch
        return jax.shard_map(_take_part, mesh=self._mesh, in_specs=specs, out_specs=batch)(cache, rows)


def _take_part(cache: Float[Array, "N/P C M F"], rows: Int[Array, " B/P"]) -> Float[Array, "B/P C M F"]:
    """On one device: each finds those of its slice's rows that it holds, and gets those of its own part of the batch.

    What the devices found is added up. As all but one found zeros, sums of the numbers' bits are the numbers, bit for
    bit: -0.0 plus 0.0 would be 0.0.
    """
    wanted = jax.lax.all_gather(rows, sharding.DATA, tiled=True) - jax.lax.axis_index(sharding.DATA) * cache.shape[0]
    here = (wanted >= 0) & (wanted < cache.shape[0])
    found = jnp.where(here[:, None], _words(cache[jnp.where(here, wanted, 0)]), 0)
    found = jax.lax.psum_scatter(found, sharding.DATA, scatter_dimension=0, tiled=True)
    return jax.lax.bitcast_convert_type(found, cache.dtype).reshape(-1, *cache.shape[1:])


def _words(rows: Array) -> Array:
    """The bits of (n, C, M, F) as (n, words) of 32 bits: sums of fewer are made by GPUs as if they were so many."""
    numbers = 4 // rows.dtype.itemsize
    grouped = rows.reshape(len(rows), -1, numbers) if numbers > 1 else rows.reshape(len(rows), -1)
    return jax.lax.bitcast_convert_type(grouped, jnp.uint32)


def _check_memory(reader: ShardReader, rows: int) -> None:
    """Refuses ``rows`` rows a device where one of this process's devices has no room for them."""
    needed = size_of(reader, MEL_SPEC, rows)
    free = min(map(_free_bytes, jax.local_devices()))
    if needed > SHARE_OF_CACHE * free:
        raise TooLarge(
            f"data.cache=device: the spectrograms of {reader.path} take {data_size(needed)} a device, and "
            f"{data_size(free)} are free, of which it may take three quarters: set --config.data.cache=host, or train "
            "on more devices"
        )


def _free_bytes(device: jax.Device) -> int:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:  # A CPU's devices share the machine's memory.
        return available_memory() // jax.local_device_count()
    return stats["bytes_limit"] - stats["bytes_in_use"]


def _fill(reader: ShardReader, shape: tuple[int, ...], placement: NamedSharding) -> Array:
    """Reads each part that this process's devices hold once, in blocks that are written where they stay."""
    filled: dict[jax.Device, Array] = {}
    for (start, stop), devices in _devices_by_rows(placement, shape).items():
        empty = partial(jnp.zeros, (stop - start, *shape[1:]), reader.dtype(MEL_SPEC))
        parts = {device: empty(device=device) for device in devices}
        there = range(start, min(stop, len(reader)))
        with shown_blocks(reader, MEL_SPEC, there, "reading into the devices' memory") as blocks:
            for first, block in blocks:
                for device in devices:
                    parts[device] = _write(parts[device], jax.device_put(block, device), first - start)
        filled |= parts
    # In the order of the sharding's own devices.
    arrays = [filled[device] for device in placement.addressable_devices_indices_map(shape)]
    return jax.make_array_from_single_device_arrays(shape, placement, arrays)


def _devices_by_rows(placement: NamedSharding, shape: tuple[int, ...]) -> Mapping[tuple[int, int], list[jax.Device]]:
    held: dict[tuple[int, int], list[jax.Device]] = {}
    for device, index in placement.addressable_devices_indices_map(shape).items():
        assert index is not None  # Only of devices elsewhere.
        start, stop, _ = index[0].indices(shape[0])
        held.setdefault((start, stop), []).append(device)
    return held


@partial(jax.jit, donate_argnums=0)
def _write(part: Array, block: Array, first: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(part, block, first, axis=0)
