"""Splits whose shards moved, vanished, or lie where they may not: HDF5 itself would return zeros or read on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.shards.reader import ROW_SHAPES, ShardReader
from data_pipeline.shards.splits import write_splits
from data_pipeline.shards.virtual_sources import VirtualSource, missing_sources, virtual_sources
from tests.helpers import REPOSITORY, ROWS, all_rows, make_rows, write


@pytest.fixture(autouse=True)
def no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX"):
        monkeypatch.delenv(variable, raising=False)


def write_virtual(path: Path, sources: list[tuple[str, int]], **layout_of: Any) -> Path:
    """A split of (stored name, rows) sources; ``layout_of`` replaces the layout of a dataset."""
    rows = sum(count for _, count in sources)
    shapes = {"audio": (2, 176400), "mel_spec": (2, 128, 401), "param_array": (92,)}
    with h5py.File(path, "w") as file:
        for name, shape in shapes.items():
            dtype = np.float32 if name == "param_array" else np.float16
            layout = h5py.VirtualLayout((rows, *shape), dtype)
            start = 0
            for stored, count in sources:
                layout[start : start + count] = h5py.VirtualSource(stored, name, (count, *shape))
                start += count
            file.create_virtual_dataset(name, layout_of.get(name, layout))
    return path


def assert_reads(split: Path, seed: int, rows: int = ROWS) -> None:
    """The split's first rows are those of the shard made from a seed."""
    expected = make_rows(seed).mel_spec[:rows]
    np.testing.assert_array_equal(all_rows(ShardReader(split), "mel_spec")[:rows], expected)


def test_mappings_are_listed_as_stored(data_set: Path) -> None:
    sources = virtual_sources(data_set / "train.h5")
    assert [source for source in sources if source.dataset == "mel_spec"] == [
        VirtualSource("mel_spec", number * ROWS, ROWS, f"../shards/shard-{number}.h5", "mel_spec", 0)
        for number in range(3)
    ]
    assert {source.dataset for source in sources} == set(ROW_SHAPES)
    assert missing_sources(data_set / "train.h5") == []


def test_a_shard_is_no_virtual_file(shards: Path) -> None:
    assert virtual_sources(shards / "shard-0.h5") == []


def test_a_moved_shard_is_refused_though_hdf5_reads_on(data_set: Path, shards: Path) -> None:
    (shards / "shard-1.h5").rename(shards / "moved.h5")
    split = data_set / "train.h5"
    with h5py.File(split) as file:
        assert not np.isfinite(file["param_array"][ROWS]).any()  # What HDF5 makes of it, without a word.
    assert len(missing_sources(split)) == 1
    with pytest.raises(UserError, match=r"shard-1\.h5 is missing"):
        ShardReader(split)


def test_a_shard_that_vanishes_after_opening_is_an_error(data_set: Path, shards: Path) -> None:
    reader = ShardReader(data_set / "train.h5")
    (shards / "shard-1.h5").unlink()
    with pytest.raises(UserError, match=r"shard-1\.h5"):
        reader.read("mel_spec", ROWS)


def test_every_missing_source_has_a_line(data_set: Path, shards: Path) -> None:
    for number in (0, 2):
        (shards / f"shard-{number}.h5").unlink()
    faults = missing_sources(data_set / "train.h5")
    assert [f"shard-{number}.h5" in fault for number, fault in zip((0, 2), faults, strict=True)] == [True, True]
    with pytest.raises(UserError, match="1 more fault"):
        ShardReader(data_set / "train.h5")


def test_a_data_set_moves_as_a_whole(data_set: Path, tmp_path: Path) -> None:
    data_set.parent.rename(tmp_path / "elsewhere")
    assert_reads(tmp_path / "elsewhere" / "splits" / "train.h5", seed=0)


def test_a_data_set_may_be_reached_through_a_symbolic_link(data_set: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "splits").symlink_to(data_set)
    assert_reads(tmp_path / "links" / "splits" / "train.h5", seed=0)


def test_a_relative_path_survives_a_change_of_folder(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data_set)
    reader = ShardReader("train.h5")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(reader.read("mel_spec", 0), make_rows(0).mel_spec[0])


@pytest.mark.parametrize("fault", ["truncated", "no hdf5", "no dataset", "too few rows", "incomplete", "other shape"])
def test_a_source_that_is_not_as_mapped_is_refused(data_set: Path, shards: Path, fault: str) -> None:
    path = shards / "shard-1.h5"
    match fault:
        case "truncated":
            os.truncate(path, path.stat().st_size // 2)
        case "no hdf5":
            path.write_bytes(b"nothing")
        case "no dataset":
            with h5py.File(path, "r+") as file:
                del file["mel_spec"]
        case "too few rows":
            write(path, make_rows(1, rows=ROWS - 1))
        case "incomplete":
            with h5py.File(path, "r+") as file:
                file.attrs["complete"] = False
        case "other shape":
            write(path, make_rows(1, width=93))
    with pytest.raises(UserError, match=r"shard-1\.h5"):
        ShardReader(data_set / "train.h5")
    assert missing_sources(data_set / "train.h5")


def test_a_longer_source_is_read_as_mapped(data_set: Path, shards: Path) -> None:
    write(shards / "shard-0.h5", make_rows(0, rows=ROWS + 3))
    reader = ShardReader(data_set / "train.h5")
    assert len(reader) == 3 * ROWS
    np.testing.assert_array_equal(reader.read("mel_spec", ROWS), make_rows(1).mel_spec[0])


def test_a_mapping_may_start_inside_its_source(shards: Path) -> None:
    layout = h5py.VirtualLayout((1, 2, 128, 401), np.float16)
    layout[0:1] = h5py.VirtualSource("shard-0.h5", "mel_spec", (ROWS, 2, 128, 401))[1:2]
    split = write_virtual(shards / "part.h5", [("shard-0.h5", 1)], mel_spec=layout)
    with h5py.File(split) as file:
        np.testing.assert_array_equal(ShardReader(split).read("mel_spec", 0), file["mel_spec"][0])
    assert virtual_sources(split)[1].source_first_row == 1


def test_rows_of_no_source_are_refused(shards: Path) -> None:
    layout = h5py.VirtualLayout((2 * ROWS, 92), np.float32)
    layout[ROWS:] = h5py.VirtualSource("shard-0.h5", "param_array", (ROWS, 92))
    split = write_virtual(shards / "part.h5", [("shard-0.h5", ROWS)] * 2, param_array=layout)
    with pytest.raises(UserError, match="param_array"):
        ShardReader(split)


def test_a_mapping_of_parts_of_rows_is_refused(shards: Path) -> None:
    layout = h5py.VirtualLayout((ROWS, 92), np.float32)
    layout[:, :46] = h5py.VirtualSource("shard-0.h5", "param_array", (ROWS, 92))[:, :46]
    split = write_virtual(shards / "part.h5", [("shard-0.h5", ROWS)], param_array=layout)
    with pytest.raises(UserError, match="whole rows"):
        ShardReader(split)


def test_a_split_of_a_split_is_refused(data_set: Path) -> None:
    split = write_virtual(data_set / "nested.h5", [("train.h5", ROWS)])
    with pytest.raises(UserError, match="itself virtual"):
        ShardReader(split)


def test_a_file_that_maps_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="itself virtual"):
        ShardReader(write_virtual(tmp_path / "loop.h5", [("loop.h5", 2)]))


def test_a_percent_sign_in_a_name_is_no_format(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "50%b 100%%"
    folder.mkdir(parents=True)
    write(folder / "shard-0.h5", make_rows(0))
    write_splits(folder, tmp_path / "set" / "splits", {"train": [0]})
    assert_reads(tmp_path / "set" / "splits" / "train.h5", seed=0)


def test_backslashes_are_explained(shards: Path) -> None:
    split = write_virtual(shards / "windows.h5", [("..\\shards\\shard-0.h5", ROWS)])
    with pytest.raises(UserError, match="written on Windows"):
        ShardReader(split)


# Where HDF5 looks, and in which order: each case is also read by HDF5 itself, in a process started with the variable.

HDF5_READS = """
import sys, h5py, hdf5plugin
print(h5py.File(sys.argv[1])["param_array"][0, 0])
"""
OURS_READS = """
import sys
from data_pipeline.shards.reader import ShardReader
print(ShardReader(sys.argv[1], allow_external=True).read("param_array", 0)[0])
"""


def read_both_ways(split: Path, cwd: Path, **environment: str) -> tuple[str, str]:
    """The first parameter as HDF5 and as ShardReader read it."""

    def run(script: str) -> str:
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        command = [sys.executable, "-c", script, str(split)]
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=True).stdout

    return run(HDF5_READS), run(OURS_READS)


@pytest.mark.parametrize(
    ("stored", "prefix", "winner"),
    [
        ("shard-0.h5", "", "home"),  # Beside the split.
        ("shard-0.h5", "{a}", "a"),  # The variable comes first,
        ("shard-0.h5", "{none}:{b}:{a}", "b"),  # as a list,
        ("shard-0.h5", "{none}", "home"),  # and falls back.
        ("shard-0.h5", "${{ORIGIN}}/../a", "a"),  # ORIGIN is the split's folder.
        ("shard-0.h5", "${{ORIGIN}}/../none:{b}", "b"),
        ("shard-0.h5", ".", "work"),  # Relative to the working folder.
        ("{none}/shard-0.h5", "{a}", "a"),  # An absolute name that is gone keeps its last part.
        ("{none}/shard-0.h5", "", "home"),
        ("{b}/shard-0.h5", "{a}", "b"),  # An absolute name that is there wins.
        ("only-in-work.h5", "", "work"),  # The working folder is the last resort but one.
    ],
)
def test_sources_are_found_as_hdf5_finds_them(tmp_path: Path, stored: str, prefix: str, winner: str) -> None:
    names = ("home", "a", "b", "work")
    folders = {name: tmp_path / name for name in (*names, "none")}
    for seed, name in enumerate(names):
        folders[name].mkdir()
        rows = make_rows(seed)
        rows.param_array[:] = (seed + 1) / 8
        write(folders[name] / "shard-0.h5", rows)
    shutil.copy(folders["work"] / "shard-0.h5", folders["work"] / "only-in-work.h5")
    split = write_virtual(folders["home"] / "train.h5", [(stored.format(**folders), ROWS)])
    environment = {"HDF5_VDS_PREFIX": prefix.format(**folders)} if prefix else {}
    hdf5, ours = read_both_ways(split, folders["work"], **environment)
    assert float(hdf5) == float(ours) == (names.index(winner) + 1) / 8


def test_a_linked_split_finds_shards_beside_its_real_file(tmp_path: Path) -> None:
    home, links = tmp_path / "home", tmp_path / "links"
    home.mkdir()
    links.mkdir()
    rows = make_rows(0)
    write(home / "shard-0.h5", rows)
    write_virtual(home / "train.h5", [("shard-0.h5", ROWS)])
    (links / "train.h5").symlink_to(home / "train.h5")
    hdf5, ours = read_both_ways(links / "train.h5", tmp_path)
    assert float(hdf5) == float(ours) == pytest.approx(float(rows.param_array[0, 0]))


def test_a_broken_file_is_not_passed_over(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix" / "shard-0.h5").write_text("no HDF5")
    split = write_virtual(data_set / "flat.h5", [("shard-0.h5", ROWS)])
    shutil.copy(data_set.parent / "shards" / "shard-0.h5", data_set)
    assert_reads(split, seed=0)
    monkeypatch.setenv("HDF5_VDS_PREFIX", str(tmp_path / "prefix"))
    with pytest.raises(UserError, match="not an HDF5 file"):
        ShardReader(split)


# What leaves the data set's parent folder.


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "far" / "away"
    folder.mkdir(parents=True)
    return write(folder / "shard-0.h5", make_rows(5))


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    folder = tmp_path / "near" / "set"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("how", ["absolute", "relative", "symbolic link"])
def test_a_source_outside_is_refused(inside: Path, outside: Path, how: str) -> None:
    stored = {"absolute": str(outside), "relative": os.path.relpath(outside, inside)}.get(how, "shard-0.h5")
    if how == "symbolic link":
        (inside / "shard-0.h5").symlink_to(outside)
    split = write_virtual(inside / "train.h5", [(stored, ROWS)])
    with pytest.raises(UserError, match=r"outside .*near: refused without --allow_external"):
        ShardReader(split)
    assert len(missing_sources(split)) == 1
    assert missing_sources(split, allow_external=True) == []
    reader = ShardReader(split, allow_external=True)
    np.testing.assert_array_equal(reader.read("mel_spec", 1), make_rows(5).mel_spec[1])


def test_a_prefix_permits_the_folder_it_names(inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = write_virtual(inside / "train.h5", [("shard-0.h5", ROWS)])
    with pytest.raises(UserError, match="missing"):
        ShardReader(split)
    monkeypatch.setenv("HDF5_VDS_PREFIX", str(outside.parent))
    assert_reads(split, seed=5)
    monkeypatch.setenv("HDF5_VDS_PREFIX", str(inside.parent / "other"))
    (inside.parent / "other").mkdir()
    climbing = write_virtual(inside / "climb.h5", [("../../far/away/shard-0.h5", ROWS)])
    with pytest.raises(UserError, match="outside"):
        ShardReader(climbing)


def test_a_refused_source_is_not_opened(inside: Path, tmp_path: Path) -> None:
    """Opening a named pipe would wait for a writer, for ever."""
    pipe = tmp_path / "pipe.h5"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="missing"):
        ShardReader(write_virtual(inside / "train.h5", [(str(pipe), ROWS)]), allow_external=True)


def test_an_external_link_outside_is_refused(inside: Path, outside: Path) -> None:
    shard = write(inside / "shard-0.h5", make_rows(0))
    with h5py.File(shard, "r+") as file:
        del file["audio"]
        file["audio"] = h5py.ExternalLink(str(outside), "audio")
    with pytest.raises(UserError, match=r"refused without --allow_external"):
        ShardReader(shard)
    reader = ShardReader(shard, allow_external=True)
    np.testing.assert_array_equal(reader.read("audio", 0), make_rows(5).audio[0])


def test_an_external_link_inside_is_followed(inside: Path) -> None:
    shard = write(inside / "shard-0.h5", make_rows(0))
    write(inside / "shard-1.h5", make_rows(1))
    with h5py.File(shard, "r+") as file:
        del file["audio"]
        file["audio"] = h5py.ExternalLink("shard-1.h5", "audio")
    np.testing.assert_array_equal(ShardReader(shard).read("audio", 0), make_rows(1).audio[0])


def test_links_behind_a_source_are_not_followed(inside: Path, outside: Path) -> None:
    """A permitted shard must not lead on to where the split itself may not."""
    shard = write(inside / "shard-0.h5", make_rows(0))
    with h5py.File(shard, "r+") as file:
        del file["audio"]
        file["audio"] = h5py.ExternalLink(str(outside), "audio")
        file["group"] = h5py.ExternalLink(str(outside), "/")
        del file["mel_spec"]
        file["mel_spec"] = h5py.SoftLink("/group/mel_spec")
    split = write_virtual(inside / "train.h5", [("shard-0.h5", ROWS)])
    faults = missing_sources(split)
    assert len(faults) == 2
    assert all("not followed" in fault for fault in faults)


def test_raw_data_in_another_file_is_refused(inside: Path, outside: Path) -> None:
    shard = write(inside / "shard-0.h5", make_rows(0))
    with h5py.File(shard, "r+") as file:
        del file["param_array"]
        raw = [(str(outside), 0, ROWS * 92 * 4)]
        file.create_dataset("param_array", (ROWS, 92), np.float32, external=raw)
    with pytest.raises(UserError, match="keeps its data in another file"):
        ShardReader(shard)
    assert ShardReader(shard, allow_external=True).read("param_array", 0).shape == (92,)
