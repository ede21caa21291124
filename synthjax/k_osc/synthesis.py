r"""The paper's synthetic task: the mean of k oscillators, each of a frequency, an amplitude and a waveform.

    u_i     = (f_i + 1) / 2, asymmetric (i + (f_i + 1) / 2) / k            (1)  place in the frequency range
    d_i     = (low + (high - low) u_i) / rate                              (2)  cycles a sample
    phi_i   = frac(n d_i)                                                  (3)  phase in cycles, n = 0, 1, ...
    y       = 1/k sum_i (a_i + 1)/2 (s_i sine + q_i square + r_i saw)      (4)  signal, waveforms of phi_i
    s, q, r = max(-w_i, 0), 1 - |w_i|, max(w_i, 0)                         (5)  mix of waveform w_i
    sine    = -sin(2 pi phi)                                               (6)
    saw     = 2 phi - 1 + h p_0^2                                          (7)
    square  = h (p_0^2 + p_1^2 - 1)                                        (8)
    p_0     = max(1 - min(phi, 1 - phi) / d, 0)                            (9)  nearness of the step at phase 0
    p_1     = max(1 - |phi - 1/2| / d, 0)                                 (10)  nearness of the step at phase 1/2

Every f, a and w is uniform on [-1, 1]. In the symmetric task any order of the oscillators sounds the same. In the
asymmetric task oscillator i has the i-th of k frequency bands, so a row has one right order. h is 1 in the first half
of a cycle and -1 in the second. p_0 and p_1 smooth the steps of square and saw over one sample to either side
(polyBLEP; Välimäki, Huovilainen, "Antialiasing oscillators in subtractive synthesis", 2007).

Shapes: B batch, K oscillators, S samples. A row is (3K,): all frequencies, then all amplitudes, then all waveforms.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from data_pipeline.audio.contract import SAMPLE_RATE

SAMPLES = 1_024
FEATURES = 3  # Frequency, amplitude, waveform.
# In Hz: the range of the reference's code, and the range that the paper gives.
RELEASED_RANGE = (20.0, 4_000.0)
PAPER_RANGE = (0.0, SAMPLE_RATE / 2)
SPLITS = ("train", "val", "test")
# Keeps these keys apart from those of a training step, which folds its smaller step number into the same seed.
STREAM = 0x6B4F5343


@dataclass(frozen=True)
class KOsc:
    """One variant of the task.

    Attributes:
      oscillators: K.
      symmetric: whether the order of the oscillators is free, see eq. (1).
      frequency_range: low and high of eq. (2) in Hz.
    """

    oscillators: int
    symmetric: bool = True
    frequency_range: tuple[float, float] = RELEASED_RANGE

    @property
    def width(self) -> int:
        """Columns of a row."""
        return FEATURES * self.oscillators


def batch_key(seed: int, split: str, step: int | Array) -> Array:
    """The key of batch ``step`` of a split; no two are the same.

    The batches of all splits share one numbering. Different numbers below 2^32, folded into one key, give different
    keys, because the fold is a block cipher.

    Args:
      split: one of ``SPLITS``.
      step: below 2^32 / 3; may be traced.

    Raises:
      ValueError: for an unknown split.
    """
    stream = jax.random.fold_in(jax.random.key(seed), STREAM)
    return jax.random.fold_in(stream, len(SPLITS) * jnp.asarray(step, jnp.uint32) + SPLITS.index(split))


def draw_rows(key: Array, count: int, oscillators: int) -> Float[Array, "B 3*K"]:
    """Rows uniform on [-1, 1): the data of the task, and with another key the random answers."""
    return jax.random.uniform(key, (count, FEATURES * oscillators), minval=-1.0, maxval=1.0)


def split_oscillators(rows: Float[Array, "B 3*K"]) -> Float[Array, "B K 3"]:
    """The frequency, amplitude and waveform of each oscillator side by side."""
    return rows.reshape(rows.shape[0], FEATURES, -1).swapaxes(1, 2)


def join_oscillators(oscillators: Float[Array, "B K 3"]) -> Float[Array, "B 3*K"]:
    """The inverse of ``split_oscillators``."""
    return oscillators.swapaxes(1, 2).reshape(oscillators.shape[0], -1)


def synthesise(rows: Float[Array, "B 3*K"], task: KOsc) -> Float[Array, "B S"]:
    """The signals of rows, eqs. (1) to (10); values outside [-1, 1] are clipped."""
    frequency, amplitude, waveform = jnp.split(jnp.clip(rows, -1.0, 1.0), FEATURES, axis=-1)
    oscillators = (cycles_per_sample(frequency, task), (amplitude + 1.0) / 2.0, waveform)
    n = jnp.arange(SAMPLES, dtype=jnp.float32)

    def add(signal: Array, oscillator: tuple[Array, ...]) -> tuple[Array, None]:
        d, a, w = (column[:, None] for column in oscillator)
        return signal + a * _mixed_wave(n, d, w), None

    # One oscillator after the other: for all at once, XLA's CPU backend would keep several arrays of B x K x S.
    silence = jnp.zeros((rows.shape[0], SAMPLES), jnp.float32)
    signal, _ = jax.lax.scan(add, silence, tuple(column.T for column in oscillators))
    return signal / task.oscillators


def cycles_per_sample(frequency: Float[Array, "B K"], task: KOsc) -> Float[Array, "B K"]:
    """Eqs. (1) and (2)."""
    place = (frequency + 1.0) / 2.0
    if not task.symmetric:
        place = (jnp.arange(task.oscillators, dtype=jnp.float32) + place) / task.oscillators
    low, high = task.frequency_range
    return (low + (high - low) * place) / SAMPLE_RATE


def _mixed_wave(n: Float[Array, " S"], d: Float[Array, "B 1"], w: Float[Array, "B 1"]) -> Float[Array, "B S"]:
    """The waveform mix, the last bracket of eq. (4)."""
    cycles = n * d  # One rounding for each sample; a running sum of d would add up a thousand.
    phase = cycles - jnp.floor(cycles)
    half = jnp.where(phase < 0.5, 1.0, -1.0)
    at_0 = jnp.square(_nearness(jnp.minimum(phase, 1.0 - phase), d))
    at_half = jnp.square(_nearness(jnp.abs(phase - 0.5), d))
    sine = -jnp.sin(2.0 * jnp.pi * phase)
    saw = 2.0 * phase - 1.0 + half * at_0
    square = half * (at_0 + at_half - 1.0)
    return jnp.maximum(-w, 0.0) * sine + (1.0 - jnp.abs(w)) * square + jnp.maximum(w, 0.0) * saw


def _nearness(distance: Float[Array, "B S"], d: Float[Array, "B 1"]) -> Float[Array, "B S"]:
    """Eqs. (9) and (10): 1 at a step, 0 from one sample away; 0 everywhere at 0 Hz, where there are no steps."""
    return jnp.maximum(d - distance, 0.0) * (1.0 / jnp.maximum(d, jnp.finfo(jnp.float32).tiny))
