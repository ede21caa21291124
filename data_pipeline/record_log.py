"""A file that only grows, by records that are whole or not there: after a crash, of the machine too, it holds every
record whose ``append`` returned. One process at a time may have it open.

A record is a header (magic, CRC-32 and length of what follows) and a payload of bytes.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.cli import UserError

_HEADER = struct.Struct("<4sIQ")
_MAGIC = b"SJp1"


class RecordLog:
    """An open, locked log. Raises UserError where it cannot be opened, or is open in another process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open_locked(path)
        self._end = 0

    @property
    def empty(self) -> bool:
        """Whether no record has been read or appended."""
        return self._end == 0

    def recover(self) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, payload) of every whole record, once after opening, then cuts off what a crash left."""
        size = os.fstat(self._descriptor).st_size
        while len(header := self.read(self._end, _HEADER.size)) == _HEADER.size:
            magic, checksum, length = _HEADER.unpack(header)
            offset = self._end + _HEADER.size
            if magic != _MAGIC and self.empty:
                raise UserError(f"{self.path} is no log of this program: remove it, or choose another --output")
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
        """Appends a record, on the disk when this returns, and returns the payload's offset.

        Raises OSError, with the log as it was, where it cannot be written.
        """
        record = _HEADER.pack(_MAGIC, zlib.crc32(payload), len(payload)) + payload
        try:
            written = 0
            while written < len(record):
                written += os.pwrite(self._descriptor, memoryview(record)[written:], self._end + written)
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(record)
        return self._end - len(payload)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an offset; fewer where the file ends."""
        parts = []
        while size and (part := os.pread(self._descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Lets go of the file and its lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Removes the file, and lets go of it."""
        self.path.unlink(missing_ok=True)
        self.close()


def _open_locked(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have removed it in between: then this lock guards nothing.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
        reason = "was finished by another run just now: start again"
    except FileNotFoundError:
        reason = "was finished by another run just now: start again"
    except BlockingIOError:
        reason = "is being written by another run: wait for it, or choose other --shards"
    except OSError as error:
        reason = f"cannot be locked: {error.strerror}"
    os.close(descriptor)
    raise UserError(f"{path} {reason}")
