"""Metrics of the k-osc task against the reference's figures, NumPy and brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.k_osc import metrics as metrics
from synthjax.k_osc.synthesis import KOsc, synthesise

B, K, S = 4, 4, 64
ON_SIGNALS = [metrics.log_spectral_distance, metrics.spectral_l1]
ON_ROWS = [metrics.chamfer_distance, metrics.linear_assignment_distance, metrics.linear_assignment_cost]


def pair(width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.uniform(-1, 1, (2, B, width)).astype(np.float32))


def distances(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(B, K, K) Euclidean distances, in float64."""
    points = [np.float64(rows).reshape(B, 3, K).transpose(0, 2, 1) for rows in (predicted, true)]
    return np.linalg.norm(points[0][:, :, None] - points[1][:, None], axis=-1)


@pytest.fixture(scope="module")
def stored(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / "reference" / "k_osc_signal.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("metric", ON_SIGNALS)
def test_parity_on_signals(stored: dict[str, np.ndarray], metric: Callable) -> None:
    task = KOsc(int(stored["k"]))
    values = metric(*(synthesise(jnp.asarray(stored[name]), task) for name in ("params", "target")))
    np.testing.assert_allclose(values.mean(), stored[metric.__name__], rtol=1e-4)


@pytest.mark.parametrize("metric", ON_ROWS)
def test_parity_on_rows(stored: dict[str, np.ndarray], metric: Callable) -> None:
    values = metric(jnp.asarray(stored["params"]), jnp.asarray(stored["target"]))
    name = metric.__name__.replace("chamfer_distance", "chamfer")
    np.testing.assert_allclose(values.mean(), stored[name], rtol=1e-4)


def test_log_spectral_distance_is_in_decibels_above_a_floor() -> None:
    a, b = pair(S)
    a[0] = 0  # Silence is at the floor of -80 dB.
    power = [np.maximum(np.abs(np.fft.rfft(np.float64(x)) / S) ** 2, 1e-8) for x in (a, b)]
    expected = np.sqrt(((10 * np.log10(power[0]) - 10 * np.log10(power[1])) ** 2).mean(axis=1))
    np.testing.assert_allclose(jax.jit(metrics.log_spectral_distance)(a, b), expected, rtol=1e-4)
    assert metrics.log_spectral_distance(jnp.zeros((1, S)), jnp.zeros((1, S))) == 0


def test_spectral_l1_is_the_mean_difference_of_magnitudes() -> None:
    a, b = pair(S)
    expected = np.abs(np.abs(np.fft.rfft(a)) - np.abs(np.fft.rfft(b))).mean(axis=1) / S
    np.testing.assert_allclose(jax.jit(metrics.spectral_l1)(a, b), expected, rtol=1e-5)


def test_chamfer_distance_adds_both_directions() -> None:
    a, b = pair(3 * K)
    squared = distances(a, b) ** 2
    expected = squared.min(axis=2).mean(axis=1) + squared.min(axis=1).mean(axis=1)
    np.testing.assert_allclose(jax.jit(metrics.chamfer_distance)(a, b), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("metric", "cost"),
    [
        (metrics.linear_assignment_distance, lambda d: d),
        (metrics.linear_assignment_cost, lambda d: d**2 / 3),
    ],
)
def test_linear_assignment_is_the_best_of_all_permutations(metric: Callable, cost: Callable) -> None:
    a, b = pair(3 * K)
    costs = cost(distances(a, b))
    orders = [list(order) for order in itertools.permutations(range(K))]
    expected = np.min([costs[:, range(K), order].mean(axis=1) for order in orders], axis=0)
    np.testing.assert_allclose(metric(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5)


@pytest.mark.parametrize("metric", ON_ROWS)
def test_distances_of_rows_do_not_see_the_order_of_oscillators(metric: Callable) -> None:
    a, b = (jnp.asarray(rows) for rows in pair(3 * K))
    moved = a.reshape(B, 3, K)[:, :, np.array([2, 0, 3, 1])].reshape(B, -1)
    np.testing.assert_allclose(metric(moved, b), metric(a, b), rtol=1e-6)
    np.testing.assert_array_equal(metric(moved, a), 0)
