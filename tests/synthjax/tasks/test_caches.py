"""data.cache: the same batches and runs wherever the spectrograms are kept."""

from __future__ import annotations

from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.cached_reader import CachedReader
from data_pipeline.shards.reader import MEL_SPEC, PARAM_ARRAY, ShardReader
from synthjax.cluster import sharding
from synthjax.configs import important
from synthjax.tasks import device_cache
from synthjax.tasks.batches import open_split
from synthjax.tasks.device_cache import DeviceCache
from synthjax.tasks.shards import ShardTrainingData

BATCH = 8
# data, model, slices
MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "both": (4, 2, 1), "slices": (2, 2, 2)}


@pytest.fixture
def reader(tiny_root: Path) -> ShardReader:
    return open_split(tiny_root, "train", load_spec("surge_simple"))


def make_mesh(name: str) -> jax.sharding.Mesh:
    data, model, slices = MESHES[name]
    axes = {"slice": slices, "data": data, "model": model} if slices > 1 else {"data": data, "model": model}
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(axes),
        devices=jax.devices()[: data * model * slices],
    )


def training_data(root: Path, cache: str) -> ShardTrainingData:
    config: ml_collections.ConfigDict = important.get_config()
    config.data.root, config.data.cache, config.data.batch_size = str(root), cache, BATCH
    return ShardTrainingData(config)


@pytest.mark.parametrize("mesh_name", MESHES)
@pytest.mark.parametrize("cache", ["host", "device"])
def test_every_cache_gives_the_same_batches_bit_for_bit(tiny_root: Path, cache: str, mesh_name: str) -> None:
    mesh = make_mesh(mesh_name)
    placement = sharding.batch_sharding(mesh)
    plain, cached = training_data(tiny_root, "none"), training_data(tiny_root, cache)
    expected_to_batch, to_batch = plain.load(mesh), cached.load(mesh)
    for step in (0, 2, 5):  # 24 rows: the last is of the second epoch.
        expected = expected_to_batch(plain.batches(range(BATCH))[step])
        batch = to_batch(cached.batches(range(BATCH))[step])
        assert batch.keys() == expected.keys()
        for name, rows in expected.items():
            assert batch[name].sharding.is_equivalent_to(placement, rows.ndim)
            assert batch[name].dtype == rows.dtype
            assert np.asarray(batch[name]).tobytes() == np.asarray(rows).tobytes()


def test_the_host_sends_no_spectrogram_where_devices_hold_them(tiny_root: Path) -> None:
    data = training_data(tiny_root, "device")
    batch = data.batches(range(BATCH))[3]
    assert batch.keys() == {"row", "x1", "x0"}
    np.testing.assert_array_equal(batch["row"], data.batches(range(BATCH)).indices(3))


def test_devices_hold_equal_parts_and_no_more(reader: ShardReader) -> None:
    cache = DeviceCache(reader, make_mesh("both"))
    shards = cache._rows.addressable_shards
    assert {shard.data.shape for shard in shards} == {(6, 2, 128, 401)}
    for shard in shards:
        rows = np.arange(24)[shard.index[0]]
        np.testing.assert_array_equal(np.asarray(shard.data), reader.read_rows(MEL_SPEC, rows))


def test_rows_that_do_not_divide_over_the_devices_are_all_there(tiny_root: Path) -> None:
    test = open_split(tiny_root, "test", load_spec("surge_simple"))
    assert len(test) % 8  # Else this shows nothing.
    mesh = make_mesh("data")
    cache = DeviceCache(test, mesh)
    rows = np.r_[np.arange(len(test)), np.arange(16 - len(test))].astype(np.int32)
    fetched = cache.fetch(jax.device_put(rows, sharding.batch_sharding(mesh)))
    np.testing.assert_array_equal(np.asarray(fetched), test.read_rows(MEL_SPEC, rows))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bits_of_numbers_survive_the_way_between_devices(dtype: type[np.floating]) -> None:
    odd = np.array([-0.0, 0.0, np.inf, -np.inf, np.finfo(dtype).smallest_subnormal, -1.5, np.nan, 65504], dtype)
    mesh = make_mesh("data")
    placement = sharding.batch_sharding(mesh)
    held = np.stack([odd[::-1], odd], axis=-1).reshape(8, 2, 1, 1)
    rows = jax.device_put(held, placement)
    order = jax.device_put(np.array([3, 3, 0, 7, 5, 1, 2, 6], np.int32), placement)
    taken = jax.jit(
        jax.shard_map(
            device_cache._take_part,
            mesh=mesh,
            in_specs=placement.spec,
            out_specs=placement.spec,
        )
    )(rows, order)
    assert np.asarray(taken).tobytes() == held[np.asarray(order)].tobytes()


def test_a_cached_reader_reads_once_and_from_memory(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = CachedReader(reader, [MEL_SPEC])
    wanted = [7, 7, 0, 23]
    expected = {name: reader.read_rows(name, wanted) for name in (MEL_SPEC, PARAM_ARRAY)}
    np.testing.assert_array_equal(cached.read_rows(MEL_SPEC, wanted), expected[MEL_SPEC])  # Not loaded yet.
    cached.load()
    asked: list[str] = []
    original = ShardReader.read_rows
    monkeypatch.setattr(
        ShardReader, "read_rows", lambda self, name, rows: asked.append(name) or original(self, name, rows)
    )
    for name, rows in expected.items():
        np.testing.assert_array_equal(cached.read_rows(name, wanted), rows)
    assert asked == [PARAM_ARRAY]
    given = cached.read_rows(MEL_SPEC, wanted)
    given[:] = 0  # A batch is its owner's.
    np.testing.assert_array_equal(cached.read_rows(MEL_SPEC, wanted), expected[MEL_SPEC])


def test_too_little_memory_is_an_error_before_anything_is_read(
    tiny_root: Path, reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardReader, "blocks", lambda *_: pytest.fail("read"))
    needed = 24 * 2 * 128 * 401 * 2
    monkeypatch.setattr("data_pipeline.shards.cached_reader.available_memory", lambda: needed / 0.75 - 2)
    with pytest.raises(UserError, match=r"mel_spec of .* takes 4\.9 MB, and 6\.6 MB of memory are free, .*cache=none"):
        CachedReader(reader, [MEL_SPEC]).load()
    monkeypatch.setattr(device_cache, "_free_bytes", lambda device: needed / 8 / 0.75 - 2)
    with pytest.raises(UserError, match=r"take 615\.9 kB a device, and 821\.2 kB are free, .*cache=host, or train on"):
        DeviceCache(reader, make_mesh("data"))
    monkeypatch.setattr(device_cache, "_free_bytes", lambda device: needed / 8 / 0.75 + 2)
    with pytest.raises(pytest.fail.Exception):
        DeviceCache(reader, make_mesh("data"))


def test_a_devices_own_count_of_its_memory_decides_where_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Accelerator:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 100, "bytes_in_use": 30}

    assert device_cache._free_bytes(Accelerator()) == 70
    monkeypatch.setattr(device_cache, "available_memory", lambda: 800)
    assert device_cache._free_bytes(jax.devices()[0]) == 800 // jax.local_device_count()
