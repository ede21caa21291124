"""Signal processing of the built-in synthesizer, in NumPy and SciPy without a Python loop over samples.

All signals are float64. Every function depends on its arguments alone. n is a number of samples at ``SAMPLE_RATE``.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.linalg import blas

from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SAMPLES
from data_pipeline.params.counter_rng import uniforms

Signal = NDArray[np.float64]

SAW, SQUARE, TRIANGLE = range(3)

# Far from the seeds that people choose, so that the noise is independent of a data set's parameters.
NOISE_SEED = 2**62

# A power of two. Reading between its points along straight lines errs by at most (pi h / TABLE_SIZE)^2 / 2 of harmonic
# h, which for the last harmonic (h = 341) of the lowest saw is 92 dB below the fundamental.
TABLE_SIZE = 8192

# The envelope ends at this level, 100 dB below its peak. The step to silence is below the spectrogram's floor.
SILENCE = 1e-5
# The time of a segment is that of a fall by 60 dB, as for reverberation.
FALL = math.log(1000.0)

# The two quality factors of a fourth-order Butterworth filter, the flattest that two sections make.
BUTTERWORTH_Q = (0.5411961, 1.3065630)

# The delay of the second voice, in seconds, and how it moves: a slow chorus.
SHORTEST_DELAY, LONGEST_DELAY, DELAY_HERTZ = 0.002, 0.006, 0.6
LONGEST_DELAY_SAMPLES = math.ceil(LONGEST_DELAY * SAMPLE_RATE)


def wavetable(shape: int, frequency: float) -> Signal:
    """One cycle (TABLE_SIZE + 1,) of a saw, square or triangle with the harmonics below half the sample rate.

    The last point repeats the first. All have the same power, 1, whatever the shape. The harmonics are those of the
    waveforms' Fourier series, all sines: 1/h for a saw, 1/h of odd h for a square, +-1/h^2 of odd h for a triangle
    (Stilson & Smith, "Alias-free digital synthesis of classic analog waveforms", ICMC 1996).
    """
    harmonics = np.arange(1, math.ceil(SAMPLE_RATE / 2 / frequency))
    amplitudes = 1.0 / harmonics
    if shape != SAW:
        amplitudes[1::2] = 0.0
    if shape == TRIANGLE:
        amplitudes *= np.sin(np.pi / 2 * harmonics) / harmonics
    amplitudes *= math.sqrt(2.0 / np.sum(amplitudes**2))
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, np.complex128)
    spectrum[harmonics] = -0.5j * TABLE_SIZE * amplitudes
    cycle = scipy.fft.irfft(spectrum)
    return np.append(cycle, cycle[0])


def oscillator(shape: int, frequency: float, n: int) -> Signal:
    """A band-limited waveform (n,) of power 1 that starts at phase 0. ``frequency`` is in hertz."""
    table = wavetable(shape, frequency)
    slopes = np.diff(table)
    position = np.arange(n) * (frequency / SAMPLE_RATE * TABLE_SIZE)
    point = position.astype(np.int64)
    position -= point
    point &= TABLE_SIZE - 1
    return table[point] + position * slopes[point]


@cache
def noise() -> Signal:
    """White noise (2, SAMPLES) of power 1, independent in both channels and the same in every process."""
    numbers = uniforms(NOISE_SEED, [0], [0], CHANNELS * SAMPLES).reshape(CHANNELS, SAMPLES)
    return (2.0 * numbers - 1.0) * math.sqrt(3.0)


def adsr(attack: float, decay: float, sustain: float, release: float, held: int, longest: int) -> Signal:
    """Amplitude envelope (n,) from note on until it has fallen to ``SILENCE``, at most ``longest`` samples.

    It rises in a straight line to 1 in ``attack`` seconds, then falls exponentially towards the ``sustain`` level. From
    its level after ``held`` samples it falls exponentially to 0. ``decay`` and ``release`` are the seconds of a fall
    by 60 dB.
    """
    seconds = np.arange(min(held, longest)) / SAMPLE_RATE
    decaying = sustain + (1.0 - sustain) * np.exp(-FALL / decay * np.maximum(seconds - attack, 0.0))
    pressed = np.where(seconds < attack, seconds / attack, decaying)
    level = float(pressed[-1])
    tail = math.ceil(math.log(max(level / SILENCE, 1.0)) * release / FALL * SAMPLE_RATE)
    seconds = np.arange(1, min(tail, longest - len(pressed)) + 1) / SAMPLE_RATE
    return np.concatenate([pressed, level * np.exp(-FALL / release * seconds)])


def lowpass(signals: Signal, cutoff: Signal, q: float) -> Signal:
    """Resonant low-pass of 24 dB an octave over signals (channels, n). The ``cutoff`` (n,) in hertz may change freely.

    Two second-order sections; ``q`` is the quality factor of the second, ``BUTTERWORTH_Q[1]`` for a flat passband.
    """
    gains = np.tan(np.pi / SAMPLE_RATE * cutoff)
    for section_q in (BUTTERWORTH_Q[0], q):
        signals = _section(signals, gains, 1.0 / section_q)
    return signals


def _section(signals: Signal, g: Signal, damping: float) -> Signal:
    """The trapezoidal state variable filter (Zavalishin, "The Art of VA Filter Design", chapters 4 and 5), exactly.

    With gain g_i = tan(pi f_i / SAMPLE_RATE), damping 1/Q and a = 1 / (1 + g (g + damping)), its two integrators hold
        s1' = (2a - 1) s1 - p s2 + p x,   s2' = p s1 + (1 - g p) s2 + g p x,   p = 2 a g,   low-pass y = (s2 + s2') / 2.
    Without s1 that is one recurrence of second order with varying coefficients, a triangular system of bandwidth 2:
        s2'_i - (c_i (2 a_{i-1} - 1) + 1 - g_i p_i) s2'_{i-1} + c_i d_{i-1} s2'_{i-2} = p_i (g_i x_i + g_{i-1} x_{i-1})
    where c_i = p_i / p_{i-1} and d = 2 a (1 + g^2) - 1; BLAS solves it by substitution.
    """
    a = 1.0 / (1.0 + g * (g + damping))
    p = 2.0 * a * g
    ratio = p[1:] / p[:-1]
    band = np.ones((len(g), 3))  # Row j holds column j of the system: its diagonal and the two below.
    band[:-1, 1] = g[1:] * p[1:] - 1.0 - ratio * (2.0 * a[:-1] - 1.0)
    band[:-2, 2] = ratio[1:] * (2.0 * a * (1.0 + g * g) - 1.0)[1:-1]
    filtered = np.empty_like(signals)
    for signal, output in zip(signals, filtered, strict=True):
        driven = g * signal
        right = p * driven
        right[1:] += p[1:] * driven[:-1]
        state = blas.dtbsv(2, band.T, right, lower=1, diag=1, overwrite_x=1)
        np.multiply(state, 0.5, out=output)
        output[1:] += 0.5 * state[:-1]
    return filtered


def widen(signals: Signal, width: float) -> Signal:
    """Stereo signals (2, n) with ``width`` times a delayed copy of their mean added left and taken away right.

    The two combs complement each other, so that the mono sum keeps its sound (Lauridsen 1954; Schroeder, "An
    artificial stereophonic effect obtained from a single audio signal", JAES 6, 1958); the slowly moving delay makes
    it a chorus. Let the last ``LONGEST_DELAY_SAMPLES`` of the input be silent: the copy's end falls there.
    """
    n = signals.shape[1]
    point, fraction = (values[:n] for values in _delay_line())
    middle = np.concatenate([np.zeros(LONGEST_DELAY_SAMPLES + 1), signals.mean(axis=0)])
    side = width * (middle[point] + fraction * np.diff(middle)[point])
    return signals + np.stack([side, -side])


@cache
def _delay_line() -> tuple[NDArray[np.int64], Signal]:
    """The read positions of the delayed copy since note on: points of the padded signal, and fractions."""
    swing = 0.5 - 0.5 * np.cos(2.0 * np.pi * DELAY_HERTZ / SAMPLE_RATE * np.arange(SAMPLES))
    delay = SAMPLE_RATE * (SHORTEST_DELAY + (LONGEST_DELAY - SHORTEST_DELAY) * swing)
    position = np.arange(SAMPLES) + (LONGEST_DELAY_SAMPLES + 1) - delay
    point = position.astype(np.int64)
    return point, position - point
