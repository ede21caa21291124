"""Each kind of corruption changes sounds as it says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.audio.corruption import KINDS, NONE, Corruption

TIMES = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE


@pytest.fixture(scope="module")
def sound() -> NDArray[np.float32]:
    """A decaying tone at 1 kHz that begins after half a second."""
    tone = np.where(TIMES >= 0.5, 0.5 * np.sin(2 * np.pi * 1000 * TIMES) * np.exp(-TIMES), 0.0)
    return np.stack([tone, tone]).astype(np.float32)


def corrupted(sound: NDArray[np.float32], kind: str, seed: int) -> NDArray[np.float32]:
    return Corruption(**{kind: 1.0})(sound, np.random.default_rng(seed))


def loudest_hz(sound: NDArray[np.float32]) -> float:
    return float(np.abs(np.fft.rfft(sound[0])).argmax() / 2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrupted_sound_differs_by_seed_and_stays_a_sound(kind: str, sound: NDArray[np.float32]) -> None:
    before = sound.copy()
    first, again, other = (corrupted(sound, kind, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(sound, before)
    assert (first != other).any()
    assert (first != sound).any()
    assert first.shape == sound.shape
    assert first.dtype == np.float32
    assert 0.1 < np.abs(first).max() < 2.0


def test_nothing_changes_without_corruption_and_one_kind_does_not_change_another(sound: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(NONE(sound, np.random.default_rng(0)), sound)
    cut = corrupted(sound, "cut", 5)
    both = Corruption(cut=1.0, equaliser=1.0)(sound, np.random.default_rng(5))
    np.testing.assert_array_equal(both[:, -1] == 0.0, cut[:, -1] == 0.0)
    assert (both != cut).any()


def test_a_probability_is_the_share_of_sounds(sound: NDArray[np.float32]) -> None:
    half = Corruption(cut=0.5)
    changed = [(half(sound, np.random.default_rng(seed)) != sound).any() for seed in range(200)]
    assert 0.4 < np.mean(changed) < 0.6


@pytest.mark.parametrize("seed", range(5))
def test_strengths(sound: NDArray[np.float32], seed: int) -> None:
    cents = 1200 * np.log2(loudest_hz(corrupted(sound, "detune", seed)) / 1000)
    assert 0.5 < abs(cents) < 41
    cut = corrupted(sound, "cut", seed)
    [audible] = np.nonzero(np.abs(cut[0]))
    assert audible[-1] > 0.7 * SAMPLE_RATE
    noise = corrupted(sound, "noise", seed)[0, : SAMPLE_RATE // 2]  # Before the tone begins.
    ratio = np.square(noise).mean() / np.square(sound[0, 22050:24255]).mean()
    assert -61 < 10 * np.log10(ratio) < -14
