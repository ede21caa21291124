"""Files that only grow. After a crash they hold every entry whose append returned; what a crash cut off is dropped.

Two formats, because their users differ. ``RecordLog``: binary records with a checksum, for one process that reads
them back by offset. JSON lines: text that people and other programs read, and that several processes may append to.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.console.atomic import flush_to_disk, remove_leftover
from data_pipeline.console.cli import UserError
from data_pipeline.console.file_lock import names_file, try_lock
from data_pipeline.console.os_errors import why

_HEADER = struct.Struct("<4sIQ")
_MAGIC = b"SJp1"


def append_json_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Appends an object as one line, which is on the disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        line = (("\n" if torn else "") + json.dumps(entry) + "\n").encode()
        # One write, so that processes do not mix their lines. The system shortens it only if the disk is full.
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line. Lines that hold no object are left out; a missing file holds none.

    Raises UserError if the file cannot be read.
    """
    entries = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {why(error)}") from error
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


class RecordLog:
    """An open log of binary records, locked: one process at a time may have it open.

    A record is a header (magic, CRC-32 and length of the payload) and the payload. Raises UserError if the file cannot
    be opened, or is open in another process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open_locked(path)
        self._end = 0

    @property
    def empty(self) -> bool:
        """Whether no record has been read or appended."""
        return self._end == 0

    def recover(self) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, payload) of every whole record, then cuts off the rest. To be called once after opening."""
        size = os.fstat(self._descriptor).st_size
        while len(header := self.read(self._end, _HEADER.size)) == _HEADER.size:
            magic, checksum, length = _HEADER.unpack(header)
            offset = self._end + _HEADER.size
            if magic != _MAGIC and self.empty:
                raise UserError(f"{self.path} is no log of this program: remove it, or name another output")
            if magic != _MAGIC or length > size - offset:
                break
            payload = self.read(offset, length)
            if zlib.crc32(payload) != checksum:
                break
            yield offset, payload
            self._end = offset + length
        if self._end < size:
            print(f"{self.path}: its last {size - self._end} bytes were not whole and are dropped", file=sys.stderr)
        os.ftruncate(self._descriptor, self._end)

    def append(self, payload: bytes) -> int:
        """Appends a record, which is on the disk when this returns. Returns the payload's offset.

        Raises OSError, with the log unchanged, if the record cannot be written.
        """
        record = _HEADER.pack(_MAGIC, zlib.crc32(payload), len(payload)) + payload
        try:
            written = 0
            while written < len(record):
                written += os.pwrite(self._descriptor, memoryview(record)[written:], self._end + written)
            flush_to_disk(self._descriptor)
        except OSError:
            with suppress(OSError):  # What is not cut off here, ``recover`` drops.
                os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(record)
        return self._end - len(payload)

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from an offset on; fewer if the file ends before. Raises UserError if it cannot be read."""
        parts = []
        try:
            while size and (part := os.pread(self._descriptor, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {why(error)}") from error
        return b"".join(parts)

    def close(self) -> None:
        """Closes and unlocks the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Removes the file and closes it."""
        remove_leftover(self.path)
        self.close()


def _open_locked(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {path}: {why(error)}") from error
    try:
        if not try_lock(descriptor):
            reason = "is being written by another run: wait for it, or write other files"
        elif names_file(path, descriptor):
            return descriptor
        else:
            reason = "was finished by another run just now: start again"
    except OSError as error:
        reason = f"cannot be locked: {why(error)}"
    os.close(descriptor)
    raise UserError(f"{path} {reason}")
