"""One writer of a folder at a time, among the processes of a host."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_pipeline.atomic import make_folder
from data_pipeline.cli import UserError

LOCK_FILE = ".transfer.lock"


@contextmanager
def exclusive(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Holds a folder, which is made where it is missing; says so where another process holds it, and waits for that.

    The system frees what a killed process held. Raises UserError where the file system has no locks.
    """
    make_folder(folder)
    path = folder / LOCK_FILE
    try:
        file = _lock(path, say)
    except OSError as error:
        raise UserError(f"cannot lock {path}: {error.strerror}") from error
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def try_lock(file: IO[str]) -> bool:
    """Whether the file is this process's now; the system frees it when the process ends, however it does.

    Raises OSError where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(path: Path, say: Callable[[str], object]) -> IO[str]:
    while True:
        file = path.open("a")
        if not try_lock(file):
            say(f"waiting for another process that writes to {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        # The process before removed its lock file: who waited for it holds a file that nobody else will find.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()
