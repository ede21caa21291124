"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import UNSUPPORTED, why


def make_folder(path: Path) -> None:
    """Makes a folder and its parents. Raises UserError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {why(error)}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``. If the block succeeds, the temporary file replaces ``path``.

    On any error the temporary file is removed and ``path`` stays as it was. An error of the operating system (disk
    full, no permission) becomes a UserError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush_file(temporary)
        os.replace(temporary, path)
        can_flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {why(error)}") from error
    finally:
        remove_leftover(temporary)


def remove_leftover(path: Path) -> None:
    """Removes a file that nobody needs, if that is possible. An error here would hide the one that came before."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def flush_to_disk(descriptor: int) -> None:
    """Writes an open file to disk: without this a power cut may leave it empty. Raises OSError as ``flushing`` does."""
    with flushing():
        os.fsync(descriptor)


@contextmanager
def flushing() -> Iterator[None]:
    """For a block that writes a file to disk. A file system that cannot do so causes a note only.

    Raises OSError if the disk reports that the content is lost.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _note_unsafe("files", str(error.strerror))


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def can_flush_folder(path: Path) -> bool:
    """Writes the names in a folder to disk. Returns whether that is possible, and prints a note if it is not.

    No error: the files in it are whole and in place already.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _note_unsafe(f"the folder {path}", str(error.strerror))
        return False
    return True


@cache  # One note for all files.
def _note_unsafe(what: str, reason: str) -> None:
    print(f"note: {what} cannot be flushed to disk ({reason}): a power cut may undo the last writes", file=sys.stderr)
