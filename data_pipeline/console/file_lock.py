"""Locks between the processes of a host. The system frees a lock when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_pipeline.console.atomic import make_folder, remove_leftover
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why

LOCK_FILE = ".transfer.lock"


@contextmanager
def exclusive(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Locks a folder, which is made if it is missing. If another process has the lock, says so and waits.

    Raises UserError if the file system has no locks.
    """
    make_folder(folder)
    path = folder / LOCK_FILE
    try:
        file = _wait_for_lock(path, say)
    except OSError as error:
        raise UserError(f"cannot lock {path}: {why(error)}") from error
    with file:
        try:
            yield
        finally:
            remove_leftover(path)


def try_lock(file: IO[str] | int) -> bool:
    """Locks an open file unless another process has the lock. Returns whether this process has it now.

    Raises OSError if the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder has locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def names_file(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still names this open file. If its last owner removed it, a lock on it guards nothing."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _wait_for_lock(path: Path, say: Callable[[str], object]) -> IO[str]:
    while True:
        file = path.open("a")
        if not try_lock(file):
            say(f"waiting for another process that writes to {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        if names_file(path, file.fileno()):
            return file
        file.close()
