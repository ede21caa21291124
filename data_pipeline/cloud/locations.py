"""The protocol of places that hold files: local folders and prefixes of buckets. Checksums of files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why

BLOCK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A file of a location.

    Args:
      key: the name below the location, with slashes.
      version: a text that changes with the content.
      checksum: ``algorithm:hex``; None if listing does not return it.
    """

    key: str
    size: int
    version: str
    checksum: str | None = None


class Sink(Protocol):
    """The file that a download writes to."""

    def write(self, block: bytes, /) -> object: ...


class Source(Protocol):
    """The file that an upload reads."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...

    def close(self) -> None: ...


class Location(Protocol):
    """A place to read files from. All methods raise UserError, or TransientError if another attempt may succeed."""

    @property
    def url(self) -> str:
        """The name of the location."""

    def below(self, name: str) -> Location:
        """The location ``name`` below this one."""

    def entries(self) -> list[Entry]:
        """All files, sorted by key; none if the folder is missing."""

    def checksum(self, entry: Entry) -> str | None:
        """The checksum of a file, ``algorithm:hex``; None if unknown."""

    def download(self, entry: Entry, sink: Sink, offset: int) -> None:
        """Writes a file's bytes from ``offset`` on. Raises UserError if the file was replaced since it was listed."""


class CloudLocation(Location, Protocol):
    """A place in a bucket, to which files can also be written."""

    algorithm: str

    def __init__(self, bucket: str, prefix: str) -> None: ...

    def below(self, name: str) -> CloudLocation: ...

    def upload(self, source: Source, key: str, size: int, checksum: str) -> None:
        """Stores ``size`` bytes, whole or not at all. Their checksum is verified by the server or stored with them."""

    def delete(self, key: str) -> None:
        """Removes a file, if it exists."""

    def make_bucket(self, region: str | None) -> None:
        """Makes the bucket."""

    @classmethod
    def bucket_names(cls) -> list[str]:
        """The buckets that the credentials may list."""


def check_key(key: str, url: str) -> None:
    """Raises UserError for a key that, as a path, leads out of its folder."""
    if "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise UserError(f"{url}: the name {key!r} would lead out of the folder it belongs to: rename or remove it")


def file_checksum(path: Path, algorithm: str, moved: Callable[[int], object]) -> str:
    """The checksum of a file, ``algorithm:hex``; ``moved`` is called with the size of every block that was read.

    Raises UserError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return stream_checksum(file, path.stat().st_size, algorithm, moved)
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}") from error


def has_checksum(path: Path, checksum: str, moved: Callable[[int], object]) -> bool:
    """Whether a file has this checksum. Raises UserError as ``file_checksum`` does."""
    return file_checksum(path, checksum.partition(":")[0], moved) == checksum


def stream_checksum(file: Source, size: int, algorithm: str, moved: Callable[[int], object]) -> str:
    """The checksum of the next ``size`` bytes of an open file, or of all that are left."""
    if algorithm == "crc32c":
        import google_crc32c  # Installed with the extra [gcs].

        digest: Any = google_crc32c.Checksum()
    else:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    while block := file.read(min(BLOCK, size)):
        digest.update(block)
        size -= len(block)
        moved(len(block))
    return f"{algorithm}:{digest.digest().hex()}"
