"""Every fault that check must find, each with its own line, and the exit codes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.check import LINES_PER_KIND, check_paths
from data_pipeline.shards.mel_stats import MelStats, save_stats
from data_pipeline.shards.splits import write_splits
from tests.helpers import ROWS, Rows, assert_usage_error, make_rows, run_cli, write, write_old

XT = load_spec("surge_xt")
ROWS_OF = {"surge_simple": 32, "surge_xt": 24}


def xt_rows(seed: int = 0, rows: int = ROWS) -> Rows:
    """Rows whose parameters are legal in surge_xt."""
    made = make_rows(seed, rows, XT.width)
    made.param_array = np.stack([XT.encode(XT.decode(row)) for row in made.param_array])
    return made


def faults_of(*paths: Path, spec: str | None = None, **options: Any) -> list[str]:
    return check_paths(paths, spec, **options)[2]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A clean surge_xt shard of two rows, in a folder of its own."""
    folder = tmp_path / "set"
    folder.mkdir()
    return write(folder / "shard-0.h5", xt_rows(), spec_name="surge_xt", spec_hash=XT.content_hash)


def give_stats(folder: Path) -> Path:
    save_stats(folder / "stats.npz", MelStats(*np.ones((2, 2, 128, 401), np.float32)))
    return folder


@pytest.fixture
def data_set(data_set: Path) -> Path:
    """With statistics, as training needs them."""
    return give_stats(data_set)


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def test_a_clean_data_set_passes_in_one_line(data_set: Path) -> None:
    result = run_cli("data_pipeline.check", data_set, data_set.parent / "shards")
    assert result.returncode == 0, result.stdout
    assert result.stdout == f"{4 * ROWS + 4 * ROWS} rows: no faults\n"
    assert result.stderr.startswith(f"rows checked: {4 * ROWS + 4 * ROWS} in ")


@pytest.mark.parametrize("name", list(ROWS_OF))
def test_real_shards_pass(shared_data: Path, name: str) -> None:
    assert check_paths([shared_data / name / "shard-0.h5"], None) == (ROWS_OF[name], 0, [])


def test_old_shards_pass(tmp_path: Path) -> None:
    assert faults_of(write_old(tmp_path / "shard-0.h5", xt_rows())) == []


FAULTS: dict[str, tuple[str, tuple[Any, ...], float, str]] = {
    "mel nan": ("mel_spec", (1, 0, 3, 4), np.nan, "mel_spec is not finite"),
    "mel infinite": ("mel_spec", (1, 0, 3, 4), -np.inf, "mel_spec is not finite"),
    "mel low": ("mel_spec", (1, 0, 3, 4), -80.25, "mel_spec leaves -80..0 dB"),
    "mel high": ("mel_spec", (1, 1, 0, 0), 0.25, "mel_spec leaves -80..0 dB"),
    "mel zero": ("mel_spec", (1,), 0, "mel_spec is all zeros"),
    "audio nan": ("audio", (1, 0, 5), np.nan, "audio is not finite"),
    "audio zero": ("audio", (1,), 0, "audio is all zeros"),
    "audio silent": ("audio", (1,), 1e-6, "audio is silent"),
    "parameter nan": ("param_array", (1, 7), np.nan, "param_array is not finite"),
    "parameter low": ("param_array", (1, 0), -0.01, "param_array leaves [0, 1] in a_amp_eg_attack"),
    "parameter high": ("param_array", (1, -1), 1.01, "param_array leaves [0, 1] in note_end"),
    "parameters zero": ("param_array", (1,), 0, "param_array is all zeros"),
    "no category": (
        "param_array",
        (1, XT.slices["a_filter_1_type"]),
        0,
        "param_array is not one-hot in a_filter_1_type",
    ),
    "two categories": ("param_array", (1, XT.slices["a_fm_routing"]), 1, "a_fm_routing"),
    "half categories": ("param_array", (1, XT.slices["a_osc_2_mute"]), 0.5, "a_osc_2_mute"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_line(shard: Path, fault: str) -> None:
    name, index, value, words = FAULTS[fault]
    edit(shard, lambda file: file[name].__setitem__(index, value))
    lines = faults_of(shard)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{shard}: row 1: ")
    assert words in lines[0]


@pytest.mark.parametrize("value", [-80.04, 0.04])
def test_rounded_decibels_are_no_fault(tmp_path: Path, value: float) -> None:
    path = write_old(tmp_path / "shard-0.h5", xt_rows())  # Float32, where float16 would round back to -80.
    edit(path, lambda file: file["mel_spec"].__setitem__((1, 0, 0, 0), value))
    assert faults_of(path) == []


@pytest.mark.parametrize("value", [-1e-7, 1 + 1e-7])
def test_rounded_columns_are_no_fault(shard: Path, value: float) -> None:
    edit(shard, lambda file: file["param_array"].__setitem__((1, 0), value))
    assert faults_of(shard) == []


def test_a_fault_of_a_split_names_the_shard_too(data_set: Path, shards: Path) -> None:
    edit(shards / "shard-1.h5", lambda file: file["mel_spec"].__setitem__((1, 0, 0, 0), np.nan))
    result = run_cli("data_pipeline.check", data_set)
    assert result.returncode == 1
    assert result.stdout == f"{data_set / 'train.h5'}: row 3 (row 1 of shard-1.h5): mel_spec is not finite\n"


def test_many_rows_of_one_fault_are_counted(tmp_path: Path) -> None:
    rows = make_rows(0, rows=LINES_PER_KIND + 20)
    rows.mel_spec[:, 0, 0, 0] = np.nan
    rows.param_array[3, 0] = 2
    lines = faults_of(write(tmp_path / "shard-0.h5", rows))
    assert len(lines) == LINES_PER_KIND + 2
    assert sum("param_array" in line for line in lines) == 1
    assert lines[-1].endswith("20 more rows: mel_spec is not finite")


def test_a_moved_shard_is_a_fault(data_set: Path, shards: Path) -> None:
    (shards / "shard-1.h5").rename(shards / "moved.h5")
    result = run_cli("data_pipeline.check", data_set)
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == 1
    assert "shard-1.h5 is missing" in result.stdout


def test_every_moved_shard_has_a_line(data_set: Path, shards: Path) -> None:
    for number in (0, 2, 10):
        (shards / f"shard-{number}.h5").unlink()
    lines = faults_of(data_set)
    assert [f"shard-{number}.h5 is missing" in line for number, line in zip((0, 2, 10), lines, strict=True)] == [
        True
    ] * 3


def test_sources_are_found_by_the_prefix(shards: Path, tmp_path: Path) -> None:
    write_splits(shards, shards, {"train": [0, 1]})
    split = tmp_path / "far" / "away" / "train.h5"
    split.parent.mkdir(parents=True)
    shutil.move(shards / "train.h5", split)
    give_stats(split.parent)
    assert run_cli("data_pipeline.check", split.parent).returncode == 1
    result = run_cli("data_pipeline.check", split.parent, HDF5_VDS_PREFIX=str(shards))
    assert (result.returncode, result.stdout) == (0, f"{2 * ROWS} rows: no faults\n")


def test_a_source_outside_needs_the_flag(shard: Path, tmp_path: Path) -> None:
    target = tmp_path / "far" / "away" / "splits"
    write_splits(shard.parent, target, {"train": [0]})
    give_stats(target)
    result = run_cli("data_pipeline.check", target)
    assert result.returncode == 1
    assert "refused without --allow_external" in result.stdout
    assert run_cli("data_pipeline.check", target, "--allow_external").returncode == 0


@pytest.mark.parametrize("fault", ["truncated", "no hdf5", "incomplete", "no dataset", "shape"])
def test_a_file_that_cannot_be_used_is_a_fault(shard: Path, fault: str) -> None:
    match fault:
        case "truncated":
            os.truncate(shard, shard.stat().st_size // 2)
        case "no hdf5":
            shard.write_text("nothing")
        case "incomplete":
            edit(shard, lambda file: file.attrs.__setitem__("complete", False))
        case "no dataset":
            edit(shard, lambda file: file.__delitem__("mel_spec"))
        case "shape":
            edit(
                shard,
                lambda file: (
                    file.move("audio", "mel") or file.move("mel_spec", "audio") or file.move("mel", "mel_spec")
                ),
            )
    lines = faults_of(shard.parent)
    assert len(lines) == 1
    assert str(shard) in lines[0]


def test_a_damaged_chunk_does_not_hide_other_faults(shard: Path) -> None:
    edit(shard, lambda file: file["param_array"].__setitem__((0, 0), 2))
    with h5py.File(shard) as file:
        chunk = file["audio"].id.get_chunk_info(1)
    with shard.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(64))
    lines = faults_of(shard)
    assert len(lines) == 2
    assert "/audio cannot be read" in lines[0]
    assert "param_array leaves [0, 1]" in lines[1]


def test_a_shard_in_two_splits_is_a_fault(data_set: Path, shards: Path) -> None:
    other = shards.parent / "other"
    write_splits(shards, other, {"train": [0, 1], "test": [10]})
    shutil.copy(other / "train.h5", data_set / "val.h5")
    lines = faults_of(data_set)
    assert [line.split(":")[0].endswith(f"shard-{n}.h5") for n, line in zip((0, 1), lines, strict=True)] == [True, True]
    assert all("is in train.h5 and in val.h5" in line for line in lines)


def test_statistics_of_another_shape_are_a_fault(data_set: Path) -> None:
    np.savez(data_set / "stats.npz", mean=np.ones(3), std=np.ones(3))
    lines = faults_of(data_set)
    assert len(lines) == 1
    assert "stats.npz" in lines[0]


def test_splits_without_statistics_are_a_fault(data_set: Path) -> None:
    """Training cannot begin: what makes them is told."""
    (data_set / "stats.npz").unlink()
    assert faults_of(data_set) == [
        f"{data_set / 'stats.npz'} does not exist: python -m data_pipeline.stats {data_set} makes it"
    ]


def test_shards_of_several_priors_are_a_fault(shard: Path) -> None:
    """No split can be made of them."""
    write(shard.with_name("shard-1.h5"), xt_rows(), spec_name="surge_xt", spec_hash=XT.content_hash, prior_hash="one")
    assert faults_of(shard.parent) == [
        f"{shard.parent}: rows of several priors, by their prior_hash: shard-0.h5 none, shard-1.h5 one"
    ]


def test_shards_of_several_specs_are_a_fault(shard: Path) -> None:
    """No split can be made of them."""
    write(shard.with_name("shard-1.h5"), make_rows(0, ROWS, 92))
    assert faults_of(shard.parent)[0] == (
        f"{shard.parent}: rows of several specs, by their parameter columns: shard-0.h5 300, shard-1.h5 92"
    )


def test_shards_that_no_split_maps_are_checked_too(shards: Path) -> None:
    write_splits(shards, shards, {"train": [0, 1]})
    give_stats(shards)
    edit(shards / "shard-10.h5", lambda file: file["mel_spec"].__setitem__((0, 0, 0, 0), np.nan))
    rows, _, lines = check_paths([shards], None)
    assert rows == 4 * ROWS
    assert len(lines) == 1
    assert lines[0].startswith(str(shards / "shard-10.h5"))


def test_the_spec_is_the_one_the_file_names(shard: Path) -> None:
    edit(shard, lambda file: file.attrs.__setitem__("spec_hash", "0"))
    assert [line.split(": ", 1)[1] for line in faults_of(shard)] == [
        "was made with another spec than surge_xt is now: their hashes differ"
    ]


def test_the_flag_decides_the_spec(shard: Path) -> None:
    assert "has 300 columns, spec surge_simple has 92" in faults_of(shard, spec="surge_simple")[0]


def test_without_a_known_spec_ranges_are_checked(tmp_path: Path) -> None:
    rows = make_rows(0, width=17)
    path = write(tmp_path / "shard-0.h5", rows, spec_name="mine", spec_hash="0")
    assert faults_of(path) == []
    rows.param_array[1, 5] = 1.5
    write(path, rows, spec_name="mine", spec_hash="0")
    assert faults_of(path) == [f"{path}: row 1: param_array leaves [0, 1] in column 5"]


def test_a_file_cannot_name_a_spec_by_path(shard: Path, tmp_path: Path) -> None:
    """A data set from elsewhere must not make check read any file."""
    edit(shard, lambda file: file.attrs.__setitem__("spec_name", str(tmp_path / "other.json")))
    assert faults_of(shard) == []


def test_wrong_usage_is_one_line(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_usage_error(run_cli("data_pipeline.check"), "usage")
    assert_usage_error(run_cli("data_pipeline.check", tmp_path / "none"), "does not exist")
    assert_usage_error(run_cli("data_pipeline.check", tmp_path / "empty"), "holds no shard-N.h5")
    assert_usage_error(run_cli("data_pipeline.check", shard, "--spec=serum"), "serum", "surge_xt")
    with pytest.raises(UserError):
        check_paths([tmp_path / "none"], None)
