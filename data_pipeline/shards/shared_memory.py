"""Arrays that the processes of one machine share.

Their memory is an anonymous file (memfd_create), which the other processes open in /proc. Such a file leaves no name
behind, does not use /dev/shm, which is small in containers, and is freed with the last process.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data_pipeline.console.cli import UserError

NAME = "synthjax"
# Missing in a Python that was built for old versions of Linux.
CAN_SHARE = hasattr(os, "memfd_create")


class Neighbours(Protocol):
    """The processes of a machine that share memory, numbered by rank from 0."""

    @property
    def rank(self) -> int:
        """The rank of this process."""
        ...

    @property
    def count(self) -> int:
        """The number of processes."""
        ...

    def exchange(self, word: int) -> Sequence[int]:
        """Sends a number to all processes and returns the numbers of all, by rank. Waits for all."""
        ...


class Alone:
    """The neighbours of a process that shares no memory."""

    rank, count = 0, 1

    def exchange(self, word: int) -> Sequence[int]:
        """The number itself."""
        return [word]


ALONE = Alone()


def shared_array(shape: tuple[int, ...], dtype: DTypeLike, neighbours: Neighbours) -> NDArray[Any]:
    """One uninitialised array for all neighbours, which call this together.

    Raises:
      UserError: if they cannot share memory.
    """
    if neighbours.count == 1:
        return np.empty(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    made = _make(size) if neighbours.rank == 0 else -1
    maker, descriptor = neighbours.exchange(os.getpid())[0], neighbours.exchange(made)[0]
    memory = _map(f"/proc/{maker}/fd/{descriptor}", size)
    neighbours.exchange(0)  # Waits until all have opened it.
    if made >= 0:
        os.close(made)
    return np.frombuffer(memory, dtype).reshape(shape)


def _make(size: int) -> int:
    with _refusal_in_one_line():
        descriptor = os.memfd_create(NAME)
        os.ftruncate(descriptor, size)
        return descriptor


def _map(path: str, size: int) -> mmap.mmap:
    with _refusal_in_one_line():
        descriptor = os.open(path, os.O_RDWR)
        try:
            if not os.readlink(path).startswith(f"/memfd:{NAME}"):
                raise OSError(errno.ENXIO, f"{path} is another file")
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)


@contextmanager
def _refusal_in_one_line() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # mmap raises ValueError for a file that is too short.
        raise UserError(
            f"data.cache: the processes of this machine cannot share memory ({error}): start one of them for all its "
            "devices, or set --config.data.cache=none"
        ) from error
