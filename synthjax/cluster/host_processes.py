"""The processes of a run on this machine that can open each other's memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipeline.shards.shared_memory import CAN_SHARE

# Two processes can open each other's memory if they run on the same booted kernel, in the same namespaces of processes
# and of users (a container has its own), and as the same user.
BOOT, PROCESSES, USERS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid"), Path("/proc/self/ns/user")


class HostProcesses:
    """The ``shards.shared_memory.Neighbours`` of this process. All processes of the run create and use one together."""

    def __init__(self) -> None:
        places = _from_all(_place())
        self._members = np.flatnonzero((places == places[jax.process_index()]).all(axis=1))

    @property
    def rank(self) -> int:
        """The number of this process among them, from 0."""
        return int(np.searchsorted(self._members, jax.process_index()))

    @property
    def count(self) -> int:
        """The number of processes."""
        return len(self._members)

    def exchange(self, word: int) -> Sequence[int]:
        """Sends ``word`` to the others and returns the words of all by rank. Waits for all processes of the run."""
        return [int(sent) for sent in _from_all(np.array([word], np.int32))[self._members, 0]]


def _from_all(words: np.ndarray) -> np.ndarray:
    """The words (n,) of every process of the run: (processes, n)."""
    if jax.process_count() == 1:
        return words[None]
    return multihost_utils.process_allgather(words)


def _place() -> np.ndarray:
    """Words (4,) int32 that are equal in two processes if these can open each other's memory."""
    place = f"process {jax.process_index()}"  # Alone, if the system does not support it.
    with suppress(OSError):
        if CAN_SHARE:
            place = f"{BOOT.read_text(encoding='ascii')} {PROCESSES.readlink()} {USERS.readlink()} {os.getuid()}"
    return np.frombuffer(hashlib.sha256(place.encode()).digest()[:16], np.int32)
