"""The k-osc task: its signals against the formulas and the reference, its rows, its keys."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.k_osc import synthesis as k_osc
from synthjax.k_osc.synthesis import KOsc
from tests.synthjax import numpy_baselines as reference

B, K = 5, 3
PAPER = KOsc(K, frequency_range=k_osc.PAPER_RANGE)
VARIANTS = [KOsc(K), KOsc(K, symmetric=False), PAPER]

synthesise = jax.jit(k_osc.synthesise, static_argnames="task")


def rows(batch: int = B, oscillators: int = K) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (batch, 3 * oscillators)).astype(np.float32)


@pytest.mark.parametrize(("name", "symmetric"), [("signal", True), ("signal_asymmetric", False)])
def test_parity_signal(shared_data: Path, name: str, symmetric: bool) -> None:
    with np.load(shared_data / "reference" / "k_osc_signal.npz", allow_pickle=False) as stored:
        task = KOsc(int(stored["k"]), symmetric=symmetric)
        np.testing.assert_allclose(synthesise(stored["params"], task), stored[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", VARIANTS)
def test_signal_equals_the_formulas(task: KOsc) -> None:
    cycles = np.asarray(k_osc.cycles_per_sample(jnp.asarray(rows()[:, :K]), task))
    signals = np.asarray(synthesise(rows(), task))
    assert (signals.shape, signals.dtype) == ((B, 1024), np.float32)
    for row, d, signal in zip(rows(), cycles, signals, strict=True):
        # Phases reach 512 cycles at the Nyquist frequency, where float32 is 3e-5 cycles apart.
        tolerance = 5e-4 if task is PAPER else 1e-4
        np.testing.assert_allclose(signal, reference.k_osc_signal(row, d, 1024), rtol=0, atol=tolerance)


@pytest.mark.parametrize("waveform", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("hertz", [20.0, 441.0, 3_999.0])
def test_one_wave_at_full_amplitude_equals_the_formulas(waveform: float, hertz: float) -> None:
    task = KOsc(1)
    row = np.float32([[2 * (hertz - 20) / 3980 - 1, 1.0, waveform]])
    cycles = np.asarray(k_osc.cycles_per_sample(jnp.asarray(row[:, :1]), task))[0]
    np.testing.assert_allclose(
        synthesise(row, task)[0], reference.k_osc_signal(row[0], cycles, 1024), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("task", "low", "high"),
    [
        (KOsc(2), [20.0, 20.0], [4_000.0, 4_000.0]),
        (KOsc(2, symmetric=False), [20.0, 2_010.0], [2_010.0, 4_000.0]),
        (KOsc(2, frequency_range=k_osc.PAPER_RANGE), [0.0, 0.0], [22_050.0, 22_050.0]),
        (KOsc(2, False, k_osc.PAPER_RANGE), [0.0, 11_025.0], [11_025.0, 22_050.0]),
    ],
)
def test_frequencies_span_the_range_or_each_oscillators_band(task: KOsc, low: list[float], high: list[float]) -> None:
    ends = 44_100 * np.asarray(k_osc.cycles_per_sample(jnp.array([[-1.0, -1.0], [1.0, 1.0]]), task))
    np.testing.assert_allclose(ends, [low, high], rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_order_of_oscillators_matters_only_without_symmetry(symmetric: bool) -> None:
    task, order = KOsc(K, symmetric=symmetric), np.array([2, 0, 1])
    moved = rows().reshape(B, 3, K)[:, :, order].reshape(B, -1)
    difference = np.abs(synthesise(rows(), task) - synthesise(moved, task)).max(axis=1)
    assert (difference < 1e-6).all() if symmetric else (difference > 1e-2).all()


def test_values_outside_the_range_count_as_its_ends() -> None:
    task, wide = KOsc(K), 2 * rows()
    np.testing.assert_array_equal(synthesise(wide, task), synthesise(np.clip(wide, -1, 1), task))


@pytest.mark.parametrize("hertz", [0.0, 22_050.0, 11_025.0, 5_512.5])
@pytest.mark.parametrize("waveform", [-1.0, 0.0, 1.0])
def test_extreme_frequencies_give_finite_bounded_waves(hertz: float, waveform: float) -> None:
    task = KOsc(1, frequency_range=k_osc.PAPER_RANGE)
    signal = synthesise(np.float32([[2 * hertz / 22_050 - 1, 1.0, waveform]]), task)
    assert np.abs(signal).max() <= 1.0 + 1e-6


def test_an_oscillator_of_0_hz_has_no_steps() -> None:
    task = KOsc(1, frequency_range=k_osc.PAPER_RANGE)
    constant = [synthesise(np.float32([[-1.0, 1.0, waveform]]), task)[0] for waveform in (-1.0, 0.0, 1.0)]
    np.testing.assert_array_equal(np.stack(constant), np.tile([[0.0], [-1.0], [-1.0]], 1024))


@pytest.mark.parametrize("cycles", [1 / 8, 1 / 64])
def test_a_square_crosses_zero_where_its_phase_is_half_a_cycle(cycles: float) -> None:
    """Phases are exact here, so that samples fall on both steps, where the smoothed wave is 0."""
    n, d = jnp.arange(256.0), jnp.full((1, 1), cycles)
    wave = np.asarray(k_osc._mixed_wave(n, d, jnp.zeros((1, 1))))[0]
    steps = np.flatnonzero(np.arange(256) * cycles % 0.5 == 0)
    np.testing.assert_array_equal(wave[steps], 0)
    assert np.abs(np.delete(wave, steps)).min() > 0.5


def test_silent_oscillators_are_silent() -> None:
    row = rows()
    row[:, K : 2 * K] = -1.0
    np.testing.assert_array_equal(synthesise(row, KOsc(K)), 0)


def test_rows_are_uniform_on_the_whole_range() -> None:
    drawn = np.asarray(k_osc.draw_rows(jax.random.key(0), 4_096, K))
    assert (drawn.shape, drawn.dtype) == ((4_096, 9), np.float32)
    assert drawn.min() >= -1
    assert drawn.max() < 1
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=5 / np.sqrt(3 * 4_096))
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), [-0.8, 0, 0.8], atol=0.02)
    correlation = np.corrcoef(drawn.T) - np.eye(9)
    assert np.abs(correlation).max() < 5 / np.sqrt(4_096)


def test_oscillators_are_split_from_a_row_and_joined_to_it() -> None:
    row = np.float32([[1, 2, 10, 20, 100, 200]])
    split = k_osc.split_oscillators(jnp.asarray(row))
    np.testing.assert_array_equal(split, [[[1, 10, 100], [2, 20, 200]]])
    np.testing.assert_array_equal(k_osc.join_oscillators(split), row)


@partial(jax.jit, static_argnums=(0, 1))
def key_words(seed: int, split: str, steps: jax.Array) -> jax.Array:
    return jax.vmap(lambda step: jax.random.key_data(k_osc.batch_key(seed, split, step)))(steps)


def test_no_two_batches_share_a_key() -> None:
    steps = jnp.concatenate([jnp.arange(3_000), jnp.arange(400_000, 401_000)])
    words = np.concatenate([np.asarray(key_words(0, split, steps)) for split in k_osc.SPLITS])
    assert len(np.unique(words, axis=0)) == 3 * 4_000
    # Nor does a training step that folds its number into a key of the same seed.
    step_keys = jax.vmap(lambda step: jax.random.key_data(jax.random.fold_in(jax.random.key(0), step)))
    everything = np.concatenate([words, np.asarray(step_keys(jnp.arange(12_000)))])
    assert len(np.unique(everything, axis=0)) == 2 * 12_000


def test_batches_depend_on_seed_split_and_step_alone() -> None:
    draw = jax.jit(
        lambda seed, split, step: k_osc.draw_rows(k_osc.batch_key(seed, split, step), 64, K), static_argnums=(0, 1)
    )
    batches = [draw(*at) for at in [(0, "train", 0), (0, "train", 1), (0, "val", 0), (0, "test", 0), (1, "train", 0)]]
    rows_drawn = np.concatenate(batches)
    assert len(np.unique(rows_drawn, axis=0)) == len(rows_drawn)
    np.testing.assert_array_equal(draw(0, "train", 1), k_osc.draw_rows(k_osc.batch_key(0, "train", 1), 64, K))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="not in"):
        k_osc.batch_key(0, "training", 0)
