"""Fast features against exact ones, and the parts of the metrics."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.audio.coarse_features import CoarseFeatures
from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.audio.metrics import METRICS, SOT_HOP, SoundFeatures
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.subtractive import Subtractive


@pytest.fixture(scope="module")
def sounds() -> list[NDArray[np.float32]]:
    synth, spec = Subtractive(), load_spec("subtractive")
    rendered = [synth.render(spec.decode(row)) for row in spec.sample(2, range(8), [0] * 8)]
    return [*rendered[:6], np.stack([rendered[6][0], rendered[7][0]])]  # The last one is stereo.


def test_distances_are_near_the_exact_ones(sounds: list[NDArray[np.float32]]) -> None:
    for target, other in pairwise(sounds):
        exact = SoundFeatures(target).compare(SoundFeatures(other))
        coarse = CoarseFeatures(target).compare(CoarseFeatures(other))
        for name, tolerance in {"mss": 0.05, "wmfcc": 0.15, "sot": 0.05, "rms": 0.001}.items():
            assert coarse[name] == pytest.approx(exact[name], rel=tolerance)


def test_bursts_between_frames_at_even_distances_are_heard() -> None:
    samples = np.arange(2 * SAMPLE_RATE)
    noise = np.random.default_rng(0).normal(0.0, 0.2, len(samples))
    rare, frequent = (np.where((samples + 220) % period < 440, noise, 0.0) for period in (2 * SOT_HOP, SOT_HOP))
    exact, coarse = (
        kind(np.stack([rare, rare])).compare(kind(np.stack([frequent, frequent])))["wmfcc"]
        for kind in (SoundFeatures, CoarseFeatures)
    )
    assert coarse == pytest.approx(exact, rel=0.2)


def test_computed_features_need_no_sound(sounds: list[NDArray[np.float32]]) -> None:
    target, other = CoarseFeatures(sounds[6]), CoarseFeatures(sounds[0])
    expected = target.compare(other)
    sent = pickle.dumps(target.computed())
    assert len(sent) < 2 * sounds[6].nbytes
    assert pickle.loads(sent).compare(other) == expected


@pytest.mark.parametrize("kind", [SoundFeatures, CoarseFeatures])
def test_parts_add_up_and_only_the_first_frames_count(kind: type[SoundFeatures]) -> None:
    rng, samples = np.random.default_rng(0), SAMPLE_RATE
    fading = np.exp(-np.arange(2 * samples) / samples)
    audio, other = (rng.normal(0.0, 0.1, (2, 2 * samples)) * fading for _ in range(2))
    target, changed = kind(audio), other.copy()
    changed[:, samples + 4410 :] = 0.0  # No window of a frame within the first second reaches so far.
    first = target.compare(kind(other), samples)
    assert first == pytest.approx(target.compare(kind(changed), samples))
    assert target.compare(kind(changed))["mss"] > 2 * first["mss"]
    parts = list(target.parts(kind(other)))
    assert {name: sum(part for of, part in parts if of == name) for name in METRICS} == target.compare(kind(other))
