"""Which of several draws to give, and how far they differ."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.params.kinds import Categorical, Continuous, Discrete, NoteDuration
from data_pipeline.params.spec import ParamSpec
from synthjax.inference.candidates import medoid, spread

SPEC = ParamSpec(
    "tiny",
    (Continuous("level", 0.0, 1.0), Categorical("wave", ("saw", "square"), (0.0, 1.0), (1.0, 1.0))),
    (Discrete("pitch", 48, 72), NoteDuration("note_start_and_end", 4.0)),
)


def brute_force_medoid(rows: np.ndarray) -> int:
    distances = np.square(rows[:, None] - rows[None]).mean(axis=-1)
    return int(distances.sum(axis=1).argmin())


@pytest.mark.parametrize("seed", range(5))
def test_the_medoid_is_nearest_to_all_others(seed: int) -> None:
    rows = np.random.default_rng(seed).uniform(size=(9, 6))
    assert medoid(rows) == brute_force_medoid(rows)


def test_the_medoid_sees_what_decoding_sees() -> None:
    """Beyond the columns' range there is nothing more: the second row is a patch like the others."""
    rows = np.array([[0.0, 1.0], [0.0, 30.0], [0.0, 0.9], [0.9, 0.0]])
    assert medoid(rows) == brute_force_medoid(rows.clip(0, 1)) == 2
    assert brute_force_medoid(rows) == 0


def test_spread_of_numbers_and_categories() -> None:
    rows = np.array(
        [
            # level, saw, square, pitch, start, end
            [0.2, 0.9, 0.1, 0.5, 0.1, 0.4],
            [0.4, 0.2, 0.8, 0.5, 0.1, 0.6],
            [0.2, 0.7, 0.1, 0.5, 0.1, 0.4],
            [0.4, 0.6, 0.1, 0.5, 0.1, 0.6],
        ]
    )
    found = spread(rows, SPEC)
    assert list(found) == ["level", "wave", "pitch", "note_start_and_end"]
    assert found["level"] == pytest.approx(0.1)
    assert found["wave"] == pytest.approx(0.25)
    assert found["pitch"] == 0.0
    assert found["note_start_and_end"] == pytest.approx(0.05)


def test_spread_is_of_patches_not_of_what_was_sampled() -> None:
    rows = np.array([[1.5, 3.0, 2.0, 0.5, 0.1, 0.4], [7.0, 2.0, 3.0, 0.5, 0.1, 0.4]])
    assert spread(rows, SPEC)["level"] == 0.0
    assert spread(rows, SPEC)["wave"] == 0.5  # Both columns are beyond 1: the larger one decides all the same.
