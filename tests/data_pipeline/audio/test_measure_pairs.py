"""Many pairs over the cores: order, memory, faults."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.audio.metrics import SoundFeatures, measure, measure_pairs

Pair = tuple[int, NDArray[np.float32], NDArray[np.float32]]


def sound(seed: int) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal((2, 2205))).astype(np.float32)


@pytest.mark.parametrize("workers", [1, 3])
def test_pairs_are_measured_in_order(workers: int) -> None:
    pairs = [(f"sound {seed}", sound(seed), sound(seed + 1)) for seed in range(12)]
    expected = [(key, measure(target, other)) for key, target, other in pairs]
    assert list(measure_pairs(pairs, workers)) == expected
    assert len({metrics["mss"] for _, metrics in expected}) == 12


def test_no_pairs_give_nothing() -> None:
    assert list(measure_pairs([], 2)) == []


def test_features_stand_for_their_sound() -> None:
    target, candidates = SoundFeatures(sound(0)), [sound(seed) for seed in range(3)]
    measured = dict(measure_pairs(((k, target, candidate) for k, candidate in enumerate(candidates)), 2))
    assert measured == {k: measure(sound(0), candidate) for k, candidate in enumerate(candidates)}


def test_only_a_few_pairs_are_held_at_once() -> None:
    drawn = 0

    def pairs() -> Iterator[Pair]:
        nonlocal drawn
        for key in range(40):
            drawn += 1
            yield key, sound(0), sound(1)

    for done, (key, _) in enumerate(measure_pairs(pairs(), 2), start=1):
        assert key == done - 1
        assert drawn - done <= 4
    assert drawn == 40


def test_a_pair_that_cannot_be_measured_is_named() -> None:
    pairs = [("good", sound(0), sound(1)), ("kick.wav", sound(0), sound(0) * np.float32(np.nan))]
    measured = measure_pairs(pairs, 2)
    assert next(measured)[0] == "good"
    with pytest.raises(ValueError, match=r"kick\.wav: audio must be finite"):
        next(measured)
