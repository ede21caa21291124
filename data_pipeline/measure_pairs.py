"""The audio metrics of many pairs of sounds, over the cores.

In threads: almost all of the work is done by NumPy and SciPy with Python's lock released, and threads start at once,
share the sounds, and import nothing, whoever the parent is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio_metrics import SoundFeatures

Key = TypeVar("Key")
# A sound (C, T), or its features where it is in many pairs.
Sound = NDArray[np.floating] | SoundFeatures


def measure(target: Sound, other: Sound) -> dict[str, float]:
    """All metrics of one pair, by name. Raises ValueError as ``SoundFeatures`` does."""
    return _features(target).compare(_features(other))


def measure_pairs(pairs: Iterable[tuple[Key, Sound, Sound]], workers: int) -> Iterator[tuple[Key, dict[str, float]]]:
    """Yields (key, metrics) of every (key, target, other), in order, measured on ``workers`` threads.

    Draws from ``pairs`` only a few ahead of what it yields, so that they need not fit in memory together. Raises
    ValueError as ``measure`` does, naming the pair's key.
    """
    pending: deque[tuple[Key, Future[dict[str, float]]]] = deque()
    executor = ThreadPoolExecutor(workers)
    try:
        for key, target, other in pairs:
            pending.append((key, executor.submit(measure, target, other)))
            if len(pending) > 2 * workers:
                yield _result(*pending.popleft())
        while pending:
            yield _result(*pending.popleft())
    finally:
        executor.shutdown(cancel_futures=True)


def _result(key: Key, future: Future[dict[str, float]]) -> tuple[Key, dict[str, float]]:
    try:
        return key, future.result()
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _features(sound: Sound) -> SoundFeatures:
    return sound if isinstance(sound, SoundFeatures) else SoundFeatures(sound)
