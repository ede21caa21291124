"""Checksums of files as ``algorithm:hex``; which algorithm is up to the place that stores the file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.cli import UserError

BLOCK = 1 << 20


class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int, /) -> bytes: ...


def file_checksum(path: Path, algorithm: str, moved: Callable[[int], object]) -> str:
    """The checksum of a file; ``moved`` hears of every block that was read.

    Raises UserError where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return stream_checksum(file, path.stat().st_size, algorithm, moved)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def stream_checksum(file: Readable, size: int, algorithm: str, moved: Callable[[int], object]) -> str:
    """The checksum of the next ``size`` bytes of an open file, or of those that are left."""
    if algorithm == "crc32c":
        import google_crc32c  # Comes with the extra that needs it.

        digest: Any = google_crc32c.Checksum()
    else:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    while block := file.read(min(BLOCK, size)):
        digest.update(block)
        size -= len(block)
        moved(len(block))
    return f"{algorithm}:{digest.digest().hex()}"
