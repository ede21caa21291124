"""The built-in synthesizer's signal processing, piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE, SAMPLES
from data_pipeline.synths import subtractive_dsp as dsp
from tests.data_pipeline.signals import decibels, rms, seconds, spectrum


@pytest.mark.parametrize(
    ("shape", "harmonics"),
    [
        (dsp.SAW, [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]),
        (dsp.SQUARE, [1, 0, 1 / 3, 0, 1 / 5]),
        (dsp.TRIANGLE, [1, 0, 1 / 9, 0, 1 / 25]),
    ],
)
def test_shapes_have_equal_power_and_their_harmonics(shape: int, harmonics: list[float]) -> None:
    wave = dsp.oscillator(shape, 441.0, SAMPLE_RATE)
    assert rms(wave) == pytest.approx(1.0, abs=1e-4)
    magnitude = np.abs(np.fft.rfft(wave))[441 * np.arange(1, 6)]
    np.testing.assert_allclose(magnitude / magnitude[0], harmonics, rtol=0, atol=1e-4)


def test_shapes_are_the_waveforms_they_are_called() -> None:
    """Away from the jumps, where truncated series ring: a quarter of a cycle and three quarters."""
    quarters = [dsp.TABLE_SIZE // 4, 3 * dsp.TABLE_SIZE // 4]
    expected = {dsp.SAW: np.sqrt(3) * np.array([0.5, -0.5]), dsp.SQUARE: [1.0, -1.0]}
    for shape, levels in expected.items():
        np.testing.assert_allclose(dsp.wavetable(shape, 20.0)[quarters], levels, atol=2e-3)
    np.testing.assert_allclose(dsp.wavetable(dsp.TRIANGLE, 20.0)[quarters], np.sqrt(3) * np.array([1, -1]), atol=2e-3)


@pytest.mark.parametrize(("frequency", "floor"), [(64.5, -80.0), (527.0, -100.0), (1061.7, -110.0)])
@pytest.mark.parametrize("shape", [dsp.SAW, dsp.SQUARE, dsp.TRIANGLE])
def test_metric_aliasing_is_far_below_the_sound(shape: int, frequency: float, floor: float) -> None:
    hertz, magnitude = spectrum(dsp.oscillator(shape, frequency, 2 * SAMPLE_RATE))
    to_harmonic = np.abs(hertz - frequency * np.round(hertz / frequency))
    between = (to_harmonic > 8.0) & (hertz > 8.0)
    assert 10 * np.log10(np.sum(magnitude[between] ** 2) / np.sum(magnitude**2)) < floor


def test_width_parts_the_channels_and_keeps_their_sum() -> None:
    signals = np.random.default_rng(0).standard_normal((2, 8000))
    signals[:, -dsp.LONGEST_DELAY_SAMPLES :] = 0.0
    wide = dsp.widen(signals, 1.0)
    np.testing.assert_allclose(wide.sum(axis=0), signals.sum(axis=0), atol=1e-12)
    assert np.array_equal(dsp.widen(signals, 0.0), signals)
    np.testing.assert_allclose(dsp.widen(signals, 0.5) - signals, 0.5 * (wide - signals), atol=1e-12)
    side = wide[0] - signals[0]
    mean = signals.mean(axis=0)
    assert np.argmax(np.correlate(side, mean[:7000], "valid")) == pytest.approx(0.002 * SAMPLE_RATE, abs=3)
    assert not side[:88].any()


def test_noise_is_white_and_independent_in_both_channels() -> None:
    noise = dsp.noise()
    assert noise.shape == (2, SAMPLES)
    np.testing.assert_allclose([rms(channel) for channel in noise], 1.0, atol=0.01)
    assert abs(np.mean(noise[0] * noise[1])) < 0.01
    assert abs(np.mean(noise[0, 1:] * noise[0, :-1])) < 0.01
    bands = np.abs(np.fft.rfft(noise[0]))[1:].reshape(8, -1)
    np.testing.assert_allclose(decibels(np.sqrt((bands**2).mean(axis=1) / SAMPLES)), 0.0, atol=0.3)


def stepped_lowpass(signal: NDArray[np.float64], cutoff: NDArray[np.float64], q: float) -> NDArray[np.float64]:
    """One section as the book writes it, sample by sample."""
    output = np.empty(len(signal))
    first = second = 0.0
    for index, (x, g) in enumerate(zip(signal, np.tan(np.pi * cutoff / SAMPLE_RATE), strict=True)):
        high = (x - (g + 1 / q) * first - second) / (1 + g * (g + 1 / q))
        band = g * high + first
        output[index] = g * band + second
        first, second = g * high + band, g * band + output[index]
    return output


@pytest.mark.parametrize("samples", [1, 2, 3, 2000])
def test_filter_equals_the_sample_loop_while_its_cutoff_jumps(samples: int) -> None:
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((2, samples))
    cutoff = np.exp(rng.uniform(np.log(80.0), np.log(18000.0), samples))
    expected = [stepped_lowpass(stepped_lowpass(s, cutoff, dsp.BUTTERWORTH_Q[0]), cutoff, 16.0) for s in signals]
    np.testing.assert_allclose(dsp.lowpass(signals, cutoff, 16.0), expected, rtol=0, atol=1e-10)


def response(q: float, hertz: float, cutoff: float = 1000.0) -> float:
    """Gain in dB at a frequency, from the impulse response."""
    impulse = np.zeros((1, SAMPLE_RATE))
    impulse[0, 0] = 1.0
    filtered = dsp.lowpass(impulse, np.full(SAMPLE_RATE, cutoff), q)[0]
    return decibels(np.abs(np.fft.rfft(filtered))[int(hertz)])


def test_filter_is_flat_then_falls_by_24_decibels_an_octave() -> None:
    flat = dsp.BUTTERWORTH_Q[1]
    assert response(flat, 0) == pytest.approx(0.0, abs=1e-6)
    assert response(flat, 500) == pytest.approx(0.0, abs=0.05)
    assert response(flat, 1000) == pytest.approx(decibels(np.sqrt(0.5)), abs=0.01)
    assert response(flat, 2000) - response(flat, 4000) == pytest.approx(24.0, abs=1.5)


def test_resonance_lifts_the_cutoff() -> None:
    assert response(16.0, 1000) == pytest.approx(decibels(16.0 * dsp.BUTTERWORTH_Q[0]), abs=0.01)
    assert response(16.0, 0) == pytest.approx(0.0, abs=1e-6)


def test_filter_rings_out_at_the_highest_resonance() -> None:
    signals = np.zeros((1, SAMPLE_RATE))
    signals[0, :100] = np.random.default_rng(0).standard_normal(100)
    for cutoff in (130.0, 18000.0):
        # Jumping by octaves at every sample pumps no energy into it either.
        filtered = dsp.lowpass(signals, cutoff * np.where(np.arange(SAMPLE_RATE) % 2, 0.5, 1.0), 16.0)[0]
        assert np.abs(filtered).max() < 20.0
        assert np.abs(filtered[-4410:]).max() < 1e-6


def test_envelope_rises_decays_holds_and_falls() -> None:
    envelope = dsp.adsr(0.5, 0.3, 0.25, 0.6, held=seconds(2.0), longest=SAMPLES)
    assert envelope[0] == 0.0
    assert envelope[seconds(0.25)] == pytest.approx(0.5, abs=1e-4)
    assert envelope.max() == envelope[seconds(0.5)] == pytest.approx(1.0, abs=1e-4)
    assert envelope[seconds(0.5 + 0.3)] == pytest.approx(0.25 + 0.75e-3, abs=1e-4)
    assert envelope[seconds(2.0) - 1] == pytest.approx(0.25, abs=1e-4)
    assert decibels(envelope[seconds(2.3)] / 0.25) == pytest.approx(-30.0, abs=0.1)
    assert envelope[-1] == pytest.approx(dsp.SILENCE, rel=0.01)
    assert len(envelope) == pytest.approx(seconds(2.0 + 0.6 * (100 + decibels(0.25)) / 60), abs=2)


def test_release_starts_where_the_attack_was_broken_off() -> None:
    envelope = dsp.adsr(1.0, 0.1, 0.5, 0.1, held=seconds(0.2), longest=SAMPLES)
    assert envelope.max() == envelope[seconds(0.2) - 1] == pytest.approx(0.2, abs=1e-4)
    assert np.all(np.diff(envelope[seconds(0.2) - 1 :]) < 0.0)


def test_envelope_ends_with_the_sound() -> None:
    full = dsp.adsr(0.01, 0.1, 0.5, 3.0, held=4000, longest=SAMPLES)
    for longest in (100, 4000, 4001, 9000):
        assert np.array_equal(dsp.adsr(0.01, 0.1, 0.5, 3.0, held=4000, longest=longest), full[:longest])
