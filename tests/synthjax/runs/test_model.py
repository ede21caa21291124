"""The loop that samples rows batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.methods.examples import Batch
from synthjax.runs.model import sample_batches


@pytest.mark.parametrize(("count", "batches", "steps"), [(8, 2, [4, 4]), (6, 2, [4, 2]), (3, 1, [3])])
def test_rows_of_padding_are_dropped_and_no_batch_is_read_beyond(count: int, batches: int, steps: list[int]) -> None:
    read, advanced = [], []

    def numbered() -> Iterator[Batch]:
        for number in range(3):
            read.append(number)
            yield {"x0": jnp.arange(4.0) + 4 * number}

    def double(batch: Batch) -> jax.Array:
        return 2 * batch["x0"]

    rows = sample_batches(double, numbered(), count, advanced.append)
    np.testing.assert_array_equal(rows, 2 * np.arange(count))
    assert read == list(range(batches))
    assert advanced == steps
