"""Transfers one file to or from a location: repeats failed attempts, continues, verifies, then names the file."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from data_pipeline.cloud.errors import DamagedError, TransientError
from data_pipeline.cloud.local import PART_SUFFIX
from data_pipeline.cloud.locations import CloudLocation, Entry, Location, has_checksum, stream_checksum
from data_pipeline.cloud.parallel import Meter
from data_pipeline.console.atomic import flush_to_disk, make_folder, remove_leftover
from data_pipeline.console.cli import UserError, printable
from data_pipeline.console.os_errors import why

# Hexadecimal digits that identify a version of a file.
IDENTITY_LENGTH = 12
# Seconds before each further attempt.
PAUSES = (0.5, 1.0, 2.0, 4.0)


def upload(path: Path, location: CloudLocation, key: str, meter: Meter) -> None:
    """Stores a file as it is now. Later changes of the file have no effect.

    Raises UserError if it cannot be read, or if the server fails at every attempt.
    """
    if key != printable(key):
        raise UserError(f"{path}: its name is not UTF-8, which buckets need: rename it")

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
        raise UserError(f"cannot read {path}: {why(error)}") from error


def download(location: Location, entry: Entry, target: Path, meter: Meter) -> None:
    """Downloads a file. It gets its name when it is whole, verified and on disk; an interrupted part is kept.

    Raises UserError if it cannot be written, and DamagedError, with the part removed, if the checksum is wrong.
    """
    part = part_path(location, entry, target)
    make_folder(target.parent)
    try:
        with part.open("ab") as file:
            _persist(lambda: _continue(location, entry, part, file, meter), meter)
            flush_to_disk(file.fileno())
        os.replace(part, target)
        for stale in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * IDENTITY_LENGTH}{PART_SUFFIX}"):
            remove_leftover(stale)  # Parts of other versions.
    except DamagedError:
        remove_leftover(part)
        raise
    except OSError as error:
        raise UserError(f"cannot write {target}: {why(error)}") from error


def part_path(location: Location, entry: Entry, target: Path) -> Path:
    """The path of an incomplete download of this version of a file."""
    identity = hashlib.sha256(os.fsencode(f"{location.url}\0{entry.key}\0{entry.version}")).hexdigest()
    return target.with_name(f".{target.name}.{identity[:IDENTITY_LENGTH]}{PART_SUFFIX}")


def _continue(location: Location, entry: Entry, part: Path, file: BinaryIO, meter: Meter) -> None:
    """Appends the missing bytes to the part and verifies it. A damaged part of an earlier run is downloaded again."""
    start = file.seek(0, os.SEEK_END)
    if start < entry.size:
        location.download(entry, _MeteredSink(file, meter), start)
        file.flush()
    size = file.tell()
    if size < entry.size:
        raise TransientError(f"{location.url}/{entry.key}: broke off after {size} of {entry.size} bytes: run it again")
    expected = location.checksum(entry)
    if size == entry.size and (expected is None or has_checksum(part, expected, lambda count: meter.moved(0))):
        return
    file.truncate(0)
    kind = TransientError if start else DamagedError
    raise kind(
        f"{location.url}/{entry.key}: the downloaded file is damaged and is removed: run it again, and if that "
        "does not help, upload it again"
    )


def _persist(attempt: Callable[[], None], meter: Meter) -> None:
    """Repeats an attempt after TransientError, with growing pauses."""
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
    """The first ``size`` bytes of an open file, as a file. Bytes that are read again are counted once."""

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
        """Does nothing: some libraries close the file, but the next attempt needs it open."""
