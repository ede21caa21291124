"""Data sets without audio, from their rendering to their check; and what happens where they meet sets with audio."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.console.append_log import RecordLog
from data_pipeline.console.cli import UserError
from data_pipeline.shards.check import check_paths
from data_pipeline.shards.mel_stats import STATS_FILE, load_stats
from data_pipeline.shards.partial_shard import PartialShard, check_finished, log_path, shard_identity
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.shards.rechunk import rechunk
from data_pipeline.shards.row_compression import EncodedRow, RenderedBatch, RowEncoder
from data_pipeline.shards.splits import write_splits
from tests.helpers import (
    RENDER_SUBTRACTIVE,
    REPOSITORY,
    SPEC,
    assert_usage_error,
    attributes,
    make_rows,
    run_cli,
    write,
)

SHARDS, ROWS = 3, 4
SYNTH = ("test", "1.0")
RENDER = [f"--config={RENDER_SUBTRACTIVE}", f"--samples_per_shard={ROWS}", "--workers=1"]


def run(module: str, *arguments: object) -> str:
    result = run_cli(module, *arguments, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The same three shards of the built-in synthesizer with audio (True) and without."""
    root = tmp_path_factory.mktemp("rendered")
    folders = {stored: root / f"audio-{stored}" for stored in (True, False)}
    for stored, folder in folders.items():
        flags = [f"--shards=0-{SHARDS - 1}", f"--output={folder}", f"--store_audio={stored}"]
        run("data_pipeline.render_shards", *RENDER, *flags)
    return folders


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder whose shard 0 has audio, and whose shards 1 and 2 have none."""
    for number in range(SHARDS):
        write(tmp_path / f"shard-{number}.h5", make_rows(number))
        if number:
            with h5py.File(tmp_path / f"shard-{number}.h5", "r+") as file:
                del file[AUDIO]
    return tmp_path


def chunks(path: Path, name: str) -> list[bytes]:
    with h5py.File(path) as file:
        dataset = file[name]
        return [dataset.id.read_direct_chunk((row,) + (0,) * (dataset.ndim - 1))[1] for row in range(len(dataset))]


def test_parameters_spectrograms_and_attributes_are_the_same(folders: dict[bool, Path]) -> None:
    for number in range(SHARDS):
        with_audio, without = (folders[stored] / f"shard-{number}.h5" for stored in (True, False))
        assert chunks(without, MEL_SPEC) == chunks(with_audio, MEL_SPEC)
        with h5py.File(with_audio) as theirs, h5py.File(without) as ours:
            assert list(ours) == [MEL_SPEC, PARAM_ARRAY]
            assert dict(ours.attrs) == dict(theirs.attrs)
            np.testing.assert_array_equal(ours[PARAM_ARRAY][:], theirs[PARAM_ARRAY][:])


@pytest.mark.parametrize("stored", [True, False])
def test_a_finished_shard_of_the_other_kind_is_refused(folders: dict[bool, Path], stored: bool) -> None:
    flags = ["--shards=0", f"--output={folders[stored]}", f"--store_audio={not stored}"]
    result = run_cli("data_pipeline.render_shards", *RENDER, *flags, cwd=REPOSITORY)
    assert_usage_error(result, "shard-0.h5 is there already", f"store_audio {stored} instead of {not stored}")


def test_a_data_set_is_made_of_them(folders: dict[bool, Path]) -> None:
    """Splits, statistics and the check: the same as with audio, and the check says what it could not check."""
    said, splits_of = {}, {stored: folder.parent / f"splits-{stored}" for stored, folder in folders.items()}
    for stored, folder in folders.items():
        splits = splits_of[stored]
        run("data_pipeline.splits", folder, splits, "--train_shards=0,1", "--val_shards=2")
        run("data_pipeline.stats", splits)
        said[stored] = run("data_pipeline.check", splits)
    rows = SHARDS * ROWS
    assert said[True] == f"{rows} rows: no faults\n"
    assert said[False] == f"{rows} of {rows} rows have no audio to check\n{said[True]}"
    with h5py.File(splits_of[False] / "train.h5") as file:
        assert list(file) == [MEL_SPEC, PARAM_ARRAY]
    theirs, ours = (load_stats(splits_of[stored] / STATS_FILE) for stored in (True, False))
    np.testing.assert_array_equal(ours, theirs)


def test_readers_say_what_to_do_where_audio_is_asked_for(mixed: Path) -> None:
    write_splits(mixed, mixed, {"train": [1, 2]})
    for name in ("shard-1.h5", "train.h5"):
        reader = ShardReader(mixed / name)
        np.testing.assert_array_equal(reader.read(MEL_SPEC, 0), make_rows(1).mel_spec[0])
        for ask in (lambda r: r.read(AUDIO, 0), lambda r: r.read_rows(AUDIO, [0]), lambda r: next(r.blocks(AUDIO))):
            with pytest.raises(UserError, match=rf"{name}: has no audio.*--store_audio=False: render the shards again"):
                ask(reader)


def test_a_split_of_both_kinds_is_refused_by_both_names(mixed: Path) -> None:
    for numbers in ([0, 1], [0, 2]):
        with pytest.raises(UserError, match=rf"shard-{numbers[1]}\.h5: audio none, but shard-0\.h5 has float16"):
            write_splits(mixed, mixed, {"train": numbers})


def test_training_rows_may_lack_the_audio_that_other_splits_have(mixed: Path) -> None:
    write_splits(mixed, mixed, {"train": [1, 2], "test": [0]})
    assert [AUDIO in ShardReader(mixed / f"{name}.h5").names for name in ("train", "test")] == [False, True]
    assert check_paths([mixed], "surge_simple")[:2] == (6, 4)


def test_a_split_with_audio_whose_shard_has_lost_it_is_refused(mixed: Path) -> None:
    write(mixed / "shard-1.h5", make_rows(1))
    write_splits(mixed, mixed, {"train": [0, 1]})
    with h5py.File(mixed / "shard-1.h5", "r+") as file:
        del file[AUDIO]
    with pytest.raises(UserError, match=r"shard-1\.h5: has no dataset audio"):
        ShardReader(mixed / "train.h5")


@pytest.mark.parametrize("link", [h5py.ExternalLink("gone.h5", AUDIO), h5py.SoftLink("/gone")])
def test_a_broken_link_to_audio_is_no_lack_of_audio(mixed: Path, link: object) -> None:
    with h5py.File(mixed / "shard-1.h5", "r+") as file:
        file[AUDIO] = link
    with pytest.raises(UserError, match=r"gone\.h5 is missing|audio is a link"):
        ShardReader(mixed / "shard-1.h5")


def test_rechunking_keeps_what_there_is(mixed: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.h5"
    assert rechunk(mixed / "shard-1.h5", target) == 2
    with h5py.File(target) as file:
        assert list(file) == [MEL_SPEC, PARAM_ARRAY]
    assert chunks(target, MEL_SPEC) == chunks(mixed / "shard-1.h5", MEL_SPEC)


def encoded(*, stored: bool) -> list[EncodedRow]:
    rows, encoder = make_rows(1), RowEncoder()
    return [
        encoder.encode(index, 0, rows.audio[index] if stored else None, rows.mel_spec[index], rows.param_array[index])
        for index in range(2)
    ]


@pytest.mark.parametrize("stored", [True, False])
def test_a_begun_shard_goes_on_with_its_own_kind_only(tmp_path: Path, stored: bool) -> None:
    path, rows = tmp_path / "shard-0.h5", encoded(stored=stored)
    mine, other = (shard_identity(attributes(), 2, SPEC.width, store_audio=kind) for kind in (stored, not stored))
    with PartialShard(path, mine) as shard:
        shard.commit(RenderedBatch((rows[1],)), *SYNTH)
        with pytest.raises(ValueError, match="bytes of audio"):
            shard.commit(RenderedBatch((encoded(stored=not stored)[0],)), *SYNTH)
    with pytest.raises(UserError, match=f"was begun with store_audio {stored}, not {not stored}: go on with the same"):
        PartialShard(path, other)
    with PartialShard(path, mine) as shard:
        assert shard.missing == [0]
        shard.commit(RenderedBatch((rows[0],)), *SYNTH)
        shard.finish()
    check_finished(path, mine)
    assert (AUDIO in ShardReader(path).names) is stored
    np.testing.assert_array_equal(ShardReader(path).read_rows(MEL_SPEC, range(2)), make_rows(1).mel_spec)


def test_a_log_from_before_this_setting_has_audio(tmp_path: Path) -> None:
    path, identity = tmp_path / "shard-0.h5", shard_identity(attributes(), 2, SPEC.width)
    with PartialShard(path, identity) as shard:
        shard.commit(RenderedBatch(tuple(encoded(stored=True)[:1])), *SYNTH)
    log = RecordLog(log_path(path))
    records = [bytes(payload) for _, payload in log.recover()]
    log.remove()
    log.close()
    older = {name: value for name, value in json.loads(records[0]).items() if name != "store_audio"}
    log = RecordLog(log_path(path))
    list(log.recover())
    for record in (json.dumps(older).encode(), *records[1:]):
        log.append(record)
    log.close()
    with pytest.raises(UserError, match="was begun with store_audio True, not False"):
        PartialShard(path, shard_identity(attributes(), 2, SPEC.width, store_audio=False))
    with PartialShard(path, identity) as shard:
        assert shard.missing == [1]
