"""Minibatch optimal transport: assignments against brute force and the stored one."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from synthjax.methods.coupling import GROUP_ROWS, couple, group_rows


def total_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(np.float64(a) - b).sum(axis=1)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_coupling_is_the_best_of_all_permutations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise, data = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    best = min(itertools.permutations(range(5)), key=lambda order: total_distance(noise[list(order)], data))
    np.testing.assert_array_equal(couple(noise, data), noise[list(best)])


def test_coupling_minimises_distances_and_not_their_squares() -> None:
    # As they stand the distances are 0 and 3; exchanged 1.8 and 1.8, a larger sum of smaller squares.
    angle = math.asin(3 / 2 / 1.8)
    at = lambda sign: [1.8 * math.cos(angle), sign * 1.8 * math.sin(angle)]  # noqa: E731
    noise, data = np.array([[0.0, 0.0], at(1)]), np.array([[0.0, 0.0], at(-1)])
    np.testing.assert_array_equal(couple(noise, data), noise)


def test_parity_coupling_equals_the_stored_assignment(shared_data: Path) -> None:
    with np.load(shared_data / "reference" / "minibatch_ot.npz", allow_pickle=False) as stored:
        noise, params, row, column, cost = (stored[name] for name in ("noise", "params", "row", "col", "cost"))
    coupled = couple(noise, params)
    np.testing.assert_array_equal(coupled[column], noise[row])
    assert total_distance(coupled, params) == pytest.approx(float(cost), rel=1e-6)


def test_coupling_reorders_a_copy_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    noise, data = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 4)).astype(np.float32)
    before = noise.copy(), data.copy()
    coupled = couple(noise, data)
    assert coupled.dtype == np.float32
    assert sorted(map(tuple, coupled)) == sorted(map(tuple, noise))
    np.testing.assert_array_equal((noise, data), before)


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (64, 64), (127, 127), (128, 128), (256, 128), (384, 128)])
def test_groups_are_of_128_rows_or_of_a_whole_small_batch(batch: int, rows: int) -> None:
    assert GROUP_ROWS == 128
    assert group_rows(batch) == rows


@pytest.mark.parametrize("batch", [129, 192, 200])
def test_a_batch_that_is_not_whole_groups_is_refused(batch: int) -> None:
    with pytest.raises(UserError, match=f"{batch} is above 128 but not a multiple"):
        group_rows(batch)
