"""Statistics against NumPy, in both shard formats, and reading them back safely."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.shards.mel_stats import MelStats, compute_stats, load_stats, save_stats, standardise
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.splits import write_splits
from tests.helpers import ROWS, all_rows, assert_usage_error, make_rows, run_cli, write, write_old

SHAPE = (2, 128, 401)


def assert_stats_of(stats: MelStats, mel: np.ndarray) -> None:
    mel = mel.astype(np.float64)
    assert stats.mean.dtype == stats.std.dtype == np.float32
    np.testing.assert_allclose(stats.mean, mel.mean(axis=0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(stats.std, mel.std(axis=0), rtol=1e-6, atol=1e-5)


def test_command_equals_numpy_on_everything(data_set: Path, shards: Path) -> None:
    write(shards / "shard-1.h5", make_rows(1, rows=37))  # More than one group of 32, and not a whole one.
    write_splits(shards, data_set, {"train": [0, 1, 2], "test": [10]})
    result = run_cli("data_pipeline.stats", data_set)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{data_set / 'stats.npz'}: mean and std of {37 + 2 * ROWS} rows\n"
    mel = np.concatenate([make_rows(0).mel_spec, make_rows(1, rows=37).mel_spec, make_rows(2).mel_spec])
    assert_stats_of(load_stats(data_set / "stats.npz"), mel)


def test_a_split_may_be_named(data_set: Path) -> None:
    assert run_cli("data_pipeline.stats", data_set / "test.h5").returncode == 0
    assert_stats_of(load_stats(data_set / "stats.npz"), make_rows(10).mel_spec)


def test_real_shards_equal_numpy(shared_data: Path) -> None:
    reader = ShardReader(shared_data / "surge_simple" / "shard-0.h5")
    assert_stats_of(compute_stats(reader), all_rows(reader, "mel_spec"))


def test_old_and_new_format_agree_to_float16(shared_data: Path, tmp_path: Path) -> None:
    old = ShardReader(shared_data / "surge_simple" / "shard-0.h5")
    rows = make_rows(0, rows=8)
    rows.mel_spec = old.read_rows("mel_spec", range(8)).astype(np.float16)
    write(tmp_path / "new.h5", rows)
    rows.mel_spec = old.read_rows("mel_spec", range(8))
    write_old(tmp_path / "old.h5", rows)
    ours, theirs = (compute_stats(ShardReader(tmp_path / f"{name}.h5")) for name in ("new", "old"))
    np.testing.assert_allclose(ours.mean, theirs.mean, atol=0.04)  # Half a float16 step near -80.
    np.testing.assert_allclose(ours.std, theirs.std, atol=0.04)


def test_precision_survives_a_large_mean(tmp_path: Path) -> None:
    rows = make_rows(0, rows=40)
    rows.mel_spec = (-79 + np.random.default_rng(0).integers(0, 2, rows.mel_spec.shape) / 16).astype(np.float16)
    reader = ShardReader(write(tmp_path / "shard-0.h5", rows))
    stats = compute_stats(reader)
    np.testing.assert_allclose(stats.std, rows.mel_spec.astype(np.float64).std(axis=0), rtol=1e-5)


def test_values_that_are_not_finite_stop_it_and_name_their_rows(data_set: Path, shards: Path) -> None:
    with h5py.File(shards / "shard-1.h5", "r+") as file:
        file["mel_spec"][1, 0, 5, 5] = np.nan
    assert_usage_error(run_cli("data_pipeline.stats", data_set), "rows 2 to 3", "not finite", "data_pipeline.check")
    assert not (data_set / "stats.npz").exists()


def test_a_moved_shard_stops_it(data_set: Path, shards: Path) -> None:
    (shards / "shard-1.h5").unlink()
    assert_usage_error(run_cli("data_pipeline.stats", data_set), "shard-1.h5 is missing")
    assert not (data_set / "stats.npz").exists()


def test_missing_split_names_the_command_that_makes_it(tmp_path: Path) -> None:
    assert_usage_error(run_cli("data_pipeline.stats", tmp_path), "train.h5 does not exist", "data_pipeline.splits")
    assert_usage_error(run_cli("data_pipeline.stats"), "usage")


def test_missing_stats_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"python -m data_pipeline.stats {tmp_path}"):
        load_stats(tmp_path / "stats.npz")


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "fault", ["empty", "text", "truncated", "no std", "shape", "integers", "nan", "negative", "pickle", "bomb", "npy"]
)
def test_a_file_that_is_no_statistics_is_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "stats.npz"
    good = np.ones(SHAPE, np.float32)
    arrays: dict[str, np.ndarray] = {"mean": good, "std": good}
    match fault:
        case "no std":
            del arrays["std"]
        case "shape":
            arrays["mean"] = good[:, :, :400]
        case "integers":
            arrays["std"] = good.astype(np.int32)
        case "nan":
            arrays["mean"] = good * np.nan
        case "negative":
            arrays["std"] = -good
        case "pickle":
            arrays["mean"] = np.array([Payload(tmp_path / "unpickled")], dtype=object)
        case "bomb":
            arrays["mean"] = np.zeros((64, *SHAPE), np.float32)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    match fault:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("statistics")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        case "npy":
            with path.open("wb") as file:
                np.save(file, good)
    with pytest.raises(UserError, match=r"stats\.npz"):
        load_stats(path)
    assert not (tmp_path / "unpickled").exists()


def test_old_double_precision_statistics_load(tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mean=np.full(SHAPE, -40.0), std=np.full(SHAPE, 10.0))
    stats = load_stats(tmp_path / "stats.npz")
    assert stats.mean.dtype == np.float32
    assert stats.std[0, 0, 0] == 10


def test_statistics_round_trip(tmp_path: Path) -> None:
    stats = MelStats(*np.random.default_rng(0).uniform(1, 9, (2, *SHAPE)).astype(np.float32))
    save_stats(tmp_path / "stats.npz", stats)
    loaded = load_stats(tmp_path / "stats.npz")
    np.testing.assert_array_equal(loaded.mean, stats.mean)
    np.testing.assert_array_equal(loaded.std, stats.std)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.npz"]


def test_standardising_floors_the_deviation() -> None:
    stats = MelStats(np.full(SHAPE, -40, np.float32), np.full(SHAPE, 0.01, np.float32))
    stats.std[0] = 10
    z = standardise(np.full((3, *SHAPE), -30, np.float32), stats)
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z[:, 0], 1)
    np.testing.assert_array_equal(z[:, 1], 10)
    np.testing.assert_allclose(standardise(np.full(SHAPE, -30, np.float32), stats, min_std=0.0)[1], 1000, rtol=1e-5)
