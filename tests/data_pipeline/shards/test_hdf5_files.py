"""Errors of the system are not told as damage, and no lock is needed to read or to write a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.shards.hdf5_files import new_hdf5, open_hdf5
from data_pipeline.shards.reader import ROW_SHAPES, ShardReader
from data_pipeline.shards.splits import write_splits
from data_pipeline.shards.virtual_sources import trace, virtual_sources
from tests.helpers import REPOSITORY, make_rows, preloaded, write

LIMIT = 48
SHARDS = 60


def test_too_many_open_files_are_no_damage(tmp_path: Path, at_the_limit_of_open_files: None) -> None:
    with pytest.raises(UserError, match=r"a\.h5: cannot be read: Too many open files: .*ulimit -n"):
        open_hdf5(tmp_path / "a.h5")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_sources_of_a_split_are_closed_once_checked(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, before, opened = 0, open_files(), h5py.File

    def counting(*arguments: object, **options: object) -> h5py.File:
        nonlocal most
        file = opened(*arguments, **options)
        most = max(most, open_files() - before)
        return file

    monkeypatch.setattr(h5py, "File", counting)
    segments, faults = trace(data_set / "train.h5", tuple(ROW_SHAPES))
    assert (faults, {len(of_one) for of_one in segments.values()}) == ([], {3})
    assert most == 2  # The split and one shard.
    assert open_files() == before


UNDER_A_LIMIT = f"""
ulimit -n {LIMIT}
{sys.executable} -m data_pipeline.splits shards splits --train_shards=0-{SHARDS - 1} &&
{sys.executable} -m data_pipeline.stats splits &&
exec {sys.executable} -m data_pipeline.check splits
"""


def test_there_may_be_more_shards_than_open_files(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    rows = make_rows(0, rows=1)
    rows.audio[:], rows.mel_spec[:] = 0.5, -40.0
    first = write(tmp_path / "shards" / "shard-0.h5", rows)
    for number in range(1, SHARDS):
        shutil.copy(first, first.with_name(f"shard-{number}.h5"))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        ["sh", "-c", UNDER_A_LIMIT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert f"{SHARDS} rows: no faults" in result.stdout


# A file system without locks, as a preloaded flock.

NO_LOCKS = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
USES_FILES = """
import os, sys
from pathlib import Path
import numpy as np
from data_pipeline.shards.hdf5_files import new_hdf5
from data_pipeline.shards.reader import ShardReader
from data_pipeline.console.cli import UserError
for code in (37, 524, 5, 95):
    os.environ["FLOCK_ERRNO"] = str(code)
    reader = ShardReader(sys.argv[1])
    with new_hdf5(Path(sys.argv[2])) as file:
        file["row"] = reader.read("param_array", 0)
del reader
os.environ["FLOCK_ERRNO"] = "11"
try:
    ShardReader(sys.argv[1])
except UserError as error:
    print(error)
"""


def run_without_locks(script: str, folder: Path, *arguments: Path, **environment: str) -> str:
    """In the script every lock fails with $FLOCK_ERRNO."""
    variables = {**preloaded(NO_LOCKS, folder), **environment}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_file_system_without_locks_is_enough(shards: Path, tmp_path: Path) -> None:
    shard, copy = shards / "shard-0.h5", tmp_path / "row.h5"
    told = run_without_locks(USES_FILES, tmp_path, shard, copy)
    assert told == f"{shard}: is being written by another process\n"
    with h5py.File(copy) as file:
        np.testing.assert_array_equal(file["row"][:], make_rows(0).param_array[0])


def test_locks_that_the_user_asks_for_are_named(shards: Path, tmp_path: Path) -> None:
    """The variable overrules the program."""
    script = USES_FILES.replace("(37, 524, 5, 95)", "()").replace("del reader", "").replace('"11"', '"37"')
    environment = {"HDF5_USE_FILE_LOCKING": "TRUE"}
    told = run_without_locks(script, tmp_path, shards / "shard-0.h5", tmp_path / "row.h5", **environment)
    assert "cannot be locked: No locks available" in told
    assert "HDF5_USE_FILE_LOCKING=FALSE" in told


def test_a_file_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = f"import h5py; file = h5py.File({str(path)!r}, 'w'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(UserError, match="is being written by another process"):
            open_hdf5(path)
        process.kill()


def test_a_new_file_appears_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_hdf5(tmp_path / "a.h5"):
        raise ZeroDivisionError
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", [b"fl\xf6te", "Flöte 50%".encode()])
@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_the_folder_of_shards_may_have_any_name(tmp_path: Path, name: bytes, locale: dict[str, str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    folder.mkdir()
    write(tmp_path / "shard-0.h5", make_rows(0)).rename(folder / "shard-0.h5")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **locale}
    for command in ("splits {} splits --train_shards=0", "check splits/train.h5"):
        arguments = [part.encode() for part in command.split()]
        arguments = [os.fsencode(folder) if part == b"{}" else part for part in arguments]
        command_line = [sys.executable, "-m", f"data_pipeline.{arguments[0].decode()}", *arguments[1:]]
        result = subprocess.run(command_line, cwd=tmp_path, env=environment, capture_output=True, timeout=300)
        assert result.returncode == 0, result.stderr
    sources = virtual_sources(tmp_path / "splits" / "train.h5")
    assert {os.fsencode(source.file) for source in sources} == {b"../" + name + b"/shard-0.h5"}
    reader = ShardReader(tmp_path / "splits" / "train.h5")
    np.testing.assert_array_equal(reader.read("param_array", 1), make_rows(0).param_array[1])


def test_a_reader_closes_files_before_the_limit(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_splits(data_set.parent / "shards", data_set, {"train": [0, 1, 2], "test": [10]})
    monkeypatch.setattr("data_pipeline.shards.reader._most_open_files", lambda: 1)
    reader = ShardReader(data_set / "train.h5")
    before = open_files()
    for row in (0, 2, 4, 1):
        np.testing.assert_array_equal(reader.read("mel_spec", row), make_rows(row // 2).mel_spec[row % 2])
        assert open_files() == before + 1
