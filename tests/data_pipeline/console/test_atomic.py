"""Files written whole: what only adds safety may fail, and clean-up does not hide an error."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.console import atomic
from data_pipeline.console.append_log import append_json_line
from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from tests.helpers import REPOSITORY


@pytest.fixture(autouse=True)
def no_note_before() -> None:
    atomic._note_unsafe.cache_clear()


def failing_fsync(code: int, fails: Callable[[int], bool]) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        if fails(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    return fsync


def write(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("new")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO, errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_noted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing_fsync(code, stat.S_ISDIR))
    for name in ("a", "b"):
        write(tmp_path / name)
        assert (tmp_path / name).read_text() == "new"
    reason = os.strerror(code)
    note = f"note: the folder {tmp_path} cannot be flushed to disk ({reason}): a power cut may undo the last writes\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_files_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing_fsync(code, stat.S_ISREG))
    write(tmp_path / "a")
    append_json_line(tmp_path / "log", {"step": 1})
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "log").read_text() == '{"step": 1}\n'
    assert capsys.readouterr().err.count("note: files cannot be flushed") == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_content_that_the_disk_has_lost_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", failing_fsync(code, stat.S_ISREG))
    with pytest.raises(UserError, match=f"cannot write .*a: {os.strerror(code)}"):
        write(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_cleaning_up_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(self: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a"):
        raise ZeroDivisionError


ON_A_READ_ONLY_MOUNT = """
mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} || exit 77
{python} -m data_pipeline.stats {folder}/splits --allow_external
test $? = 2 || exit 1
{python} -m data_pipeline.splits {folder}/shards {folder}/splits --train_shards=0 --test_shards=10
test $? = 2 || exit 1
"""


def test_a_read_only_mount_ends_commands_in_one_line(data_set: Path) -> None:
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    folder = data_set.parent
    script = ON_A_READ_ONLY_MOUNT.format(folder=folder, python=sys.executable)
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("needs the right to mount")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert len(errors) == 2
    assert all("Read-only file system: write to another folder" in error for error in errors)
