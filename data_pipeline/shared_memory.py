"""Arrays that the processes of one machine hold together.

Their memory is an anonymous file (memfd_create) that its maker's neighbours open in /proc: it has no name that could be
left behind, is no part of /dev/shm, which containers keep small, and is gone with the last process, however that ends.
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

from data_pipeline.cli import UserError

NAME = "synthjax"
# Linux has it, but Pythons that are built to run on old ones have not.
CAN_SHARE = hasattr(os, "memfd_create")


class Neighbours(Protocol):
    """The processes that hold memory together, each of which has a rank from 0."""

    @property
    def rank(self) -> int:
        """Which of them this is."""
        ...

    @property
    def count(self) -> int:
        """How many they are."""
        ...

    def tell(self, word: int) -> Sequence[int]:
        """What each of them tells, by rank; waits for all."""
        ...


class Alone:
    """The neighbours of a process that has none."""

    rank, count = 0, 1

    def tell(self, word: int) -> Sequence[int]:
        """The word."""
        return [word]


ALONE = Alone()


def shared_array(shape: tuple[int, ...], dtype: DTypeLike, neighbours: Neighbours) -> NDArray[Any]:
    """One array for all neighbours, who call this together; nothing is known of what it holds.

    Raises:
      UserError: if they cannot reach each other's memory.
    """
    if neighbours.count == 1:
        return np.empty(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    made = _make(size) if neighbours.rank == 0 else -1
    maker, descriptor = neighbours.tell(os.getpid())[0], neighbours.tell(made)[0]
    memory = _map(f"/proc/{maker}/fd/{descriptor}", size)
    neighbours.tell(0)  # Else it might be closed before all have it.
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
    except (OSError, ValueError) as error:  # mmap raises the latter for a file that is too short.
        raise UserError(
            f"data.cache: the processes of this machine cannot share memory ({error}): start one of them for all its "
            "devices, or set --config.data.cache=none"
        ) from error
