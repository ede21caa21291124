"""Arrays that the processes of one machine hold together.

Their memory is an anonymous file (memfd_create) that its maker's neighbours open in /proc: it has no name that could be
left behind, is no part of /dev/shm, which containers keep small, and is gone with the last process, however that ends.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from data_pipeline.cli import UserError


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
    descriptor = os.memfd_create("synthjax")
    os.ftruncate(descriptor, size)
    return descriptor


def _map(path: str, size: int) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        raise UserError(
            f"data.cache: the processes of this machine cannot share memory ({error.strerror}): start one of them for "
            "all its devices, or set --config.data.cache=none"
        ) from error
    try:
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
