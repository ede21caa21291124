"""Old shards converted: what is kept, what is recorded, and that no interruption costs or harms anything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.console.append_log import RecordLog
from data_pipeline.console.cli import UserError
from data_pipeline.shards import rechunk as module
from data_pipeline.shards.check import check_paths
from data_pipeline.shards.partial_shard import log_path
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, PARAM_ARRAY, ROW_SHAPES, ShardReader
from data_pipeline.shards.rechunk import rechunk
from tests.helpers import REPOSITORY, SPEC, Rows, all_rows, assert_usage_error, make_rows, run_cli, write, write_old

ROWS = 9


def uneven_rows(seed: int = 0, rows: int = ROWS) -> Rows:
    """Rows whose spectrograms do not fit float16, with the values that are easily lost: -0, NaN, -80."""
    made = make_rows(seed, rows)
    made.mel_spec = made.mel_spec.astype(np.float32) + np.float32(1e-3)
    made.mel_spec[1, 0, 0, :2] = -80, np.nan
    made.audio[2, 0, :2] = -0.0, 6e-8
    return made


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder of one old shard."""
    (tmp_path / "old").mkdir()
    write_old(tmp_path / "old" / "shard-3.h5", uneven_rows())
    return tmp_path / "old"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def assert_converted(source: Path, target: Path) -> None:
    """Bit for bit, and in our format."""
    before, after = ShardReader(source), ShardReader(target)
    for name, dtype in ((AUDIO, np.float16), (MEL_SPEC, np.float16), (PARAM_ARRAY, np.float32)):
        expected = all_rows(before, name).astype(dtype)
        assert all_rows(after, name).tobytes() == expected.tobytes()
    with h5py.File(target) as file:
        for name in (AUDIO, MEL_SPEC):
            assert file[name].chunks == (1, *file[name].shape[1:])
            assert "32026" in dict(file[name]._filters)


def test_rows_are_kept_and_the_source_is_not_touched(old: Path, new: Path) -> None:
    before = (old / "shard-3.h5").read_bytes()
    assert rechunk(old, new) == ROWS
    assert_converted(old / "shard-3.h5", new / "shard-3.h5")
    assert (old / "shard-3.h5").read_bytes() == before
    assert [path.name for path in new.iterdir()] == ["shard-3.h5"]


def test_spectrograms_are_rounded_to_nearest(old: Path, new: Path) -> None:
    rechunk(old, new)
    wide = all_rows(ShardReader(old / "shard-3.h5"), MEL_SPEC)
    narrow = all_rows(ShardReader(new / "shard-3.h5"), MEL_SPEC).astype(np.float32)
    finite = np.isfinite(wide)
    half_step = np.spacing(np.abs(narrow[finite]).astype(np.float16)).astype(np.float32) / 2
    assert np.all(np.abs(wide - narrow)[finite] <= half_step)


def test_attributes_tell_what_is_known_and_nothing_else(old: Path, new: Path) -> None:
    with h5py.File(old / "shard-3.h5", "r+") as file:
        file[AUDIO].attrs.update({"signal_duration_seconds": 4.0, "min_loudness": -50.0, "channels": 2, "own": 1})
    rechunk(old, new)
    assert ShardReader(new / "shard-3.h5").attrs == {
        "spec_name": SPEC.name,
        "spec_hash": SPEC.content_hash,
        "synth_name": "unknown",
        "synth_version": "unknown",
        "sample_rate": 44100.0,
        "channels": 2,
        "duration_seconds": 4.0,
        "velocity": 100,
        "min_loudness": -50.0,
        "writer_version": 1,
        "complete": True,
    }


def test_spec_is_that_of_the_width_or_the_one_named(tmp_path: Path, new: Path) -> None:
    odd = write_old(tmp_path / "odd.h5", make_rows(0, 2, width=7))
    rechunk(odd, tmp_path / "odd-new.h5")
    assert not {"spec_name", "spec_hash"} & ShardReader(tmp_path / "odd-new.h5").attrs.keys()
    with pytest.raises(UserError, match="7 columns, spec surge_xt has 300"):
        rechunk(odd, new, "surge_xt")
    own_spec = tmp_path / "own.json"
    shutil.copy(REPOSITORY / "data_pipeline" / "params" / "specs" / "surge_simple.json", own_spec)
    own_spec.write_text(own_spec.read_text().replace('"surge_simple"', '"own"', 1))
    rechunk(write_old(tmp_path / "shard-1.h5", make_rows(1)), new, str(own_spec))
    assert ShardReader(new).attrs["spec_name"] == "own"


def test_our_own_shards_keep_their_attributes(tmp_path: Path, new: Path) -> None:
    source = write(tmp_path / "shard-0.h5", make_rows(0), seed=5, synth_version="2.0")
    rechunk(source, new)
    assert_converted(source, new)
    assert ShardReader(new).attrs == ShardReader(source).attrs


@pytest.mark.parametrize("name", ["surge_simple", "surge_xt"])
def test_real_shards_convert_and_pass_the_check(shared_data: Path, new: Path, name: str) -> None:
    source = shared_data / name / "shard-1.h5"
    rechunk(source, new)
    assert_converted(source, new)
    assert check_paths([new], name)[2] == []
    attrs = ShardReader(new).attrs
    assert (attrs["spec_name"], attrs["velocity"], attrs["min_loudness"]) == (name, 100, -55.0)
    assert "seed" not in attrs


def test_command_converts_a_folder_and_skips_what_is_done(old: Path, new: Path) -> None:
    write_old(old / "shard-10.h5", make_rows(1))
    result = run_cli("data_pipeline.rechunk", old, new)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{new}: {ROWS + 2} rows, equal to those of {old}\n"
    for line in ("shard-3.h5 (1 of 2): rows converted: 9", "shard-10.h5 (2 of 2): rows verified: 2"):
        assert line in result.stderr
    (new / "shard-3.h5").unlink()
    kept = (new / "shard-10.h5").stat().st_mtime_ns
    result = run_cli("data_pipeline.rechunk", old, new)
    assert "shard-10" not in result.stderr
    assert (new / "shard-10.h5").stat().st_mtime_ns == kept
    assert_converted(old / "shard-3.h5", new / "shard-3.h5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{old}"], ["usage"]),
        (["{old}/none.h5", "{new}"], ["none.h5", "does not exist"]),
        (["{new}", "{old}"], ["{new}", "does not exist"]),
        (["{old}", "{old}"], ["is the source itself"]),
        (["{old}/shard-3.h5", "{old}/../old"], ["is the source itself"]),
        (["{old}", "/proc/nowhere"], ["/proc/nowhere"]),
        (["{old}", "{new}", "--spec=serum"], ["serum", "surge_simple"]),
        (["{old}", "{new}", "--spec=surge_xt"], ["92 columns", "300"]),
    ],
)
def test_wrong_usage_is_one_line(old: Path, new: Path, arguments: list[str], words: list[str]) -> None:
    filled = [argument.format(old=old, new=new) for argument in arguments]
    result = run_cli("data_pipeline.rechunk", *filled)
    assert_usage_error(result, *(word.format(new=new) for word in words))
    assert not list(new.glob("*"))
    assert [path.name for path in old.iterdir()] == ["shard-3.h5"]


def test_splits_are_refused(data_set: Path, new: Path) -> None:
    with pytest.raises(UserError, match="is a split"):
        rechunk(data_set / "train.h5", new)


@pytest.mark.parametrize("other", ["rows", "count", "spec", "old format"])
def test_target_that_holds_something_else_is_refused(old: Path, new: Path, other: str) -> None:
    rechunk(old / "shard-3.h5", new)
    if other == "old format":
        shutil.copy(old / "shard-3.h5", new)
    elif other == "spec":
        with h5py.File(new, "r+") as file:
            file.attrs["spec_hash"] = "0"
    else:
        write_old(old / "shard-3.h5", uneven_rows(1, ROWS + (other == "count")))
    before = new.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        rechunk(old / "shard-3.h5", new)
    assert new.read_bytes() == before


@pytest.mark.parametrize("name", list(ROW_SHAPES))
def test_verification_finds_a_single_bit(old: Path, new: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish_and_damage(shard: module.PartialShard) -> None:
        honest_finish(shard)
        with h5py.File(shard.path, "r+") as file:
            row = file[name][5]
            row.view(f"u{row.itemsize}").flat[-1] ^= 1
            file[name][5] = row

    honest_finish = module.PartialShard.finish
    with monkeypatch.context() as patched:
        patched.setattr(module.PartialShard, "finish", finish_and_damage)
        with pytest.raises(UserError, match=f"row 5 of {name} is not that of .*start again"):
            rechunk(old, new)
    assert not list(new.iterdir())
    rechunk(old, new)
    assert_converted(old / "shard-3.h5", new / "shard-3.h5")


def test_damaged_source_stops_with_its_row_named(old: Path, new: Path) -> None:
    source = old / "shard-3.h5"
    with h5py.File(source) as file:
        offsets = [file[MEL_SPEC].id.get_chunk_info(i).byte_offset for i in range(file[MEL_SPEC].id.get_num_chunks())]
    with source.open("r+b") as file:
        file.seek(max(offsets))
        file.write(bytes(64))
    with pytest.raises(UserError, match=r"shard-3.h5: rows? \d+.* of /mel_spec cannot be read"):
        rechunk(old, new)
    assert not (new / "shard-3.h5").exists()


def run_until(old: Path, new: Path, condition: str, action: str, prefix: str = "") -> subprocess.CompletedProcess:
    """Runs the command in batches of two rows; does ``action`` when ``condition`` holds at a step of its work.

    ``step`` is one of "commit 1", "commit 2", ... (done), "write" (the shard is being written), "log" (it is written),
    "verify", "rename".
    """
    script = f"""
import itertools, os, signal, sys
from pathlib import Path
from data_pipeline.rechunk import main
from data_pipeline.console import atomic
from data_pipeline.shards import partial_shard, rechunk
from data_pipeline.console.cli import fail, UserError
def at(step):
    if {condition}:
        {action}
def before(step, function):
    return lambda *arguments, **named: (at(step), function(*arguments, **named))[1]
def commit(*arguments):
    honest_commit(*arguments)
    at(f"commit {{next(commits)}}")
rechunk.BATCH_ROWS = 2
commits, honest_commit = itertools.count(1), rechunk.PartialShard.commit
rechunk.PartialShard.commit = commit
partial_shard.seal = before("write", partial_shard.seal)
partial_shard.RecordLog.remove = before("log", partial_shard.RecordLog.remove)
rechunk._first_difference = before("verify", rechunk._first_difference)
rechunk.os.replace = before("rename", os.replace)
try:
    main(["rechunk", {str(old)!r}, {str(new)!r}])
except UserError as error:
    fail(error)
"""
    defined = "from absl import flags; flags.DEFINE_string('spec', None, ''); flags.FLAGS(['rechunk'])"
    return subprocess.run(
        ["bash", "-c", f'{prefix}exec "$0" -c "$1"', sys.executable, defined + script],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize("step", ["commit 1", "commit 3", "write", "log", "verify", "rename"])
def test_killed_run_goes_on_where_it_stopped(
    old: Path, new: Path, step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_until(old, new, f"step == {step!r}", KILL).returncode == -signal.SIGKILL
    assert not (new / "shard-3.h5").exists()
    encoded = []
    honest_commit = module.PartialShard.commit

    def count(shard: module.PartialShard, batch: module.RenderedBatch, *synth: str) -> None:
        encoded.extend(batch.rows)
        honest_commit(shard, batch, *synth)

    monkeypatch.setattr(module.PartialShard, "commit", count)
    assert rechunk(old, new) == ROWS
    assert len(encoded) == {"commit 1": 7, "commit 3": 3}.get(step, 0)
    assert_converted(old / "shard-3.h5", new / "shard-3.h5")
    assert [path.name for path in new.iterdir()] == ["shard-3.h5"]
    assert "rows verified: 9" in capsys.readouterr().err


def test_resumed_shard_is_the_same_file(old: Path, new: Path) -> None:
    run_until(old, new, "step == 'commit 2'", KILL)
    rechunk(old, new)
    rechunk(old, new.parent / "whole")
    # HDF5 writes no times into these files.
    assert (new / "shard-3.h5").read_bytes() == (new.parent / "whole" / "shard-3.h5").read_bytes()


def test_interrupted_run_says_how_to_go_on(old: Path, new: Path) -> None:
    result = run_until(old, new, "step == 'commit 2'", "raise KeyboardInterrupt")
    assert result.returncode == 130
    assert result.stderr == "error: interrupted: what is converted is safe, the same command goes on\n"
    assert log_path(new / "shard-3.h5.unverified").exists()


def test_source_that_changed_meanwhile_is_noticed(old: Path, new: Path) -> None:
    run_until(old, new, "step == 'commit 2'", KILL)
    os.utime(old / "shard-3.h5", (1, 1))
    with pytest.raises(UserError, match=r"was begun with source_file .* or remove it"):
        rechunk(old, new)


def test_two_runs_on_one_shard(old: Path, new: Path) -> None:
    new.mkdir()
    first_run = RecordLog(log_path(new / "shard-3.h5.unverified"))
    with pytest.raises(UserError, match="another run"):
        rechunk(old, new)
    first_run.close()
    rechunk(old, new)
    assert_converted(old / "shard-3.h5", new / "shard-3.h5")


def test_full_disk_stops_with_committed_rows_safe(old: Path, new: Path) -> None:
    """A limit on file size stands for the full disk."""
    result = run_until(old, new, "False", "pass", prefix="ulimit -f 4000; ")
    assert_usage_error(result, "4 of its 9 rows are safe", "the same command goes on")
    assert log_path(new / "shard-3.h5.unverified").stat().st_size > 3_000_000
    assert not (new / "shard-3.h5").exists()
    rechunk(old, new)
    assert_converted(old / "shard-3.h5", new / "shard-3.h5")
    assert [path.name for path in new.iterdir()] == ["shard-3.h5"]


def test_disk_that_fills_up_as_the_shard_is_written_loses_no_row(old: Path, new: Path) -> None:
    shrink = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))"
    result = run_until(old, new, "step == 'commit 5'", shrink)
    assert_usage_error(result, "cannot write", "shard-3.h5.unverified: File too large")
    assert [path.name for path in new.iterdir()] == ["shard-3.h5.unverified.partial"]
    rechunk(old, new)
    assert_converted(old / "shard-3.h5", new / "shard-3.h5")
