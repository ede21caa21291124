"""Meshes, and the placement of parameters and batches on eight CPU devices."""

from __future__ import annotations

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipeline.console.cli import UserError
from synthjax.cluster import sharding
from synthjax.cluster.sharding import FSDP_RULES, TENSOR_RULES, make_mesh, parameter_shardings, partition_spec
from synthjax.models import build_model


def mesh_of(data: int, model: int, slices: int = 1) -> Mesh:
    return make_mesh(ml_collections.ConfigDict({"data": data, "model": model, "slices": slices}))


@pytest.mark.parametrize(
    ("data", "model", "shape"), [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (2, 4, (2, 4)), (1, 8, (1, 8)), (-1, 8, (1, 8))]
)
def test_mesh_covers_all_devices(data: int, model: int, shape: tuple[int, int]) -> None:
    mesh = mesh_of(data, model)
    assert mesh.axis_names == ("data", "model")
    assert mesh.devices.shape == shape
    assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 2


@pytest.mark.parametrize(
    ("data", "model"), [(3, 1), (4, 1), (16, 1), (-1, 3), (-1, 16), (-1, 0), (8, 0), (0, 8), (-2, -4), (-1, -8)]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused_with_both_numbers(data: int, model: int) -> None:
    with pytest.raises(UserError, match=rf"mesh\.data={data} x mesh\.model={model} .* 8 devices"):
        mesh_of(data, model)


def test_slices_must_be_groups_of_devices() -> None:
    """All devices of one process are one group (two processes: tests of multihost training)."""
    with pytest.raises(UserError, match=r"mesh\.slices=2 is not how these devices are grouped"):
        mesh_of(-1, 1, 2)
    with pytest.raises(
        UserError, match=r"mesh\.slices=3 x mesh\.data=-1 x mesh\.model=1 does not divide the 8 devices"
    ):
        mesh_of(-1, 1, 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_micro_batches_hold_every_row_once_and_leave_it_on_its_device(count: int) -> None:
    mesh = mesh_of(4, 2)
    rows = np.arange(48, dtype=np.int32).reshape(24, 2)
    placed = jax.device_put(rows, sharding.batch_sharding(mesh))
    parts = jax.jit(lambda rows: sharding.micro_batches({"x": rows}, count, mesh)["x"])(placed)
    assert parts.shape == (count, 24 // count, 2)
    assert sorted(map(tuple, np.asarray(parts).reshape(24, 2))) == sorted(map(tuple, rows))
    before = {shard.device: set(np.asarray(shard.data)[:, 0]) for shard in placed.addressable_shards}
    after = {shard.device: set(np.asarray(shard.data)[..., 0].ravel()) for shard in parts.addressable_shards}
    assert after == before


def test_batch_must_divide_over_the_parts_that_a_step_accumulates() -> None:
    sharding.check_batch(16, mesh_of(4, 2), 4)
    with pytest.raises(UserError, match=r"batch_size=16 is not a multiple of mesh\.data=4 x train\.accumulate=3"):
        sharding.check_batch(16, mesh_of(4, 2), 3)


def test_batch_must_divide_over_the_data_axis() -> None:
    sharding.check_batch(16, mesh_of(8, 1))
    sharding.check_batch(12, mesh_of(4, 2))
    with pytest.raises(UserError, match=r"data\.batch_size=12 is not a multiple of mesh\.data=8"):
        sharding.check_batch(12, mesh_of(8, 1))


@pytest.mark.parametrize(
    ("axes", "shape", "rules", "expected"),
    [
        (("embed", "mlp"), (16, 32), TENSOR_RULES, (None, "model")),
        (("embed", "mlp"), (16, 32), FSDP_RULES, ("data", "model")),
        (("mlp", "embed"), (32, 16), FSDP_RULES, ("model", "data")),
        # Stacked layers lead with an axis without a name: whole, though 8 layers would divide.
        (("embed", "mlp"), (8, 16, 32), FSDP_RULES, (None, "data", "model")),
        (("embed",), (8, 16), FSDP_RULES, (None, "data")),
        # Axes that 4 x 2 devices do not divide stay whole, and the others are still split.
        (("embed", "mlp"), (18, 32), FSDP_RULES, (None, "model")),
        (("embed", "mlp"), (16, 33), FSDP_RULES, ("data", None)),
        # Heads, and axes without a name.
        (("embed", None, "heads", None), (2, 16, 3, 2, 8), FSDP_RULES, (None, "data", None, "model", None)),
        ((None, "embed"), (16, 16), FSDP_RULES, (None, "data")),
        ((None, "unknown"), (16, 16), FSDP_RULES, (None, None)),
        ((), (16, 16), FSDP_RULES, (None, None)),
        ((), (), FSDP_RULES, ()),
        # One mesh axis splits one axis of an array.
        (("heads", "mlp"), (16, 16), TENSOR_RULES, ("model", None)),
        (("embed", "embed"), (16, 16), FSDP_RULES, ("data", None)),
        (("heads", "mlp"), (15, 16), TENSOR_RULES, (None, "model")),
    ],
)
def test_partition_of_a_parameter(
    axes: tuple[str | None, ...], shape: tuple[int, ...], rules: dict[str, str], expected: tuple[str | None, ...]
) -> None:
    assert tuple(partition_spec(axes, shape, mesh_of(4, 2), rules)) == expected


@pytest.fixture
def abstract(tiny_config: ml_collections.ConfigDict) -> nnx.State:
    make = lambda: build_model(  # noqa: E731
        tiny_config.model, width=92, input_shape=(2, 128, 401), dtype="float32", rngs=nnx.Rngs(0)
    )
    return nnx.state(nnx.eval_shape(make), nnx.Param)


EXPECTED = {
    ("field", "blocks", "ff", "up", "kernel"): P(None, "data", "model"),
    ("field", "blocks", "ff", "down", "kernel"): P(None, "model", "data"),
    ("field", "blocks", "attention", "qkv"): P(None, "data", None, "model", None),
    ("field", "blocks", "attention", "out"): P(None, "model", None, "data"),
    ("field", "blocks", "norm1", "scale"): P(None, None),
    ("field", "projection", "assignment"): P(None, None),
    ("field", "projection", "embed_in"): P(None, "data"),
    ("encoder", "positions"): P(None, "data"),
    ("encoder", "patches", "kernel"): P(None, None, None, "data"),
    ("encoder", "blocks", "attention", "qkv"): P(None, "data", None, "model", None),
}


@pytest.mark.parametrize("fsdp", [True, False])
def test_parameters_of_a_model_are_split_by_the_rules(abstract: nnx.State, fsdp: bool) -> None:
    tree = parameter_shardings(abstract, mesh_of(4, 2), fsdp=fsdp)
    for path, expected in EXPECTED.items():
        node = tree
        for name in path:
            node = node[name]
        wanted = expected if fsdp else P(*(None if axis == "data" else axis for axis in expected))
        assert node.spec == wanted, path


@pytest.mark.parametrize("sizes", [(8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("fsdp", [True, False])
def test_every_parameter_of_a_model_fits_its_placement(abstract: nnx.State, sizes: tuple[int, int], fsdp: bool) -> None:
    shapes = nnx.to_pure_dict(abstract)
    tree = parameter_shardings(abstract, mesh_of(*sizes), fsdp=fsdp)
    assert jax.tree.structure(tree) == jax.tree.structure(shapes)
    jax.tree.map(lambda leaf, placed: placed.shard_shape(leaf.shape), shapes, tree)


def test_fsdp_leaves_a_small_part_of_the_parameters_whole(abstract: nnx.State) -> None:
    tree = parameter_shardings(abstract, mesh_of(8, 1), fsdp=True)
    shapes = nnx.to_pure_dict(abstract)
    pieces = jax.tree.map(lambda leaf, placed: np.prod(placed.shard_shape(leaf.shape)), shapes, tree)
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert sum(jax.tree.leaves(pieces)) < 0.25 * total


def test_one_process_reads_all_rows() -> None:
    for mesh in (mesh_of(8, 1), mesh_of(2, 4)):
        assert sharding.rows_of_this_process(sharding.batch_sharding(mesh), 16) == range(16)


class SomeDevices:
    """A sharding of which this process holds the given pieces."""

    def __init__(self, *pieces: slice) -> None:
        self.pieces = pieces

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> dict[int, tuple[slice, ...]]:
        assert shape == (16,)
        return {device: (piece,) for device, piece in enumerate(self.pieces)}


@pytest.mark.parametrize(
    ("pieces", "rows"),
    [
        ((slice(8, 12), slice(12, 16)), range(8, 16)),
        ((slice(12, 16), slice(8, 12)), range(8, 16)),
        ((slice(4, 8), slice(4, 8)), range(4, 8)),  # A model axis: several devices hold the same rows.
        ((slice(None),), range(16)),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(pieces: tuple[slice, ...], rows: range) -> None:
    assert sharding.rows_of_this_process(SomeDevices(*pieces), 16) == rows


@pytest.mark.parametrize("sizes", [(8, 1), (4, 2)])
def test_batches_are_placed_row_by_row_over_the_data_axis(sizes: tuple[int, int]) -> None:
    mesh = mesh_of(*sizes)
    batch = {"x1": np.arange(48, dtype=np.float32).reshape(16, 3), "valid": np.arange(16) % 3 == 0}
    placed = sharding.place(batch, sharding.batch_sharding(mesh))
    assert placed.keys() == batch.keys()
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        assert array.dtype == batch[name].dtype
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), array.ndim)
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {16 // sizes[0]}


def test_replicated_is_whole_on_every_device() -> None:
    placed = jax.device_put(np.arange(6), sharding.replicated(mesh_of(4, 2)))
    assert len(placed.addressable_shards) == 8
    assert {shard.data.shape for shard in placed.addressable_shards} == {(6,)}
