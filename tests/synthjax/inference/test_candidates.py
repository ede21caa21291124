"""Which of several draws to give, and how far they differ."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data_pipeline.audio.metrics import SoundFeatures
from data_pipeline.params.kinds import Categorical, Continuous, Discrete, NoteDuration
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.protocol import NOTE_TIMES
from data_pipeline.synths.subtractive import Subtractive
from synthjax.inference.candidates import medoid, score, spread

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


def test_the_score_is_the_weighted_sum() -> None:
    assert score({"mss": 2.0, "wmfcc": 6.0, "sot": 0.25, "rms": 0.75}) == 10.0
    assert score({"mss": 0.0, "wmfcc": 0.0, "sot": 0.0, "rms": 1.0}) == 0.0


def test_a_short_sound_at_another_time_does_not_come_first() -> None:
    """Another patch is nearer in the target's time than for a moment outside of it."""
    synth, spec = Subtractive(), load_spec("subtractive")
    patches = [spec.decode(row) for row in spec.sample(0, range(13), [0] * 13)]

    def sound(patch: dict[str, Any], start: float, end: float) -> SoundFeatures:
        return SoundFeatures(synth.render({**patch, NOTE_TIMES: (start, end)}))

    for target, other in pairwise(patches):
        heard = sound(target, 0.5, 2.5)
        in_time, elsewhere = (score(heard.compare(sound(other, *times))) for times in ((0.5, 2.5), (0.1, 0.3)))
        assert in_time < elsewhere


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
