"""A cache of all spectrograms in the devices' memory: once it is filled, the host sends row numbers only.

Shapes: N rows of the split, P devices along the mesh's data axis, B batch of one slice, C channels, M mels, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from data_pipeline.console.machine import available_memory
from data_pipeline.console.progress import data_size
from data_pipeline.shards.cached_reader import SHARE_OF_CACHE, TooLarge, shown_blocks, size_of
from data_pipeline.shards.reader import MEL_SPEC, ShardReader
from synthjax.cluster import sharding


class DeviceCache:
    """All spectrograms of a split in their stored type: N/P rows on each device, one copy in every slice.

    Every step moves the spectrograms of its batch between the devices of a slice, and needs memory for B spectrograms
    on each device. It suits one host, or a few with a fast network.

    Raises:
      TooLarge: if the spectrograms do not fit into the free memory of the devices.
    """

    def __init__(self, reader: ShardReader, mesh: Mesh) -> None:
        self._mesh, self._batch_placement = mesh, sharding.batch_sharding(mesh)
        placement, parts = NamedSharding(mesh, PartitionSpec(sharding.DATA)), mesh.shape[sharding.DATA]
        shape = (-(-len(reader) // parts) * parts, *reader.row_shape(MEL_SPEC))  # Zeros fill the last part.
        _check_memory(reader, shape[0] // parts)
        self._rows = jax.block_until_ready(_fill(reader, shape, placement))
        self._take = jax.jit(self._taken, out_shardings=self._batch_placement)

    def fetch(self, rows: Int[Array, " B"]) -> Float[Array, "B C M F"]:
        """The spectrograms of ``rows``, placed like every batch."""
        return self._take(self._rows, rows)

    def _taken(self, cache: Array, rows: Array) -> Array:
        batch = self._batch_placement.spec
        specs = PartitionSpec(sharding.DATA), batch
        return jax.shard_map(_take_part, mesh=self._mesh, in_specs=specs, out_specs=batch)(cache, rows)


def _take_part(cache: Float[Array, "N/P C M F"], rows: Int[Array, " B/P"]) -> Float[Array, "B/P C M F"]:
    """On one device: looks up the rows of the slice's batch that this device holds, and returns its part of the batch.

    The devices add up their finds: zeros for rows that they do not hold. They add the bits as integers, which keeps
    every value exact; as floats, -0.0 plus 0.0 would be 0.0.
    """
    wanted = jax.lax.all_gather(rows, sharding.DATA, tiled=True) - jax.lax.axis_index(sharding.DATA) * cache.shape[0]
    here = (wanted >= 0) & (wanted < cache.shape[0])
    found = jnp.where(here[:, None], _words(cache[jnp.where(here, wanted, 0)]), 0)
    found = jax.lax.psum_scatter(found, sharding.DATA, scatter_dimension=0, tiled=True)
    return jax.lax.bitcast_convert_type(found, cache.dtype).reshape(-1, *cache.shape[1:])


def _words(rows: Array) -> Array:
    """The bits of rows (n, C, M, F) as 32-bit words (n, words), the smallest size that GPUs add natively."""
    numbers = 4 // rows.dtype.itemsize
    grouped = rows.reshape(len(rows), -1, numbers) if numbers > 1 else rows.reshape(len(rows), -1)
    return jax.lax.bitcast_convert_type(grouped, jnp.uint32)


def _check_memory(reader: ShardReader, rows: int) -> None:
    """Raises TooLarge if a device of this process has no memory for ``rows`` rows."""
    needed = size_of(reader, MEL_SPEC, rows)
    free = min(map(_free_bytes, jax.local_devices()))
    if needed > SHARE_OF_CACHE * free:
        raise TooLarge(
            f"data.cache=device: the spectrograms of {reader.path} take {data_size(needed)} a device, and "
            f"{data_size(free)} are free, of which the cache may take three quarters: set --config.data.cache=host, or "
            "train on more devices"
        )


def _free_bytes(device: jax.Device) -> int:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:  # CPU devices share the machine's memory.
        return available_memory() // jax.local_device_count()
    return stats["bytes_limit"] - stats["bytes_in_use"]


def _fill(reader: ShardReader, shape: tuple[int, ...], placement: NamedSharding) -> Array:
    """Reads the rows that this process's devices hold, each row once, in blocks, straight into the cache."""
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
    # In the order of the devices in the sharding, as JAX expects.
    arrays = [filled[device] for device in placement.addressable_devices_indices_map(shape)]
    return jax.make_array_from_single_device_arrays(shape, placement, arrays)


def _devices_by_rows(placement: NamedSharding, shape: tuple[int, ...]) -> Mapping[tuple[int, int], list[jax.Device]]:
    held: dict[tuple[int, int], list[jax.Device]] = {}
    for device, index in placement.addressable_devices_indices_map(shape).items():
        assert index is not None  # It is None for devices of other processes only.
        start, stop, _ = index[0].indices(shape[0])
        held.setdefault((start, stop), []).append(device)
    return held


@partial(jax.jit, donate_argnums=0)
def _write(part: Array, block: Array, first: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(part, block, first, axis=0)
