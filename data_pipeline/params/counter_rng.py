"""Random numbers that depend on (seed, index, attempt) alone, not on earlier draws.

Philox is a counter-based generator (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): the stream
of one (seed, index, attempt) is the same on every machine and in any order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MAX_SEED = 2**63 - 1
# Seeds of rows that no model learns from: those of validation, of the tables, and of libraries.
VALIDATION_SEED, TEST_SEED, LIBRARY_SEED = 1, 2, 3


def uniforms(seed: int, indices: Iterable[int], attempts: Iterable[int], count: int) -> NDArray[np.float64]:
    """Uniform numbers (N, count) in [0, 1), one row for each of the N pairs (index, attempt).

    Raises ValueError for a seed, index or attempt outside [0, 2**63).
    """
    rows = [_bits(seed, index, attempt, count) for index, attempt in zip(indices, attempts, strict=True)]
    bits = np.array(rows, np.uint64).reshape(len(rows), count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 53 bits, as many as a float64 holds.


def _bits(seed: int, index: int, attempt: int, count: int) -> NDArray[np.uint64]:
    if not all(0 <= number <= MAX_SEED for number in (seed, index, attempt)):
        raise ValueError(f"seed {seed}, index {index} and attempt {attempt} must lie in [0, 2**63)")
    # The counter's first word counts within the stream.
    return np.random.Philox(key=[seed, 0], counter=[0, attempt, index, 0]).random_raw(count)
