"""MFCCs and dynamic time warping against librosa."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from data_pipeline.audio.mfcc_distance import SCALE, mfcc_frames, warping_cost, wmfcc_distance


def librosa_warping_cost(cost: NDArray[np.float64]) -> float:
    """The symmetric step pattern: diagonal steps weigh 2."""
    sums = librosa.sequence.dtw(C=cost, weights_mul=np.array([2.0, 1.0, 1.0]), backtrack=False)
    return float(sums[-1, -1])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(npst.arrays(np.float64, npst.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(0.0, 100.0)))
def test_least_cost_equals_librosas(cost: NDArray[np.float64]) -> None:
    assert warping_cost(cost) == pytest.approx(librosa_warping_cost(cost), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (120, 75), (400, 400)])
def test_least_cost_of_long_sounds_equals_librosas(shape: tuple[int, int]) -> None:
    cost = np.random.default_rng(0).exponential(20.0, shape)
    assert warping_cost(cost) == pytest.approx(librosa_warping_cost(cost), rel=1e-12)


@pytest.mark.parametrize("gain", [1.0, 1e-3, 0.0])
def test_coefficients_equal_librosas(gain: float) -> None:
    audio = (0.1 * gain * np.random.default_rng(0).standard_normal((2, 44100))).astype(np.float32)
    audio[1] *= 1e-3  # The dynamic range is that below the louder channel.
    audio[:, 30000:] = 0.0
    expected = librosa.feature.mfcc(
        y=audio, sr=44100, n_mfcc=20, n_fft=2205, hop_length=441, n_mels=128, pad_mode="constant"
    )
    frames = mfcc_frames(SCALE.power(audio))
    assert frames.shape == (100, 40)
    np.testing.assert_allclose(frames[:, :20], expected[0].T, atol=1e-3)
    np.testing.assert_allclose(frames[:, 20:], expected[1].T, atol=1e-3)


def test_distance_is_mean_absolute_per_frame_of_both_sounds() -> None:
    target, other = np.zeros((30, 40)), np.zeros((20, 40))
    other[:, 0] = 40.0  # One dimension of 40 differs: a cost of 1, however the frames are aligned.
    assert wmfcc_distance(target, other) == pytest.approx(49 / 50)


def test_distance_disregards_timing() -> None:
    timbres = np.random.default_rng(0).normal(0.0, 10.0, (5, 40))
    target, other = (np.repeat(timbres, lengths, axis=0) for lengths in ([9, 2, 5, 1, 3], [1, 4, 4, 8, 3]))
    assert wmfcc_distance(target, other) == 0.0
    assert wmfcc_distance(target, other[::-1].copy()) > 1.0
