"""Splits: flags, order, what is refused, and that nothing is half written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.shards.reader import ROW_SHAPES, ShardReader
from data_pipeline.shards.splits import _write_split, find_shards, parse_shards, write_splits
from data_pipeline.shards.virtual_sources import virtual_sources
from tests.helpers import ROWS, all_rows, assert_usage_error, make_rows, run_cli, write, write_old


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", [0]), ("0,1", [0, 1]), ("0-3", [0, 1, 2, 3]), ("10,2", [2, 10]), ("0-2, 7 ,5-5", [0, 1, 2, 5, 7])],
)
def test_shard_lists_are_numbers_and_ranges_in_numerical_order(text: str, numbers: list[int]) -> None:
    assert parse_shards(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "0,", "3-1", "-1", "1-", "0,0", "0-2,1", "0-999999999", "1.5", "٣"])
def test_other_shard_lists_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_shards(text)


@pytest.mark.parametrize("flags", ["--train_shards=0-1 --val_shards=2 --test_shards=10", "hyphens"])
def test_command_writes_all_splits(shards: Path, tmp_path: Path, flags: str) -> None:
    if flags == "hyphens":
        flags = "--train-shards 0,1 --val-shards 2 --test-shards 10"
    target = tmp_path / "set" / "splits"
    result = run_cli("data_pipeline.splits", shards, target, *flags.split())
    assert result.returncode == 0, result.stderr
    assert f"train.h5: {2 * ROWS} rows from 2 shards (0-1)" in result.stdout
    assert f"val.h5: {ROWS} rows from 1 shard (2)\n" in result.stdout
    assert "allow_external" not in result.stdout
    assert sorted(path.name for path in target.iterdir()) == ["test.h5", "train.h5", "val.h5"]
    for name, numbers in {"train": [0, 1], "val": [2], "test": [10]}.items():
        reader = ShardReader(target / f"{name}.h5")
        for dataset in ROW_SHAPES:
            expected = np.concatenate([getattr(make_rows(number), dataset) for number in numbers])
            np.testing.assert_array_equal(all_rows(reader, dataset), expected)


def test_hdf5_itself_reads_the_split(data_set: Path) -> None:
    with h5py.File(data_set / "train.h5") as file:
        expected = np.concatenate([make_rows(number).mel_spec for number in range(3)])
        np.testing.assert_array_equal(file["mel_spec"][:], expected)
        assert file["mel_spec"].dtype == np.float16


def test_shards_are_sorted_as_numbers(shards: Path) -> None:
    assert list(find_shards(shards)) == [0, 1, 2, 10]
    write_splits(shards, shards.parent / "splits", {"train": parse_shards("10,2,0")})
    sources = [source.file for source in virtual_sources(shards.parent / "splits" / "train.h5")]
    assert sources[:3] == [f"../shards/shard-{number}.h5" for number in (0, 2, 10)]


def test_target_may_be_source(shards: Path) -> None:
    write_splits(shards, shards, {"train": [0, 1], "test": [2]})
    assert virtual_sources(shards / "train.h5")[0].file == "shard-0.h5"
    assert len(ShardReader(shards / "train.h5")) == 2 * ROWS


def test_sizes_are_those_of_the_shards(shards: Path) -> None:
    write(shards / "shard-1.h5", make_rows(1, rows=ROWS + 1))
    assert write_splits(shards, shards, {"train": [0, 1, 2]}) == {"train": 3 * ROWS + 1}
    assert len(ShardReader(shards / "train.h5")) == 3 * ROWS + 1


def test_target_behind_a_symbolic_link(shards: Path, tmp_path: Path) -> None:
    """HDF5 takes ``..`` from the folder a link leads to."""
    real = shards.parent / "deep" / "splits"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    write_splits(shards, tmp_path / "link", {"train": [0]})
    assert len(ShardReader(tmp_path / "link" / "train.h5", allow_external=True)) == ROWS
    assert len(ShardReader(real / "train.h5", allow_external=True)) == ROWS


def test_a_source_elsewhere_is_pointed_out(shards: Path, tmp_path: Path) -> None:
    target = tmp_path / "far" / "away" / "splits"
    result = run_cli("data_pipeline.splits", shards, target, "--train_shards=0")
    assert result.returncode == 0, result.stderr
    assert "need --allow_external" in result.stdout
    assert_usage_error(run_cli("data_pipeline.stats", target), "refused without --allow_external")
    assert run_cli("data_pipeline.stats", target, "--allow_external").returncode == 0


def test_spec_attributes_are_copied(data_set: Path, shards: Path) -> None:
    shard = ShardReader(shards / "shard-0.h5").attrs
    assert ShardReader(data_set / "train.h5").attrs == {key: shard[key] for key in ("spec_name", "spec_hash")}


def test_old_shards_make_splits(shards: Path) -> None:
    for number in (0, 1):
        write_old(shards / f"shard-{number}.h5", make_rows(number))
    write_splits(shards, shards, {"train": [0, 1]})
    reader = ShardReader(shards / "train.h5")
    assert reader.attrs == {}
    assert reader.dtype("mel_spec") == np.float32
    np.testing.assert_array_equal(reader.read("mel_spec", ROWS), make_rows(1).mel_spec[0])


def refuse(source: Path, words: str, **splits: list[int]) -> None:
    """write_splits refuses, and leaves no file behind."""
    before = sorted(source.iterdir())
    with pytest.raises(UserError, match=words):
        write_splits(source, source, splits)
    assert sorted(source.iterdir()) == before


def test_a_shard_in_two_splits_is_refused(shards: Path) -> None:
    refuse(shards, "shard 1 is in train and in test", train=[0, 1], test=[1])


def test_a_missing_shard_is_refused_with_those_there_are(shards: Path) -> None:
    refuse(shards, r"no shard-3\.h5; it has shards 0-2,10", train=[0, 3])


def test_an_incomplete_shard_is_refused(shards: Path) -> None:
    with h5py.File(shards / "shard-1.h5", "r+") as file:
        file.attrs["complete"] = False
    refuse(shards, r"shard-1\.h5: is incomplete", train=[0, 1])


def test_different_widths_are_refused(shards: Path) -> None:
    write(shards / "shard-1.h5", make_rows(1, width=93))
    refuse(shards, r"shard-1\.h5: columns 93, but shard-0\.h5 has 92", train=[0, 1])


def test_different_specs_are_refused_across_splits(shards: Path) -> None:
    write(shards / "shard-10.h5", make_rows(10), spec_hash="other")
    refuse(shards, r"shard-10\.h5: spec hash other", train=[0], test=[10])


def test_different_priors_are_refused_and_a_common_one_is_copied(shards: Path) -> None:
    for number in (0, 1):
        write(shards / f"shard-{number}.h5", make_rows(number), prior_hash="one")
    refuse(shards, r"shard-2\.h5: prior hash None, but shard-0\.h5 has one", train=[0, 1], val=[2])
    write_splits(shards, shards, {"train": [0, 1]})
    assert ShardReader(shards / "train.h5").attrs["prior_hash"] == "one"


def test_different_types_are_refused(shards: Path) -> None:
    write_old(shards / "shard-1.h5", make_rows(1))
    write(shards / "shard-0.h5", make_rows(0), spec_hash="")
    with h5py.File(shards / "shard-1.h5", "r+") as file:
        file.attrs["spec_hash"] = ""
    refuse(shards, r"type of mel_spec float32, but shard-0\.h5 has float16", train=[0, 1])


def test_a_split_is_no_shard(data_set: Path) -> None:
    (data_set / "train.h5").rename(data_set / "shard-0.h5")
    refuse(data_set, "is a split", train=[0])


def test_two_files_of_one_number_are_refused(shards: Path) -> None:
    write(shards / "shard-01.h5", make_rows(1))
    refuse(shards, "same number", train=[0])


def test_a_stale_split_is_not_left_beside_new_ones(shards: Path) -> None:
    write_splits(shards, shards, {"train": [0], "test": [1]})
    before = (shards / "train.h5").read_bytes()
    refuse(shards, r"test\.h5 exists: name its shards", train=[1])
    assert (shards / "train.h5").read_bytes() == before


def test_nothing_is_written_unless_all_is(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def fail_at_second(path: Path, readers: list[ShardReader]) -> None:
        if written:
            raise OSError(28, "No space left on device")
        _write_split(path, readers)
        written.append(path)

    monkeypatch.setattr("data_pipeline.shards.splits._write_split", fail_at_second)
    refuse(shards, "No space left", train=[0], test=[1])
    assert written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{shards}", "{shards}"], ["usage"]),
        (["{shards}", "--train_shards=0"], ["usage"]),
        (["{shards}", "{shards}/shard-0.h5", "--train_shards=0"], ["cannot write to"]),
        (["{shards}/none", "{shards}", "--train_shards=0"], ["not a folder"]),
        (["{shards}/..", "{shards}", "--train_shards=0"], ["holds no shard-N.h5"]),
        (["{shards}", "{shards}", "--train_shards=x"], ["'x'", "0-3,7"]),
        (["{shards}", "{shards}", "--train_shard=0", "--training=1"], ["train_shard"]),
    ],
)
def test_wrong_usage_is_one_line(shards: Path, arguments: list[str], words: list[str]) -> None:
    result = run_cli("data_pipeline.splits", *(argument.format(shards=shards) for argument in arguments))
    assert_usage_error(result, *words)


def test_statistics_of_earlier_splits_do_not_stay_beside_new_ones(shards: Path, tmp_path: Path) -> None:
    target = shards.parent / "splits"
    assert run_cli("data_pipeline.splits", shards, target, "--train_shards=0").returncode == 0
    (target / "stats.npz").write_bytes(b"of the splits before")
    result = run_cli("data_pipeline.splits", shards, target, "--train_shards=1")
    assert "removed" in result.stdout
    assert not (target / "stats.npz").exists()
