"""A shard under way: what is committed survives, and what comes out is the shard, whoever wrote which row when."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.console.append_log import RecordLog
from data_pipeline.console.cli import UserError
from data_pipeline.shards import partial_shard
from data_pipeline.shards import reader as shards
from data_pipeline.shards.partial_shard import Identity, PartialShard, check_finished, log_path, shard_identity
from data_pipeline.shards.reader import PARAM_ARRAY, ROW_SHAPES
from data_pipeline.shards.row_compression import EncodedRow, RenderedBatch, RowEncoder
from tests.helpers import SPEC, Rows, attributes, make_rows, write

ROWS = 4
FIRST = 20  # The shard's first sample in the data set.
SYNTH = ("test", "1.0")  # As in ``helpers.attributes``.


@pytest.fixture(scope="module")
def rows() -> Rows:
    return make_rows(1, ROWS)


@pytest.fixture(scope="module")
def encoded(rows: Rows) -> list[EncodedRow]:
    encoder = RowEncoder()
    return [
        encoder.encode(FIRST + row, 0, rows.audio[row], rows.mel_spec[row], rows.param_array[row])
        for row in range(ROWS)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard-5.h5"


def identity(**changes: Any) -> Identity:
    return shard_identity(attributes(first_sample_index=FIRST, **changes), ROWS, SPEC.width)


def batch(rows: Iterable[EncodedRow], **refused: int) -> RenderedBatch:
    return RenderedBatch(tuple(rows), Counter(refused))


@pytest.fixture
def whole(encoded: list[EncodedRow], tmp_path: Path) -> bytes:
    """The bytes of the shard committed in order and in one batch."""
    return finished(tmp_path / "whole.h5", [encoded])


def finished(path: Path, batches: Iterable[Iterable[EncodedRow]]) -> bytes:
    with PartialShard(path, identity()) as shard:
        for rows in batches:
            shard.commit(batch(rows), *SYNTH)
        shard.finish()
    return path.read_bytes()


def test_finished_shard_is_what_write_shard_writes(path: Path, encoded: list[EncodedRow], rows: Rows) -> None:
    finished(path, [encoded])
    expected = write(path.with_name("expected.h5"), rows, first_sample_index=FIRST)
    with h5py.File(path) as ours, h5py.File(expected) as theirs:
        assert dict(ours.attrs) == dict(theirs.attrs)
        assert ours.keys() == theirs.keys()
        for name in ROW_SHAPES:
            np.testing.assert_array_equal(ours[name][:], theirs[name][:])
            assert ours[name].dtype == theirs[name].dtype
            assert ours[name].chunks == theirs[name].chunks
            assert ours[name]._filters == theirs[name]._filters


def test_finishing_leaves_the_shard_alone(path: Path, encoded: list[EncodedRow]) -> None:
    finished(path, [encoded])
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("order", [([3], [2], [1], [0]), ([1, 3], [0, 2]), ([2, 0, 3, 1],), ([0, 1], [1, 2], [0, 3])])
def test_bytes_do_not_depend_on_the_order_of_commits(
    path: Path, encoded: list[EncodedRow], whole: bytes, order: tuple[list[int], ...]
) -> None:
    """Nor on rows that were committed twice."""
    assert finished(path, [[encoded[row] for row in rows] for rows in order]) == whole


def test_committed_rows_are_there_after_a_restart(path: Path, encoded: list[EncodedRow], whole: bytes) -> None:
    with PartialShard(path, identity()) as shard:
        assert list(shard.indices) == shard.missing == [20, 21, 22, 23]
        shard.commit(batch([encoded[2]]), *SYNTH)
        assert shard.missing == [20, 21, 23]
    with PartialShard(path, identity()) as shard:
        assert shard.missing == [20, 21, 23]
        shard.commit(batch([encoded[0], encoded[3]]), *SYNTH)
    with PartialShard(path, identity()) as shard:
        assert shard.missing == [21]
        shard.commit(batch([encoded[1]]), *SYNTH)
    with PartialShard(path, identity()) as shard:  # The run before ended before it could finish.
        assert not shard.missing
        shard.finish()
    assert path.read_bytes() == whole


def test_counts_of_refused_renders_survive_a_restart(path: Path, encoded: list[EncodedRow]) -> None:
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded[:1], quiet=2, clipped=1), *SYNTH)
        shard.commit(batch(encoded[1:2], quiet=3), *SYNTH)
        assert shard.refused == {"quiet": 5, "clipped": 1}
    with PartialShard(path, identity()) as shard:
        assert shard.refused == {"quiet": 5, "clipped": 1}


@pytest.mark.parametrize("lost", [1, 1000, -1])
def test_batch_torn_by_a_crash_is_rendered_again(
    path: Path, encoded: list[EncodedRow], whole: bytes, lost: int
) -> None:
    """Be it by a byte, by many, or nearly all."""
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded[:2]), *SYNTH)
        size = log_path(path).stat().st_size
        shard.commit(batch(encoded[2:]), *SYNTH)
    os.truncate(log_path(path), size + 1 if lost < 0 else log_path(path).stat().st_size - lost)
    with PartialShard(path, identity()) as shard:
        assert shard.missing == [22, 23]
        shard.commit(batch(encoded[2:]), *SYNTH)
        shard.finish()
    assert path.read_bytes() == whole


def test_run_killed_before_its_first_batch(path: Path, encoded: list[EncodedRow], whole: bytes) -> None:
    """The first record alone, torn or whole."""
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded), *SYNTH)
    content = log_path(path).read_bytes()
    for length in (0, 5, 60, content.index(b"}") + 1):
        log_path(path).write_bytes(content[:length])
        with PartialShard(path, identity()) as shard:
            assert shard.missing == [20, 21, 22, 23]
            shard.commit(batch(encoded), *SYNTH)
            shard.finish()
        assert path.read_bytes() == whole


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"seed": 2}, "seed 1, not 2"),
    ({"spec_hash": "0" * 64}, "spec_hash"),
    ({"min_loudness": -40.0}, "min_loudness -55.0, not -40.0"),
    ({"max_peak": 1.0}, "max_peak inf, not 1.0"),
    ({"sample_rate": 48000.0}, "sample_rate"),
]


@pytest.mark.parametrize(("changes", "words"), CHANGES)
def test_log_of_another_data_set_is_refused(
    path: Path, encoded: list[EncodedRow], changes: dict[str, Any], words: str
) -> None:
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded[:1]), *SYNTH)
    content = log_path(path).read_bytes()
    with pytest.raises(UserError, match=f"shard-5.h5.partial was begun with {words}.*same settings, or remove it"):
        PartialShard(path, identity(**changes))
    assert log_path(path).read_bytes() == content
    PartialShard(path, identity()).close()  # The lock is free.


@pytest.mark.parametrize(("length", "width"), [(ROWS + 1, SPEC.width), (ROWS, SPEC.width + 1)])
def test_log_of_another_size_is_refused(path: Path, encoded: list[EncodedRow], length: int, width: int) -> None:
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded[:1]), *SYNTH)
    with pytest.raises(UserError, match="begun with"):
        PartialShard(path, shard_identity(attributes(first_sample_index=FIRST), length, width))


def test_two_synthesizers_in_one_shard_are_refused(path: Path, encoded: list[EncodedRow], whole: bytes) -> None:
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded[:1]), *SYNTH)
        with pytest.raises(UserError, match=r"has rows of test 1.0, this is test 1.1: go on with the same"):
            shard.commit(batch(encoded[1:]), "test", "1.1")
    with PartialShard(path, identity()) as shard:
        with pytest.raises(UserError, match=r"this is other 1\.0"):
            shard.commit(batch(encoded[1:]), "other", "1.0")
        assert shard.missing == [21, 22, 23]
        shard.commit(batch(encoded[1:]), *SYNTH)
        shard.finish()
    assert path.read_bytes() == whole


def test_shard_in_use_is_refused(path: Path, encoded: list[EncodedRow]) -> None:
    with PartialShard(path, identity()) as shard:
        with pytest.raises(UserError, match="another run"):
            PartialShard(path, identity())
        shard.commit(batch(encoded), *SYNTH)
        shard.finish()


@pytest.mark.parametrize("index", [FIRST - 1, FIRST + ROWS])
def test_rows_of_other_shards_are_refused_with_their_batch(path: Path, encoded: list[EncodedRow], index: int) -> None:
    row = encoded[1]
    stray = EncodedRow(index, 0, row.params, row.audio, row.mel_spec)
    short = EncodedRow(row.index, 0, row.params[4:], row.audio, row.mel_spec)
    with PartialShard(path, identity()) as shard:
        for wrong in (stray, short):
            with pytest.raises(ValueError, match="does not belong"):
                shard.commit(batch([encoded[0], wrong]), *SYNTH)
        assert len(shard.missing) == ROWS
    assert not log_path(path).exists()


def test_log_without_a_row_is_not_left_behind(path: Path, encoded: list[EncodedRow]) -> None:
    PartialShard(path, identity()).close()
    assert not log_path(path).exists()
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded[:1]), *SYNTH)
    assert log_path(path).exists()


def test_log_of_a_first_batch_that_a_signal_meets_on_its_way_to_the_disk_is_kept(
    path: Path, encoded: list[EncodedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    with PartialShard(path, identity()) as shard, monkeypatch.context() as patched:
        calls = iter([os.fsync, interrupt])  # For the log's first record, and for the batch.
        patched.setattr(os, "fsync", lambda descriptor: next(calls)(descriptor))
        with pytest.raises(KeyboardInterrupt):
            shard.commit(batch(encoded[:2]), *SYNTH)
    with PartialShard(path, identity()) as shard:
        assert shard.missing == [22, 23]


def test_incomplete_shard_cannot_be_finished(path: Path, encoded: list[EncodedRow]) -> None:
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded[1:]), *SYNTH)
        with pytest.raises(ValueError, match=r"1 rows of .* are missing"):
            shard.finish()
        assert not path.exists()


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_committing(
    path: Path, encoded: list[EncodedRow], whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded[:3]), *SYNTH)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full_disk)
            with pytest.raises(
                UserError, match=r"partial: No space left on device: make room.*; 3 of its 4 rows are safe"
            ):
                shard.commit(batch(encoded[3:]), *SYNTH)
        assert shard.missing == [23]
    with PartialShard(path, identity()) as shard:
        assert shard.missing == [23]
        shard.commit(batch(encoded[3:]), *SYNTH)
        shard.finish()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("step", ["seal", "create_dataset"])
def test_full_disk_while_finishing(
    path: Path, encoded: list[EncodedRow], whole: bytes, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded), *SYNTH)
        with monkeypatch.context() as patched:
            patched.setattr(partial_shard, step, full_disk)
            with pytest.raises(UserError, match=r"cannot write .*shard-5.h5: No space left"):
                shard.finish()
        assert sorted(os.listdir(path.parent)) == ["shard-5.h5.partial", "whole.h5"]
    with PartialShard(path, identity()) as shard:
        assert not shard.missing
        shard.finish()
    assert path.read_bytes() == whole


def test_what_a_killed_run_left_while_finishing_is_removed(path: Path, encoded: list[EncodedRow]) -> None:
    stale, other = path.with_name(".shard-5.h5.123.tmp"), path.with_name(".shard-51.h5.123.tmp")
    for leftover in (stale, other):
        leftover.write_bytes(b"half a shard")
    finished(path, [encoded])
    assert not stale.exists()
    assert other.exists()


def test_log_is_removed_only_when_the_shard_is_there(
    path: Path, encoded: list[EncodedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove: Callable[[RecordLog], None] = RecordLog.remove
    seen: list[bool] = []

    def noting(log: RecordLog) -> None:
        seen.append(path.exists())
        remove(log)

    monkeypatch.setattr(RecordLog, "remove", noting)
    with PartialShard(path, identity()) as shard:
        shard.commit(batch(encoded), *SYNTH)
        shard.finish()
        assert seen == [True]


def test_finished_shard_is_recognised(path: Path, encoded: list[EncodedRow]) -> None:
    finished(path, [encoded])
    check_finished(path, identity())
    for changes, _ in CHANGES:
        with pytest.raises(UserError, match=f"is there already, with {next(iter(changes))} "):
            check_finished(path, identity(**changes))
    with pytest.raises(UserError, match="with rows 4 instead of 5"):
        check_finished(path, {**identity(), "rows": 5})
    with pytest.raises(UserError, match="with rows 4 instead of 5"):  # As with another --samples_per_shard.
        check_finished(path, {**identity(), "rows": 5, "first_sample_index": FIRST + 5})
    with pytest.raises(UserError, match="with width 92 instead of 91"):
        check_finished(path, {**identity(), "width": 91})


def test_unfinished_shard_is_not_taken_for_a_finished_one(path: Path) -> None:
    path.write_bytes(b"half a shard")
    with pytest.raises(UserError, match=r"shard-5\.h5"):
        check_finished(path, identity())


def test_identity_leaves_out_the_synthesizer() -> None:
    assert identity() == identity(synth_name="other", synth_version="9")
    assert shards.ShardAttributes.__dataclass_fields__.keys() - identity().keys() == {"synth_name", "synth_version"}
    assert (identity()["rows"], identity()["width"]) == (ROWS, SPEC.width)


def test_parameters_keep_every_bit(path: Path, encoded: list[EncodedRow], rows: Rows) -> None:
    finished(path, [encoded[::-1]])
    with h5py.File(path) as file:
        assert file[PARAM_ARRAY][:].tobytes() == rows.param_array.tobytes()
