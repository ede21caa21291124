"""Loudness against pyloudnorm itself, the energy that spares measuring it, and the rules for refusing a render."""

from __future__ import annotations

import math

import numpy as np
import pyloudnorm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.audio import quality
from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SAMPLES
from data_pipeline.audio.quality import CLIPPED, NON_FINITE, QUIET, fault, loudness
from data_pipeline.synths.protocol import Audio

SECONDS = np.arange(SAMPLES) / SAMPLE_RATE
NO_CLIPPING = math.inf


def sine(frequency: float, peak: float = 0.5) -> Audio:
    return np.tile((peak * np.sin(2 * np.pi * frequency * SECONDS)).astype(np.float32), (CHANNELS, 1))


def square(frequency: float, peak: float = 0.5) -> Audio:
    """The loudest signal of a peak: all of its samples are there."""
    phase = np.floor(2 * frequency * SECONDS + 1e-9)
    return np.tile((peak * (1 - 2 * (phase % 2))).astype(np.float32), (CHANNELS, 1))


def noise(seed: int = 0, peak: float = 0.5) -> Audio:
    return np.random.default_rng(seed).uniform(-peak, peak, (CHANNELS, SAMPLES)).astype(np.float32)


def burst(audio: Audio, start: float, end: float) -> Audio:
    """Silence but for the seconds from start to end."""
    return np.where((start <= SECONDS) & (end > SECONDS), audio, np.float32(0))


def one_sided(audio: Audio) -> Audio:
    return audio * np.array([[1], [0]], np.float32)


SHAPES = {
    "noise": noise(),
    "sine": sine(1000),
    "low_sine": sine(30),
    "left_only": one_sided(noise(1)),
    "gated": burst(noise(2), 0.5, 1.2),
    "quiet": noise(3, peak=2e-3),
    "short_click": burst(square(5000), 2.0, 2.01),
    "offset": noise(4, peak=0.1) + np.float32(0.3),
}


@pytest.mark.parametrize("name", SHAPES)
def test_loudness_is_pyloudnorms(name: str) -> None:
    audio = SHAPES[name]
    expected = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(audio.T.astype(np.float64))
    assert loudness(audio) == pytest.approx(expected, abs=1e-6)


def test_loudness_of_the_standards_reference() -> None:
    """BS.1770: a full-scale 997 Hz sine in one channel measures -3.01 LUFS."""
    assert loudness(one_sided(sine(997, peak=1.0))) == pytest.approx(-3.01, abs=0.05)


def test_loudness_at_another_rate() -> None:
    audio = sine(500)[:, : 2 * 22050]
    expected = pyloudnorm.Meter(22050).integrated_loudness(audio.T.astype(np.float64))
    assert loudness(audio, 22050) == pytest.approx(expected, abs=1e-6)


def test_silence_has_no_loudness() -> None:
    assert loudness(np.zeros((CHANNELS, SAMPLES), np.float32)) == -math.inf


def test_tails_are_filtered_without_denormal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost ten times the time: what is measured must keep the filters away from them."""
    measured: list[NDArray[np.float64]] = []

    class Listening(pyloudnorm.Meter):
        def integrated_loudness(self, data: NDArray[np.float64]) -> float:
            measured.append(data.copy())
            return super().integrated_loudness(data)

    monkeypatch.setattr(quality, "_meter", Listening)
    audio = burst(noise(), 0.1, 0.4)

    def denormal_numbers(signal: NDArray[np.float64]) -> int:
        count = 0
        for stage in pyloudnorm.Meter(SAMPLE_RATE)._filters.values():
            signal = stage.apply_filter(signal)
            count += int(np.count_nonzero((signal != 0) & (np.abs(signal) < np.finfo(np.float64).tiny)))
        return count

    assert denormal_numbers(audio[0].astype(np.float64)) > SAMPLES / 2
    loudness(audio)
    assert denormal_numbers(measured[0][:, 0]) == 0


def assert_boundary_is_its_loudness(audio: Audio) -> None:
    """Whatever shortcut is taken, the verdict is that of the full measurement."""
    measured = loudness(audio)
    if measured > -math.inf:  # The standard's gate takes what is under -70 LUFS for silence.
        assert fault(audio, measured - 1e-6, NO_CLIPPING) is None
    assert fault(audio, max(measured, -70.0) + 1e-6, NO_CLIPPING) == QUIET


@pytest.mark.parametrize("name", SHAPES)
def test_quiet_is_under_the_measured_loudness(name: str) -> None:
    assert_boundary_is_its_loudness(SHAPES[name])


@pytest.mark.parametrize("frequency", [2000, 2756.25, 4000, 11025, 22050])
@pytest.mark.parametrize("peak", [1.0, 1e-3])
def test_energy_never_contradicts_the_loudest_signals(frequency: float, peak: float) -> None:
    """K-weighting amplifies high frequencies most, square waves hold much power."""
    assert_boundary_is_its_loudness(square(frequency, peak))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([sine, square]),
    frequency=st.floats(20, 22050) | st.floats(2000, 4000),
    peak_db=st.floats(-55, 0),
    start=st.floats(0, 3),
    seconds=st.floats(0.45, 4),
    left_only=st.booleans(),
)
def test_energy_never_contradicts_the_measurement(
    shape, frequency: float, peak_db: float, start: float, seconds: float, left_only: bool
) -> None:
    audio = burst(shape(frequency, peak=10 ** (peak_db / 20)), start, start + seconds)
    assert_boundary_is_its_loudness(one_sided(audio) if left_only else audio)


def test_energy_spares_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(quality, "loudness", measure)
    assert fault(np.zeros((CHANNELS, SAMPLES), np.float32), -55, 1.0) == QUIET
    assert fault(noise(peak=10 ** (-68 / 20)), -55, 1.0) == QUIET
    with pytest.raises(AssertionError, match="measured"):
        fault(noise(peak=10 ** (-66 / 20)), -55, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, SAMPLES - 1)])
@pytest.mark.parametrize("max_peak", [1.0, NO_CLIPPING])
def test_a_single_bad_sample_is_non_finite(value: float, place: tuple[int, int], max_peak: float) -> None:
    for audio in (noise(), np.full((CHANNELS, SAMPLES), 3.0, np.float32), np.zeros((CHANNELS, SAMPLES), np.float32)):
        audio[place] = value
        assert fault(audio, -55, max_peak) == NON_FINITE


@pytest.mark.parametrize("sign", [1, -1])
def test_clipped_is_beyond_the_peak_that_is_allowed(sign: int) -> None:
    audio = noise()
    audio[1, 77] = sign * 1.0
    assert fault(audio, -55, 1.0) is None
    audio[1, 77] = sign * np.nextafter(np.float32(1), np.float32(2))
    assert fault(audio, -55, 1.0) == CLIPPED
    assert fault(audio, -55, NO_CLIPPING) is None


def test_clipped_is_said_of_quiet_renders_too() -> None:
    audio = np.zeros((CHANNELS, SAMPLES), np.float32)
    audio[0, 5] = 1.5
    assert fault(audio, -20, 1.0) == CLIPPED


def test_silence_is_quiet_whatever_the_limit() -> None:
    assert fault(np.zeros((CHANNELS, SAMPLES), np.float32), -math.inf, 1.0) == QUIET
    assert fault(noise(peak=1e-7), -math.inf, 1.0) is None


@pytest.mark.parametrize("shape", [(SAMPLES,), (SAMPLES, CHANNELS), (1, SAMPLES), (CHANNELS, SAMPLES - 1), (2, 0)])
def test_other_shapes_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        fault(np.zeros(shape, np.float32), -55, 1.0)
