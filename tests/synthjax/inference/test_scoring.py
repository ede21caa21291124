"""The score of a sound against a target."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data_pipeline.audio.coarse_features import CoarseFeatures
from data_pipeline.audio.contract import SAMPLE_RATE, SAMPLES
from data_pipeline.audio.metrics import METRICS
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.protocol import NOTE_TIMES
from data_pipeline.synths.subtractive import Subtractive
from synthjax.inference.scoring import SOUNDING, ScoreOf, Target, score, sounding_samples, stored

SYNTH, SPEC = Subtractive(), load_spec("subtractive")
PATCHES = [SPEC.decode(row) for row in SPEC.sample(0, range(13), [0] * 13)]


def sound(patch: dict[str, Any], start: float, end: float) -> np.ndarray:
    return SYNTH.render({**patch, NOTE_TIMES: (start, end)})


def test_the_score_is_the_weighted_sum() -> None:
    assert score({"mss": 2.0, "wmfcc": 6.0, "sot": 0.25, "rms": 0.75}) == 10.0
    assert score({"mss": 0.0, "wmfcc": 0.0, "sot": 0.0, "rms": 1.0}) == 0.0


def test_a_short_sound_at_another_time_does_not_come_first() -> None:
    """Another patch is nearer in the target's time than for a moment outside of it."""
    for target, other in pairwise(PATCHES):
        heard = Target.of(sound(target, 0.5, 2.5), sounding=False)
        in_time, elsewhere = (score(heard.distances(sound(other, *times))) for times in ((0.5, 2.5), (0.1, 0.3)))
        assert in_time < elsewhere


@pytest.mark.parametrize(
    ("last", "expected"), [(None, 0.5), (0.1, 0.5), (1.0, 1.25), (3.9, 4.0)], ids=["silent", "short", "middle", "long"]
)
def test_a_sound_ends_a_quarter_of_a_second_after_its_last_audible_sample(last: float | None, expected: float) -> None:
    audio = np.zeros((2, SAMPLES), np.float32)
    if last is not None:
        audio[0, 100] = 0.5
        audio[1, round(last * SAMPLE_RATE)] = 0.001
        audio[1, round(last * SAMPLE_RATE) + 1 :] = 0.0004  # 62 dB below the peak.
    assert sounding_samples(audio) == pytest.approx(expected * SAMPLE_RATE, abs=1)


def test_a_short_target_is_also_measured_over_the_time_in_which_it_sounds() -> None:
    short, other = sound(PATCHES[0], 0.0, 0.2), sound(PATCHES[1], 0.0, 0.2)
    target = Target.of(short, sounding=True)
    distances = target.distances(other)
    assert distances.keys() == {*METRICS, *(name + SOUNDING for name in METRICS)}
    assert distances["mss" + SOUNDING] > 1.5 * distances["mss"]
    whole = {name: distances[name] for name in METRICS}
    within = {name: distances[name + SOUNDING] for name in METRICS}
    assert score(distances) == pytest.approx((score(whole) + score(within)) / 2)
    assert Target.of(short, sounding=False).distances(other) == whole


@pytest.mark.parametrize("sounding", [True, False])
def test_scores_are_exact_up_to_the_limit_and_beyond_it_beyond(sounding: bool) -> None:
    target = Target.of(sound(PATCHES[0], 0.0, 1.0), sounding=sounding, features=CoarseFeatures)
    for patch in PATCHES[1:6]:
        other = sound(patch, 0.0, 1.0)
        exact = score(target.distances(other))
        for limit in (math.inf, exact + 0.01):
            assert replace(target, scores={}).score_within(other, limit) == pytest.approx(exact)
        for limit in (0.1 * exact, 0.5 * exact, 0.9 * exact):
            assert limit < replace(target, scores={}).score_within(other, limit) <= exact + 1e-9


def test_a_sound_that_came_before_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target.of(sound(PATCHES[0], 0.0, 1.0), sounding=False, features=CoarseFeatures)
    quiet, loud = 0.5 * sound(PATCHES[1], 0.0, 1.0), sound(PATCHES[1], 0.0, 1.0)
    with stored(target) as path:
        first, louder = ScoreOf(path)(quiet), ScoreOf(path)(loud)
        assert first != louder
        stereo = np.stack([loud[0], quiet[1][::-1]])
        assert ScoreOf(path)(stereo) != ScoreOf(path)(stereo[::-1])
        beyond = sound(PATCHES[2], 0.0, 1.0)
        assert ScoreOf(path, 0.1)(beyond) < ScoreOf(path)(beyond)
        monkeypatch.setattr(CoarseFeatures, "parts", None)
        assert (ScoreOf(path)(quiet), ScoreOf(path)(loud)) == (first, louder)
