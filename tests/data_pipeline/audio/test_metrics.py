"""The audio metrics against the golden values, librosa and closed forms, and at their edges."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from data_pipeline.audio.metrics import HIGHER_IS_BETTER, METRICS, SoundFeatures, mss
from data_pipeline.audio.spectrogram import MelAnalysis

SAMPLE_RATE = 44100
SAMPLES = 22050


def metrics(target: NDArray[np.floating], other: NDArray[np.floating]) -> dict[str, float]:
    return SoundFeatures(target).compare(SoundFeatures(other))


def noise(seed: int, samples: int = SAMPLES) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal((2, samples))).astype(np.float32)


def silence() -> NDArray[np.float32]:
    return np.zeros((2, SAMPLES), np.float32)


def tone(hertz: float, samples: int = SAMPLES) -> NDArray[np.float64]:
    return np.tile(np.sin(2 * np.pi * hertz * np.arange(samples) / SAMPLE_RATE), (2, 1))


def test_all_metrics_equal_the_golden_values(shared_data: Path) -> None:
    folder = shared_data / "golden"
    features: dict[str, SoundFeatures] = {}
    pairs = json.loads((folder / "metrics.json").read_text())["pairs"]
    assert len(pairs) == 48
    for pair in pairs:
        for name in (pair["target"], pair["pred"]):
            if name not in features:
                features[name] = SoundFeatures(soundfile.read(folder / name, dtype="float32")[0].T)
        measured = features[pair["target"]].compare(features[pair["pred"]])
        assert measured == pytest.approx({name: pair[name] for name in METRICS}, rel=1e-3, abs=1e-6), pair["pred"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_sound_is_nearest_to_itself_and_metrics_are_symmetric(dtype: type[np.floating]) -> None:
    one, other = noise(0).astype(dtype), noise(1).astype(dtype)
    other[:, 8000:] *= dtype(0.1)
    assert metrics(one, one) == {"mss": 0.0, "wmfcc": 0.0, "sot": 0.0, "rms": pytest.approx(1.0, abs=1e-12)}
    forward, back = metrics(one, other), metrics(other, one)
    assert tuple(forward) == METRICS
    assert forward == pytest.approx(back, rel=1e-12)
    assert forward["mss"] > 1.0
    assert forward["wmfcc"] > 1.0
    assert forward["sot"] > 0.001
    assert forward["rms"] < 0.9


def test_only_rms_is_better_when_higher() -> None:
    target, near, far = noise(0), noise(0), noise(2)
    near[:, 15000:] *= 0.5
    far[:, 8000:] *= 0.01
    nearer, farther = metrics(target, near), metrics(target, far)
    for name in METRICS:
        assert (nearer[name] > farther[name]) == (name in HIGHER_IS_BETTER), name


def test_volume_counts_for_wmfcc_alone() -> None:
    measured = metrics(noise(0), noise(0) * np.float32(0.5))
    assert measured["mss"] < 1e-9
    assert measured["sot"] < 1e-9
    assert measured["rms"] == pytest.approx(1.0, abs=1e-12)
    # 6 dB in all of 128 bands are 6 * sqrt(128) in the first of 20 coefficients, at 50 frames and 49 steps of weight 2.
    assert measured["wmfcc"] == pytest.approx(20 * np.log10(2.0) * np.sqrt(128) / 20 * 99 / 100, rel=1e-6)


def test_faintest_envelopes_are_compared_as_loud_ones_are() -> None:
    fading = noise(0).astype(np.float64) * np.linspace(1.0, 0.0, SAMPLES)
    assert metrics(fading * 1e-161, fading)["rms"] == pytest.approx(1.0, abs=1e-12)
    assert metrics(fading * 1e-161, noise(0))["rms"] < 0.9


def test_mss_alone_equals_mss_among_the_others() -> None:
    assert mss(noise(0), noise(1)) == metrics(noise(0), noise(1))["mss"]


@pytest.mark.parametrize(("low", "high"), [(1000.0, 3000.0), (440.0, 20000.0)])
def test_sot_of_two_tones_is_their_distance_on_the_frequency_axis(low: float, high: float) -> None:
    # Whole frames only: at the edges of a sound that starts at once, the spectrum is wide.
    measured = metrics(tone(low, 4 * SAMPLE_RATE), tone(high, 4 * SAMPLE_RATE))["sot"]
    assert measured == pytest.approx((high - low) / (SAMPLE_RATE / 2), rel=0.02)


def test_sot_is_the_transport_distance_between_librosas_spectra() -> None:
    one, other = noise(0), noise(1)
    other[:, 5000:] = np.cumsum(other[:, 5000:], axis=1) * np.float32(0.01)
    spectra = [
        np.abs(librosa.stft(sound.mean(axis=0), n_fft=2205, hop_length=882, window="hann", pad_mode="constant")).T
        for sound in (one, other)
    ]
    places = np.arange(1103) / 1103
    frames = [wasserstein_distance(places, places, mine, theirs) for mine, theirs in zip(*spectra, strict=True)]
    assert metrics(one, other)["sot"] == pytest.approx(np.mean(frames), rel=1e-4)


def test_sot_of_channels_is_that_of_their_mean() -> None:
    hard_left = tone(1000.0) * [[2.0], [0.0]]
    assert metrics(hard_left, tone(1000.0))["sot"] < 1e-9
    assert metrics(hard_left, tone(1000.0))["rms"] == pytest.approx(1.0, abs=1e-12)


def test_rms_is_the_cosine_of_librosas_envelopes() -> None:
    one, other = noise(0), noise(1)
    other[:, 8000:] *= 0.1
    one, other = one[:, :-500], other[:, :-500]
    envelopes = [
        librosa.feature.rms(y=sound.mean(axis=0), frame_length=2205, hop_length=1102)[0] for sound in (one, other)
    ]
    cosine = np.dot(*envelopes) / np.prod([np.linalg.norm(envelope) for envelope in envelopes])
    assert metrics(one, other)["rms"] == pytest.approx(cosine, rel=1e-5)


def test_metric_two_silent_sounds_are_the_same() -> None:
    assert metrics(silence(), silence()) == {"mss": 0.0, "wmfcc": 0.0, "sot": 0.0, "rms": 1.0}


def test_metrics_against_silence_are_defined() -> None:
    measured = metrics(silence(), noise(0))
    assert measured == pytest.approx(metrics(noise(0), silence()), rel=1e-12)
    assert 0.0 < measured["mss"] <= 80.0
    assert measured["wmfcc"] > 10.0
    # White noise: cumulative distributions that rise evenly from 0 to 1, beside one that stays 0.
    assert measured["sot"] == pytest.approx(0.5, abs=0.01)
    assert measured["rms"] == 0.0


def test_channels_that_cancel_are_silent_to_the_mono_metrics() -> None:
    opposed = tone(1000.0) * [[1.0], [-1.0]]
    measured = metrics(opposed, silence())
    assert (measured["sot"], measured["rms"]) == (0.0, 1.0)
    assert measured["mss"] > 1.0
    assert metrics(opposed, tone(1000.0))["rms"] == 0.0


def impulse() -> NDArray[np.float32]:
    sound = silence()
    sound[:, 10000] = 1.0
    return sound


EXTREMES = {
    "silence": silence(),
    "impulse": impulse(),
    "square": np.sign(tone(441.0, SAMPLES)),
    "constant": np.ones((2, SAMPLES), np.float32),
    "smallest float16": np.full((2, SAMPLES), 6e-8, np.float16),
    "smallest float32": noise(0) * np.float32(1e-43),
    "smallest float64": np.full((2, SAMPLES), 5e-324),
    "squares underflow": noise(0).astype(np.float64) * 1e-161,
    "largest float32": np.full((2, SAMPLES), np.finfo(np.float32).max),
    "one channel": noise(0) * np.float32([[1.0], [0.0]]),
}


@pytest.mark.parametrize("one", EXTREMES)
@pytest.mark.parametrize("other", EXTREMES)
def test_metrics_of_extreme_sounds_are_finite_and_in_range(one: str, other: str) -> None:
    assert_in_range(metrics(EXTREMES[one], EXTREMES[other]))


def assert_in_range(measured: dict[str, float]) -> None:
    assert 0.0 <= measured["mss"] <= 80.0
    assert 0.0 <= measured["wmfcc"] < 1e4
    assert 0.0 <= measured["sot"] <= 1.0 + 1e-12
    assert 0.0 <= measured["rms"] <= 1.0 + 1e-12


@st.composite
def pairs_of_sounds(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Any two sounds of equal shape, shorter than the shortest window or longer than the longest."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 5000)))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    sound = npst.arrays(np.float32, shape, elements=finite, fill=st.sampled_from([0.0, 1.0, 1e-30, -1e30]))
    return draw(sound), draw(sound)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(pairs_of_sounds())
def test_metrics_of_any_finite_sounds_are_in_range_symmetric_and_silent(pair: tuple[NDArray[np.float32], ...]) -> None:
    with warnings.catch_warnings(action="error"):  # No overflow, no division by zero on the way.
        one, other = map(SoundFeatures, pair)
        measured, same = one.compare(other), one.compare(one)
    assert_in_range(measured)
    assert measured == pytest.approx(other.compare(one), rel=1e-9, abs=1e-12)
    assert same == {"mss": 0.0, "wmfcc": 0.0, "sot": 0.0, "rms": pytest.approx(1.0, abs=1e-12)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_a_sound_that_is_not_finite_is_refused(bad: float) -> None:
    sound = noise(0).astype(np.float64)
    sound[1, 5] = bad
    with pytest.raises(ValueError, match="finite"):
        SoundFeatures(sound)
    with pytest.raises(ValueError, match="finite"):
        mss(noise(0), sound)


@pytest.mark.parametrize("shape", [(SAMPLES,), (2, 0), (0, SAMPLES), (1, 2, SAMPLES)])
def test_a_sound_of_another_form_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(channels, samples\)"):
        SoundFeatures(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(2, SAMPLES - 1), (1, SAMPLES)])
def test_sounds_of_unequal_shapes_are_refused(shape: tuple[int, int]) -> None:
    other = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="the same shape"):
        SoundFeatures(silence()).compare(SoundFeatures(other))
    with pytest.raises(ValueError, match="the same shape"):
        mss(silence(), other)


def test_comparing_computes_no_spectrogram_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = SoundFeatures(noise(0)), SoundFeatures(noise(1))
    expected = one.compare(other)
    monkeypatch.setattr(MelAnalysis, "power", None)
    monkeypatch.setattr("scipy.fft.rfft", None)
    assert one.compare(other) == expected


def test_float32_is_enough_for_ranking_and_equal_channels_change_nothing() -> None:
    rng = np.random.default_rng(0)
    mono, stereo = (rng.normal(0, 0.1, (channels, SAMPLE_RATE)) * np.hanning(SAMPLE_RATE) for channels in (1, 2))
    mono = np.repeat(mono, 2, axis=0)
    nearly_mono = mono * [[1.0], [1.0 + 1e-12]]
    other = SoundFeatures(stereo)
    exact = SoundFeatures(mono).compare(other)
    assert exact == pytest.approx(SoundFeatures(nearly_mono).compare(other), rel=1e-9)
    assert exact == pytest.approx(SoundFeatures(mono, np.float32).compare(other), rel=1e-4)
