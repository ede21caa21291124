"""A log keeps whole records and nothing else, whatever a crash, a full disk or another process does to it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.console import append_log
from data_pipeline.console.append_log import RecordLog, append_json_line, read_json_lines
from data_pipeline.console.cli import UserError

FIRST, SECOND, THIRD = b"first" * 20, b"second", b"the third record"


def recovered(path: Path) -> list[bytes]:
    log = RecordLog(path)
    try:
        return [payload for _, payload in log.recover()]
    finally:
        log.close()


def filled(path: Path, *payloads: bytes) -> Path:
    log = RecordLog(path)
    for payload in payloads:
        log.append(payload)
    log.close()
    return path


def open_files(folder: Path) -> set[str]:
    """Of this process, below a folder."""
    targets = {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    return {target for target in targets if Path(target).is_relative_to(folder)}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(0, 6))
def test_what_is_appended_is_recovered(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], first_run: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    filled(path, *payloads[:first_run])
    log = RecordLog(path)
    assert [payload for _, payload in log.recover()] == payloads[:first_run]
    offsets = [log.append(payload) for payload in payloads[first_run:]]
    assert [
        log.read(offset, len(payload)) for offset, payload in zip(offsets, payloads[first_run:], strict=True)
    ] == payloads[first_run:]
    log.close()
    assert recovered(path) == payloads


def test_recover_tells_where_payloads_are(tmp_path: Path) -> None:
    log = RecordLog(filled(tmp_path / "log", FIRST, SECOND))
    for offset, payload in log.recover():
        assert log.read(offset, len(payload)) == payload
    log.close()


def test_empty_is_a_log_without_records(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "log")
    assert list(log.recover()) == []
    assert log.empty
    log.append(b"")
    assert not log.empty
    log.close()
    log = RecordLog(tmp_path / "log")
    assert list(log.recover()) == [(append_log._HEADER.size, b"")]
    assert not log.empty
    log.close()


def test_tail_torn_at_any_byte_is_cut_off(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", FIRST, SECOND)
    whole = len(path.read_bytes())
    content = filled(path.with_name("longer"), FIRST, SECOND, THIRD).read_bytes()
    for length in range(whole, len(content)):
        path.write_bytes(content[:length])
        assert recovered(path) == [FIRST, SECOND], length
        assert path.stat().st_size == whole
        log = RecordLog(path)
        list(log.recover())
        log.append(SECOND)
        log.close()
        assert recovered(path) == [FIRST, SECOND, SECOND], length


def test_any_flipped_byte_of_the_last_record_is_noticed(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", FIRST, SECOND)
    whole = len(path.read_bytes())
    content = filled(path.with_name("longer"), FIRST, SECOND, THIRD).read_bytes()
    for position in range(whole, len(content)):
        for flip in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            assert recovered(path) == [FIRST, SECOND], position


def test_nothing_behind_a_damaged_record_is_believed(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", FIRST, SECOND, THIRD)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(SECOND)] ^= 1
    path.write_bytes(damaged)
    assert recovered(path) == [FIRST]
    assert recovered(path) == [FIRST]


def test_torn_beginning_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for content in (b"", b"SJp1", b"SJp1" * 5000):
        path.write_bytes(content)
        assert recovered(path) == []


def test_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for content in (b"\0" * 4096, b"SJp2" * 16, b"\x89HDF\r\n\x1a\n" * 8):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no log of this program"):
            recovered(path)
        assert path.read_bytes() == content


def append_fails(log: RecordLog, content: bytes) -> None:
    with pytest.raises(OSError, match="No space left"):
        log.append(THIRD)
    assert log.path.read_bytes() == content
    assert log.read(append_log._HEADER.size, len(FIRST)) == FIRST


def test_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "log", FIRST, SECOND)
    content = path.read_bytes()
    log = RecordLog(path)
    list(log.recover())
    pwrite = os.pwrite
    for taken in range(1, len(THIRD) + append_log._HEADER.size):
        room = [taken]

        def write_a_part(descriptor: int, data: bytes, offset: int, room: list[int] = room) -> int:
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(descriptor, data[: room.pop()], offset)

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", write_a_part)
            append_fails(log, content)
    log.append(THIRD)  # There is room again.
    log.close()
    assert recovered(path) == [FIRST, SECOND, THIRD]


def test_record_that_does_not_reach_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "log", FIRST)
    content = path.read_bytes()
    log = RecordLog(path)
    list(log.recover())

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        append_fails(log, content)
    log.close()
    assert recovered(path) == [FIRST]


def test_record_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes, fsync = tmp_path / "log", [], os.fsync
    log = RecordLog(path)

    def note(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    ends = [log.append(payload) + len(payload) for payload in (FIRST, SECOND)]
    log.close()
    assert sizes == ends


def test_short_reads_and_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:7], offset))
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: pread(descriptor, min(size, 5), offset))
    path = filled(tmp_path / "log", FIRST, SECOND)
    assert recovered(path) == [FIRST, SECOND]


def test_reading_ends_with_the_file(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "log")
    offset = log.append(SECOND)
    assert log.read(offset + 2, 1000) == SECOND[2:]
    assert log.read(10**9, 5) == b""
    log.close()


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RecordLog(path)
    with pytest.raises(UserError, match="is being written by another run: wait for it, or write other files"):
        RecordLog(path)
    log.append(FIRST)
    log.close()
    assert recovered(path) == [FIRST]


def test_refused_owner_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RecordLog(path)
    log.append(FIRST)
    for _ in range(2):  # Letting go of a refused descriptor must not let go of the lock.
        with pytest.raises(UserError):
            RecordLog(path)
    log.append(SECOND)
    log.close()
    assert recovered(path) == [FIRST, SECOND]


@pytest.mark.parametrize("recreated", [False, True])
def test_log_removed_between_opening_and_locking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recreated: bool
) -> None:
    """Its owner finished just then: this lock is on a file that nobody else can find."""
    path, flock = filled(tmp_path / "log", FIRST), fcntl.flock

    def finish_first(descriptor: int, operation: int) -> None:
        path.unlink()
        if recreated:
            path.write_bytes(b"")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with pytest.raises(UserError, match="finished by another run"):
        RecordLog(path)
    assert not open_files(tmp_path)
    assert path.exists() == recreated


def test_a_log_that_the_disk_does_not_return_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "log", FIRST)

    def failing(*arguments: object, **options: object) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(UserError, match=r"log cannot be read: Input/output error: .*mount"):
        recovered(path)
    monkeypatch.setattr(Path, "read_text", failing)
    with pytest.raises(UserError, match=r"log cannot be read: Input/output error: .*mount"):
        read_json_lines(path)


def test_the_error_before_a_failing_clean_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RecordLog(tmp_path / "log")

    def failing(code: int) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            raise OSError(code, os.strerror(code))

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", failing(errno.ENOSPC))
        patched.setattr(os, "ftruncate", failing(errno.EIO))
        with pytest.raises(OSError, match="No space left"):
            log.append(FIRST)
    log.append(SECOND)
    log.close()
    assert recovered(tmp_path / "log") == [SECOND]


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match="cannot be locked: No locks available"):
        RecordLog(tmp_path / "log")
    assert not open_files(tmp_path)


@pytest.mark.parametrize("place", [lambda folder: folder, lambda folder: folder / "missing" / "log"])
def test_log_that_cannot_be_opened(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match="cannot write"):
        RecordLog(place(tmp_path))


def test_closing_and_removing_may_be_repeated(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "log")
    log.append(FIRST)
    log.remove()
    assert not log.path.exists()
    log.remove()
    log.close()
    other = RecordLog(tmp_path / "other")
    log.close()  # Not the descriptor that has the same number now.
    other.append(FIRST)
    other.close()
    assert recovered(other.path) == [FIRST]


def test_json_lines_are_read_back_without_torn_ones(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_json_lines(path) == []
    append_json_line(path, {"step": 1})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo')
    append_json_line(path, {"step": 3})
    path.write_bytes(path.read_bytes() + b"null\n\xff\n7\n")
    assert read_json_lines(path) == [{"step": 1}, {"step": 3}]


def test_json_line_that_is_written_in_part_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:5]))
    with pytest.raises(OSError, match="No space left"):
        append_json_line(tmp_path / "lines.jsonl", {"step": 1})
    assert read_json_lines(tmp_path / "lines.jsonl") == []
