"""Batches depend on seed and step alone, not on workers, hosts or earlier reads."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import pytest
from absl import flags

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.reader import MEL_SPEC, PARAM_ARRAY, ShardReader
from synthjax.methods.examples import HostBatch, draw_noise
from synthjax.tasks import batches as data
from synthjax.tasks.batches import EvalBatches, Shuffled, TrainBatches, open_split, prefetch
from tests.helpers import REPOSITORY, assert_usage_error, make_rows, write

ROWS, BATCH = 24, 8


@pytest.fixture
def reader(tiny_root: Path) -> ShardReader:
    return open_split(tiny_root, "train", load_spec("surge_simple"))


def batches(reader: ShardReader, local: range = range(BATCH), seed: int = 0, coupled: bool = True) -> TrainBatches:
    order = Shuffled(reader, BATCH, seed)
    return TrainBatches(reader, order, batch_size=BATCH, seed=seed, coupled=coupled, local_rows=local, steps=30)


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(reader: ShardReader) -> None:
    epochs = [np.concatenate([batches(reader).indices(3 * e + i) for i in range(3)]) for e in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert epochs[0].tolist() != epochs[1].tolist() != list(range(ROWS))


def test_batches_hold_the_rows_they_name(reader: ShardReader) -> None:
    source = batches(reader)
    batch, indices = source[4], source.indices(4)
    for i, index in enumerate(indices):
        np.testing.assert_array_equal(batch["mel_spec"][i], reader.read(MEL_SPEC, int(index)))
        np.testing.assert_array_equal(batch["x1"][i], 2 * reader.read(PARAM_ARRAY, int(index)) - 1)
    assert batch["mel_spec"].dtype == np.float16


def test_seeds_give_other_orders_and_other_noise(reader: ShardReader) -> None:
    first, second = batches(reader, seed=0), batches(reader, seed=1)
    assert first.indices(0).tolist() != second.indices(0).tolist()
    assert not np.isclose(first[0]["x0"], second[0]["x0"]).any(axis=None)


def test_coupling_only_reorders_the_noise_and_brings_it_closer(reader: ShardReader) -> None:
    coupled, plain = batches(reader)[5], batches(reader, coupled=False)[5]
    np.testing.assert_array_equal(coupled["x1"], plain["x1"])
    np.testing.assert_array_equal(np.sort(coupled["x0"], axis=0), np.sort(plain["x0"], axis=0))
    distance = [np.linalg.norm(b["x0"] - b["x1"], axis=1).sum() for b in (coupled, plain)]
    assert distance[0] < distance[1]


def test_noise_is_standard_normal_and_differs_from_step_to_step() -> None:
    noise = draw_noise(4_000, 50, data.TRAIN_NOISE, 0, 0, 0)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert not np.isclose(noise, draw_noise(4_000, 50, data.TRAIN_NOISE, 0, 1, 0)).all(axis=1).any()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_hold_the_parts_of_the_same_global_batch(reader: ShardReader, hosts: int) -> None:
    whole, size = batches(reader)[3], BATCH // hosts
    parts = [batches(reader, range(h * size, (h + 1) * size))[3] for h in range(hosts)]
    assert_same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)


def test_groups_of_a_large_batch_are_coupled_apart_and_by_any_host(
    reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthjax.methods.coupling.GROUP_ROWS", 4)
    whole = batches(reader)[2]
    middle = batches(reader, range(2, 6))[2]  # Crosses both groups.
    assert_same(middle, {name: rows[2:6] for name, rows in whole.items()})
    noise = [draw_noise(4, reader.width, data.TRAIN_NOISE, 0, 2, group) for group in (0, 1)]
    for group in (0, 1):
        rows = whole["x0"][4 * group : 4 * group + 4]
        np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(noise[group], axis=0))


@pytest.mark.parametrize("workers", [0, 1, pytest.param(3, marks=pytest.mark.slow)])
def test_worker_count_and_start_do_not_change_batches(reader: ShardReader, workers: int) -> None:
    flags.FLAGS.mark_as_parsed()
    source = batches(reader)
    with prefetch(source, workers=workers, start=7) as stream:
        for step, batch in enumerate(islice(stream, 5), start=7):
            assert_same({k: np.asarray(v) for k, v in batch.items()}, source[step])


class OfOneMegabyte:
    """Batches of 1 MB, as many as there is time for."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, step: SupportsIndex) -> HostBatch:
        return {"x1": np.full((1 << 20,), int(step) % 100, np.uint8)}


def in_a_mount(options: str, workers: int) -> subprocess.CompletedProcess[str]:
    """Reads 20 batches where /dev/shm is a mount of its own; skips the test where no mount is permitted."""
    script = f"""
import time
from itertools import islice
from data_pipeline.console import cli
from synthjax.tasks.batches import prefetch, require_shared_memory
from tests.synthjax.tasks.test_batches import OfOneMegabyte

def main(argv):
    if {workers}:
        require_shared_memory({workers}, 1 << 20)
    with prefetch(OfOneMegabyte(), workers={workers}) as stream:
        for _ in islice(stream, 20):
            time.sleep(0.05)

if __name__ == "__main__":
    cli.run(main)
"""
    mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm"
    within = ["unshare", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*within, mount], capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    return subprocess.run(
        [*within, f'{mount} && exec "$@"', "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize(("options", "room"), [("size=10m", 10), ("size=10m,mode=555,ro", 0)])
def test_workers_without_room_for_their_batches_are_refused(options: str, room: int) -> None:
    result = in_a_mount(options, workers=2)
    assert_usage_error(result, f"needs 14 MB in /dev/shm, which has {room} MB", "--shm-size", "data.workers=0")


def test_workers_with_the_asked_room_read_their_batches() -> None:
    result = in_a_mount("size=15m", workers=2)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_thread_needs_no_shared_memory() -> None:
    assert in_a_mount("size=4k", workers=0).returncode == 0


def test_a_source_travels_to_other_processes_without_its_open_files(reader: ShardReader) -> None:
    source = batches(reader)
    expected = source[0]
    assert_same(pickle.loads(pickle.dumps(source))[0], expected)


@pytest.mark.parametrize("batch_size", [4, 5, 10, 16])
def test_evaluation_counts_every_row_once_whatever_the_batch_size(tiny_root: Path, batch_size: int) -> None:
    reader = open_split(tiny_root, "test", load_spec("surge_simple"))
    source = EvalBatches(reader, batch_size=batch_size, seed=0, local_rows=range(batch_size))
    gathered = [source[i] for i in range(len(source))]
    assert all(batch["mel_spec"].shape[0] == batch_size for batch in gathered)
    valid = np.concatenate([batch["valid"] for batch in gathered]) > 0
    index = np.concatenate([batch["index"] for batch in gathered])[valid]
    assert index.tolist() == list(range(10))
    noise = np.concatenate([batch["x0"] for batch in gathered])[valid]
    expected = [draw_noise(1, reader.width, data.EVAL_NOISE, 0, i)[0] for i in range(10)]
    np.testing.assert_array_equal(noise, expected)


def test_evaluation_may_be_limited_to_the_first_rows(tiny_root: Path) -> None:
    reader = open_split(tiny_root, "test", load_spec("surge_simple"))
    source = EvalBatches(reader, batch_size=4, seed=0, local_rows=range(4), limit=6)
    assert (source.rows, len(source)) == (6, 2)
    assert source[1]["valid"].tolist() == [1, 1, 0, 0]
    with pytest.raises(IndexError):
        source[2]


def test_a_batch_larger_than_the_data_is_refused(reader: ShardReader) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=32 is larger than the 24 training rows"):
        Shuffled(reader, 32, seed=0)


def test_a_split_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train\.h5 under .*: set --config\.data\.root .*data_pipeline\.splits"):
        open_split(tmp_path, "train", load_spec("surge_simple"))


def test_columns_that_do_not_fit_the_spec_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.h5", make_rows(0, 2, width=91))
    words = "91 parameter columns but spec surge_simple has 92: set --data_root to a data set of that spec"
    with pytest.raises(UserError, match=words):
        open_split(tmp_path, "train", load_spec("surge_simple"), flag="--data_root")
