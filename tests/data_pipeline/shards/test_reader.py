"""The shard format, reading in several processes, and what a reader refuses."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import DTypeLike

from data_pipeline.console.cli import UserError
from data_pipeline.shards.reader import ROW_SHAPES, ShardReader, write_shard
from data_pipeline.shards.splits import write_splits
from tests.helpers import REPOSITORY, ROWS, all_rows, attributes, make_rows, write, write_old


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write(tmp_path / "shard-0.h5", make_rows(0, rows=5))


def test_what_is_written_is_read(shard: Path) -> None:
    rows = make_rows(0, rows=5)
    reader = ShardReader(shard)
    assert len(reader) == 5
    assert reader.width == 92
    for name in ROW_SHAPES:
        np.testing.assert_array_equal(all_rows(reader, name), getattr(rows, name))
        assert reader.dtype(name) == getattr(rows, name).dtype


@pytest.mark.parametrize("stored", [">f2", ">f4", "f8", ">f8"])
def test_numbers_of_any_byte_order_and_length_are_read_as_jax_takes_them(tmp_path: Path, stored: str) -> None:
    rows = make_rows(0, rows=5)
    with h5py.File(tmp_path / "shard-0.h5", "w") as file:
        for name in ROW_SHAPES:
            file[name] = getattr(rows, name).astype(stored)
    write_splits(tmp_path, tmp_path / "splits", {"train": [0]})
    native = np.float16 if stored == ">f2" else np.float32
    for path in (tmp_path / "shard-0.h5", tmp_path / "splits" / "train.h5"):
        reader = ShardReader(path)
        for name in ROW_SHAPES:
            expected = getattr(rows, name).astype(stored).astype(native)
            assert reader.dtype(name) == native
            blocks = [block for _, block in reader.blocks(name)]
            for found in (reader.read_rows(name, [0, 2, 3]), reader.read(name, 1), *blocks):
                assert found.dtype == native
                assert found.dtype.isnative
            np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("stored", [np.longdouble, np.complex64, np.int16, "S4"])
def test_what_jax_cannot_take_is_refused(tmp_path: Path, stored: DTypeLike) -> None:
    rows = make_rows(0, rows=2)
    with h5py.File(tmp_path / "shard-0.h5", "w") as file:
        for name in ROW_SHAPES:
            file[name] = getattr(rows, name).astype(stored if name == "mel_spec" else np.float16)
    with pytest.raises(UserError, match=r"a row of mel_spec is .*, not float16, float32 or float64 of shape"):
        ShardReader(tmp_path / "shard-0.h5")


def test_root_attributes_say_what_the_shard_is(shard: Path) -> None:
    assert ShardReader(shard).attrs == {
        **{key: value for key, value in asdict(attributes()).items() if value is not None},
        "writer_version": 1,
        "complete": True,
    }


def test_format_on_disk_is_one_compressed_row_a_chunk(shard: Path) -> None:
    with h5py.File(shard) as file:
        for name in ("audio", "mel_spec"):
            dataset = file[name]
            assert dataset.chunks == (1, *dataset.shape[1:])
            assert dataset.dtype == np.float16
            assert "32026" in dict(dataset._filters)  # Blosc2's registered number.
        assert file["param_array"].dtype == np.float32


def test_old_shards_read_alike(tmp_path: Path, shard: Path) -> None:
    old = ShardReader(write_old(tmp_path / "old.h5", make_rows(0, rows=5)))
    new = ShardReader(shard)
    assert old.attrs == {}
    assert old.dtype("mel_spec") == np.float32
    for name in ROW_SHAPES:
        np.testing.assert_array_equal(all_rows(old, name), all_rows(new, name))


@pytest.mark.parametrize(("name", "width", "rows"), [("surge_simple", 92, 32), ("surge_xt", 300, 24)])
def test_real_shards_read(shared_data: Path, name: str, width: int, rows: int) -> None:
    path = shared_data / name / "shard-1.h5"
    reader = ShardReader(path)
    assert (len(reader), reader.width) == (rows, width)
    with h5py.File(path) as file:
        for dataset in ROW_SHAPES:
            np.testing.assert_array_equal(reader.read(dataset, 7), file[dataset][7])


@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 5], [1, 2, 4], [5, 0, 0, 3], []])
def test_read_rows_crosses_shards_in_any_order(data_set: Path, indices: list[int]) -> None:
    reader = ShardReader(data_set / "train.h5")
    for name in ROW_SHAPES:
        expected = all_rows(reader, name)[indices]
        rows = reader.read_rows(name, np.asarray(indices, np.int64))
        np.testing.assert_array_equal(rows, expected)
        assert rows.dtype == expected.dtype


def test_blocks_cover_every_row_once_within_their_bound(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.shards.reader.BLOCK_BYTES", 3 * 2 * 128 * 401 * 2)
    reader = ShardReader(data_set / "train.h5")
    blocks = list(reader.blocks("mel_spec"))
    assert [start for start, _ in blocks] == [0, 2, 4]  # Blocks end where shards do.
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), all_rows(reader, "mel_spec"))


def test_blocks_take_whole_chunks_of_old_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_old(tmp_path / "old.h5", make_rows(0, rows=9))
    with h5py.File(path) as file:
        chunk_rows = file["mel_spec"].chunks[0]
    assert chunk_rows > 1
    monkeypatch.setattr("data_pipeline.shards.reader.BLOCK_BYTES", 1)
    reader = ShardReader(path)
    assert [start for start, _ in reader.blocks("mel_spec")] == list(range(0, 9, chunk_rows))
    monkeypatch.setattr("data_pipeline.shards.reader.MAX_BLOCK_BYTES", 1)
    assert len(list(reader.blocks("mel_spec"))) == 9


@pytest.mark.parametrize("index", [-1, ROWS * 3])
def test_rows_beyond_the_data_are_an_index_error(data_set: Path, index: int) -> None:
    reader = ShardReader(data_set / "train.h5")
    with pytest.raises(IndexError):
        reader.read("mel_spec", index)
    with pytest.raises(IndexError):
        reader.read_rows("mel_spec", [index])


def test_open_files_never_travel(data_set: Path) -> None:
    reader = ShardReader(data_set / "train.h5")
    row = reader.read("mel_spec", 3)
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read("mel_spec", 3), row)


def test_reader_survives_a_fork(data_set: Path) -> None:
    """In a fresh interpreter: forking this one would fork whatever threads other tests started."""
    script = f"""
import os, sys
import numpy as np
from data_pipeline.shards.reader import ShardReader
reader = ShardReader({str(data_set / "train.h5")!r})
rows = [reader.read("mel_spec", index) for index in range(len(reader))]
opened = reader._opened
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(reader.read("mel_spec", i), rows[i]) for _ in range(20) for i in range(len(rows)))
        os._exit(0 if same and reader._opened[0] == os.getpid() else 1)
    children.append(child)
for _ in range(20):
    assert all(np.array_equal(reader.read("mel_spec", i), rows[i]) for i in range(len(rows)))
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
assert reader._opened is opened
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "shard-0.h5", make_rows(0))
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        write(path, make_rows(1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["mel shape", "rows", "width"])
def test_arrays_that_are_no_shard_are_not_written(tmp_path: Path, fault: str) -> None:
    rows = make_rows(0)
    mel_spec = rows.mel_spec[:, :, :, :400] if fault == "mel shape" else rows.mel_spec
    params = {"rows": rows.param_array[:1], "width": rows.param_array[:, :0]}.get(fault, rows.param_array)
    with pytest.raises(ValueError, match="does not fit"):
        write_shard(tmp_path / "shard-0.h5", rows.audio, mel_spec, params, attributes())
    assert not list(tmp_path.iterdir())


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ShardReader(tmp_path / "shard-0.h5")


def test_truncated_shard_is_refused(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(UserError, match="truncated"):
        ShardReader(shard)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard-0.h5"
    path.write_bytes(b"RIFF" * 1000)
    with pytest.raises(UserError, match="not an HDF5 file"):
        ShardReader(path)
    with pytest.raises(UserError, match="not a file"):
        ShardReader(tmp_path)


def replace(path: Path, name: str, array: np.ndarray | None) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        if array is not None:
            file[name] = array


@pytest.mark.parametrize(
    ("name", "array", "fault"),
    [
        ("mel_spec", None, "has no dataset mel_spec"),
        ("mel_spec", np.zeros((5, 2, 128, 400), np.float16), "mel_spec"),
        ("mel_spec", np.zeros((5, 2, 128, 401), np.int16), "mel_spec"),
        ("mel_spec", np.zeros((4, 2, 128, 401), np.float16), "rows"),
        ("param_array", np.zeros((5,), np.float32), "param_array"),
        ("param_array", np.float32(1), "param_array"),
        ("audio", np.zeros((5, 1, 176400), np.float16), "audio"),
    ],
)
def test_wrong_datasets_are_refused(shard: Path, name: str, array: np.ndarray | None, fault: str) -> None:
    replace(shard, name, array)
    with pytest.raises(UserError, match=fault):
        ShardReader(shard)


def test_a_group_in_a_datasets_place_is_refused(shard: Path) -> None:
    with h5py.File(shard, "r+") as file:
        del file["audio"]
        file.create_group("audio")
    with pytest.raises(UserError, match="audio is not a dataset"):
        ShardReader(shard)


def test_incomplete_shard_is_refused(shard: Path) -> None:
    with h5py.File(shard, "r+") as file:
        file.attrs["complete"] = False
    with pytest.raises(UserError, match="incomplete"):
        ShardReader(shard)


def test_a_damaged_chunk_names_its_row(shard: Path) -> None:
    with h5py.File(shard) as file:
        chunk = file["mel_spec"].id.get_chunk_info(3)
    with shard.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(64))
    reader = ShardReader(shard)
    reader.read("mel_spec", 2)
    with pytest.raises(UserError, match="row 3 of /mel_spec cannot be read"):
        reader.read("mel_spec", 3)
