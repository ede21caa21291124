"""Places that hold files by name, local folders and prefixes of buckets, behind one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from data_pipeline.cli import UserError


@dataclass(frozen=True)
class Entry:
    """A file of a location.

    Args:
      key: its name below the location, with slashes.
      version: changes whenever the content does.
      checksum: ``algorithm:hex``; None where listing does not tell it.
    """

    key: str
    size: int
    version: str
    checksum: str | None = None


class Sink(Protocol):
    """Where a download goes."""

    def write(self, block: bytes, /) -> object: ...


class Source(Protocol):
    """Where an upload comes from."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def tell(self) -> int: ...

    def close(self) -> None: ...


class Location(Protocol):
    """A place to read files from. Every method raises UserError, TransientError where another attempt may succeed."""

    @property
    def url(self) -> str:
        """Its name."""

    def below(self, name: str) -> Location:
        """The location ``name`` below this one."""

    def entries(self) -> list[Entry]:
        """Every file, sorted by key; none where the folder is not there."""

    def checksum(self, entry: Entry) -> str | None:
        """What is known of a file's content, ``algorithm:hex``."""

    def download(self, entry: Entry, sink: Sink, offset: int) -> None:
        """Writes a file's bytes from ``offset`` on, in order. Raises UserError if it was replaced since listed."""


class CloudLocation(Location, Protocol):
    """A place to write files to as well, in a bucket."""

    algorithm: str

    def __init__(self, bucket: str, prefix: str) -> None: ...

    def below(self, name: str) -> CloudLocation: ...

    def upload(self, source: Source, key: str, size: int, checksum: str) -> None:
        """Stores ``size`` bytes, whole or not at all; ``checksum`` of ``algorithm`` is verified or stored with them."""

    def delete(self, key: str) -> None:
        """Removes a file; one that is not there is no error."""

    def make_bucket(self, region: str | None) -> None:
        """Makes the bucket."""

    @classmethod
    def bucket_names(cls) -> list[str]:
        """The buckets that these credentials may list."""


def check_key(key: str, url: str) -> None:
    """Raises UserError for a key that, as a path, would lead out of the folder it is put into."""
    if "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise UserError(f"{url}: the name {key!r} would lead out of the folder it belongs to: rename or remove it")
