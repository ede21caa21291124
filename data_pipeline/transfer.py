"""One file to or from a location: attempted again, continued, verified, and named when it is whole."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from data_pipeline.atomic import make_folder
from data_pipeline.checksums import file_checksum, stream_checksum
from data_pipeline.cli import UserError
from data_pipeline.locations import CloudLocation, Entry, Location
from data_pipeline.meter import Meter
from data_pipeline.storage_errors import DamagedError, TransientError
from data_pipeline.storage_local import PART_SUFFIX

# Hexadecimal digits that tell versions of a file apart.
IDENTITY_LENGTH = 12
# Seconds before each further attempt.
PAUSES = (0.5, 1.0, 2.0, 4.0)


def upload(path: Path, location: CloudLocation, key: str, meter: Meter) -> None:
    """Stores a file as it is now; what is appended to it meanwhile, or put into its place, does not matter.

    Raises UserError where it cannot be read, or the server fails at every attempt.
    """

    def attempt() -> None:
        file.seek(0)
        checksum = stream_checksum(file, size, location.algorithm, lambda count: meter.moved(0))
        file.seek(0)
        location.upload(_MeteredSource(file, size, meter), key, size, checksum)

    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _persist(attempt, meter)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def download(location: Location, entry: Entry, target: Path, meter: Meter) -> None:
    """Brings a file here. It gets its name when it is whole, verified and on disk; until then a part waits to go on.

    Raises UserError where it cannot be written, DamagedError where what arrived is not what is stored, with nothing
    left of it.
    """
    part = part_path(location, entry, target)
    make_folder(target.parent)
    try:
        with part.open("ab") as file:
            _persist(lambda: _continue(location, entry, part, file, meter), meter)
            os.fsync(file.fileno())
        os.replace(part, target)
        for stale in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * IDENTITY_LENGTH}{PART_SUFFIX}"):
            stale.unlink()  # Of versions that were there before.
    except DamagedError:
        part.unlink()
        raise
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error


def part_path(location: Location, entry: Entry, target: Path) -> Path:
    """Where the beginning of this version of a file waits for its end."""
    identity = hashlib.sha256(f"{location.url}\0{entry.key}\0{entry.version}".encode()).hexdigest()
    return target.with_name(f".{target.name}.{identity[:IDENTITY_LENGTH]}{PART_SUFFIX}")


def _continue(location: Location, entry: Entry, part: Path, file: BinaryIO, meter: Meter) -> None:
    """Appends to the part what it lacks, and verifies it; where it was begun earlier a fault may be of that time."""
    start = file.seek(0, os.SEEK_END)
    if start < entry.size:
        location.download(entry, _MeteredSink(file, meter), start)
        file.flush()
    size = file.tell()
    if size < entry.size:
        raise TransientError(f"{location.url}/{entry.key}: broke off after {size} of {entry.size} bytes: run it again")
    expected = location.checksum(entry)
    if size == entry.size and (
        expected is None or file_checksum(part, expected.partition(":")[0], lambda count: meter.moved(0)) == expected
    ):
        return
    file.truncate(0)
    kind = TransientError if start else DamagedError
    raise kind(
        f"{location.url}/{entry.key}: what arrived is not what was stored, and is removed: run it again, and if that "
        "does not help upload it anew"
    )


def _persist(attempt: Callable[[], None], meter: Meter) -> None:
    """Makes a few attempts, further and further apart, as long as they fail for reasons that may pass."""
    for pause in PAUSES:
        try:
            return attempt()
        except TransientError:
            meter.pause(pause)
    attempt()


class _MeteredSink:
    def __init__(self, file: BinaryIO, meter: Meter) -> None:
        self._file, self._meter = file, meter

    def write(self, block: bytes) -> None:
        self._meter.moved(len(block))
        self._file.write(block)


class _MeteredSource:
    """The first ``size`` bytes of an open file, as a file; counts each byte once, however often it is read."""

    def __init__(self, file: BinaryIO, size: int, meter: Meter) -> None:
        self._file, self._size, self._meter = file, size, meter
        self._counted = 0

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._file.tell()
        block = self._file.read(left if size is None or size < 0 else min(size, left))
        self._meter.moved(max(self._file.tell() - self._counted, 0))
        self._counted = max(self._counted, self._file.tell())
        return block

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._size}[whence]
        return self._file.seek(start + offset)

    def close(self) -> None:
        """Some libraries close what they have sent. The file stays open, for the next attempt."""
