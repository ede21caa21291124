"""Figures of each process: step time, data wait, accelerator memory.

Processes send them through the coordinator's key-value store, not by a collective operation: no process waits for
another. Process 0 reads the last figures of each, which are at most one logging interval old.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

import jax
import numpy as np

from synthjax.cluster import distributed

Figures = Mapping[str, float]
KEY = "synthjax/figures"
# A process delays the others if its data wait is more than this part of the step, and so many times the median.
STRAGGLING_PART, STRAGGLING_TIMES = 0.1, 3.0


def exchange(figures: Figures) -> dict[int, Figures]:
    """Sends this process's figures. Returns those of all processes on process 0, and this process's own elsewhere."""
    mine = jax.process_index()
    store = distributed.key_value_store()
    if store is None:
        return {mine: figures}
    store.key_value_set(f"{KEY}/{mine}", json.dumps(dict(figures)), allow_overwrite=True)
    found = {mine: figures}
    if mine == 0:
        with suppress(ValueError):
            found |= {int(key.rsplit("/", 1)[1]): json.loads(text) for key, text in store.key_value_dir_get(KEY)}
    return found


def accelerator_memory_gb() -> float | None:
    """The peak memory in GB of the fullest of this process's devices; None if they do not report it (CPUs)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return max(peaks) / 1e9 if peaks else None


def stragglers(figures: Mapping[int, Figures]) -> list[int]:
    """Processes whose slow data delays all others: every step needs all processes."""
    waits = {index: one["data_wait_seconds"] for index, one in figures.items()}
    usual = float(np.median(list(waits.values())))
    return [
        index
        for index, wait in waits.items()
        if wait > STRAGGLING_PART * figures[index]["step_seconds"] and wait > STRAGGLING_TIMES * usual
    ]
