"""Variations of a patch, and morphs between two, with the real Dexed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
import pytest

from data_pipeline.audio.contract import MIN_LOUDNESS
from data_pipeline.audio.metrics import mss_spectrograms, spectrogram_distance
from data_pipeline.audio.quality import fault
from data_pipeline.console.cli import UserError
from data_pipeline.params.counter_rng import TEST_SEED
from data_pipeline.params.spec import load_spec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import synth_for
from synthjax.inference.candidates import Candidate
from synthjax.inference.morph import POWER, evenly, morph
from synthjax.inference.variations import spread_out, variations

SPEC = load_spec("dexed")
FIRST, LAST = (Candidate(row) for row in SPEC.sample(TEST_SEED, [0, 1], [0, 0]))
NOTE = SPEC.slices["pitch"].start


@pytest.fixture(scope="module")
def renderer() -> Iterator[PatchRenderer]:
    with PatchRenderer(synth_for(SPEC), 2) as opened:
        yield opened


def distance(one: Candidate, other: Candidate) -> float:
    assert one.audio is not None
    assert other.audio is not None
    return spectrogram_distance(mss_spectrograms(one.audio), mss_spectrograms(other.audio))


def test_variations_are_audible_and_farther_away_by_a_larger_amount(renderer: PatchRenderer) -> None:
    [original] = renderer.render([(0, FIRST.row)])
    whole = Candidate(FIRST.row, audio=original.audio)
    medians = []
    for amount in (0.05, 0.3):
        found = variations(FIRST, 6, amount, renderer, locked={"algorithm"})
        assert all(one.audio is not None and fault(one.audio, MIN_LOUDNESS, 1.0) is None for one in found)
        assert len({one.row.tobytes() for one in found}) == 6
        for one in found:
            columns = SPEC.slices["algorithm"]
            np.testing.assert_array_equal(one.row[columns], FIRST.row[columns])
            np.testing.assert_array_equal(one.row[NOTE:], FIRST.row[NOTE:])
        medians.append(np.median([distance(whole, one) for one in found]))
        again = variations(FIRST, 6, amount, renderer, locked={"algorithm"})
        assert [one.row.tobytes() for one in again] == [one.row.tobytes() for one in found]
    assert medians[0] < medians[1]


def test_without_a_free_parameter_there_are_no_variations(renderer: PatchRenderer) -> None:
    with pytest.raises(UserError, match="every parameter is locked"):
        variations(FIRST, 2, 0.1, renderer, locked=SPEC.slices.keys())


def test_sounds_that_are_chosen_lie_apart() -> None:
    """Eight sounds in two heaps around the original: both heaps are represented, the farthest sounds are not."""
    sounds = np.full((10, 4), 100, np.uint8)
    sounds[:4, 0] += np.arange(10, 14, dtype=np.uint8)
    sounds[4:8, 1] += np.arange(10, 14, dtype=np.uint8)
    sounds[8:] = 255
    chosen = spread_out(sounds, 2, np.full(4, 100, np.uint8))
    assert sorted(number // 4 for number in chosen) == [0, 1]


def test_sounds_that_are_alike_are_chosen_once_each() -> None:
    chosen = spread_out(np.full((8, 4), 100, np.uint8), 4, np.full(4, 100, np.uint8))
    assert len(set(chosen)) == 4


def test_a_morph_goes_from_the_first_to_the_last_in_steps_more_even_than_a_straight_line(
    renderer: PatchRenderer,
) -> None:
    found = morph(FIRST, LAST, 5, renderer)
    np.testing.assert_array_equal(found[0].row, FIRST.row)
    np.testing.assert_array_equal(found[-1].row, LAST.row)
    rows = [FIRST.row + place * (LAST.row - FIRST.row) for place in np.linspace(0.0, 1.0, 5)]
    straight = [Candidate(rows[one.key], audio=one.audio) for one in renderer.render(enumerate(rows))]
    straight.sort(key=lambda one: float(np.abs(one.row - FIRST.row).sum()))
    assert max(distance(*pair) for pair in pairwise(found)) < max(distance(*pair) for pair in pairwise(straight))


def test_the_steps_with_the_least_sum_of_powers_are_found() -> None:
    points = np.random.default_rng(0).random((9, 3))
    steps = np.abs(points[:, None] - points[None]).sum(axis=-1)
    expected = min(
        ((0, *inner, 8) for inner in combinations(range(1, 8), 3)),
        key=lambda chosen: sum(steps[one, after] ** POWER for one, after in pairwise(chosen)),
    )
    assert evenly(steps, 5) == list(expected)
