"""What each process tells of itself: step time, data wait, accelerator memory.

Figures travel through the coordinator's key-value store, not by a collective operation: nobody waits for them, and
process 0 sees what every other one last left there, an interval late at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

import jax
import numpy as np

from synthjax import distributed

Figures = Mapping[str, float]
KEY = "synthjax/figures"
# A process whose data wait takes more than this part of the step, and so many times the median's, holds up the others.
STRAGGLING_PART, STRAGGLING_TIMES = 0.1, 3.0


def exchange(figures: Figures) -> dict[int, Figures]:
    """Leaves this process's figures; returns on process 0 those of all by process, on others their own."""
    mine = jax.process_index()
    store = distributed.key_value_store()
    if store is None:
        return {mine: figures}
    store.key_value_set(f"{KEY}/{mine}", json.dumps(dict(figures)), allow_overwrite=True)
    if mine != 0:
        return {mine: figures}
    found = {mine: figures}
    with suppress(ValueError):
        found |= {int(key.rsplit("/", 1)[1]): json.loads(text) for key, text in store.key_value_dir_get(KEY)}
    return found


def accelerator_memory_gb() -> float | None:
    """The most that any of this process's devices has held so far; None where they do not tell (CPUs)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return max(peaks) / 1e9 if peaks else None


def stragglers(figures: Mapping[int, Figures]) -> list[int]:
    """Processes that the others wait for, because they wait for data: all take part in every step."""
    waits = {index: one["data_wait_seconds"] for index, one in figures.items()}
    usual = float(np.median(list(waits.values())))
    return [
        index
        for index, wait in waits.items()
        if wait > STRAGGLING_PART * figures[index]["step_seconds"] and wait > STRAGGLING_TIMES * usual
    ]
