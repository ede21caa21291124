r"""Metrics of the k-osc task: distances between predicted and true rows, in sound and in parameters.

    P(x)   = max(|rfft(x) / S|^2, 1e-8)                                    (1)  power spectrum, floor -80 dB
    LSD    = sqrt(mean over bins (10 log10 P(a) - 10 log10 P(b))^2)        (2)  log spectral distance, dB
    L1     = mean over bins | |rfft(a)| - |rfft(b)| | / S                  (3)  spectral L1 distance
    C      = mean_j min_i |p_i - q_j|^2 + mean_i min_j |p_i - q_j|^2       (4)  Chamfer distance of oscillators p, q
    D      = min over permutations s of mean_i |p_i - q_s(i)|              (5)  linear assignment distance
    E      = min over permutations s of mean_i |p_i - q_s(i)|^2 / 3        (6)  linear assignment cost

Eqs. (5) and (6) each have a permutation of their own. Every function returns one value for each example, so that tables
can show intervals; lower is better.

Shapes: B batch, S samples, K oscillators. Rows are (3K,), see ``synthjax.k_osc.synthesis``.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import linear_sum_assignment

from synthjax.k_osc.synthesis import FEATURES, split_oscillators

POWER_FLOOR = 1e-8

Signals = Float[Array, "B S"]
Rows = Float[Array, "B 3*K"]
PerExample = Float[Array, " B"]


def log_spectral_distance(predicted: Signals, true: Signals) -> PerExample:
    """Eq. (2)."""
    levels = [10.0 * jnp.log10(jnp.maximum(jnp.square(_magnitudes(x)), POWER_FLOOR)) for x in (predicted, true)]
    return jnp.sqrt(jnp.square(levels[0] - levels[1]).mean(axis=-1))


def spectral_l1(predicted: Signals, true: Signals) -> PerExample:
    """Eq. (3)."""
    return jnp.abs(_magnitudes(predicted) - _magnitudes(true)).mean(axis=-1)


def chamfer_distance(predicted: Rows, true: Rows) -> PerExample:
    """Eq. (4); it does not depend on the order of the oscillators."""
    distances = _squared_distances(predicted, true)
    return distances.min(axis=1).mean(axis=-1) + distances.min(axis=2).mean(axis=-1)


def linear_assignment_distance(predicted: Rows, true: Rows) -> Float[np.ndarray, " B"]:
    """Eq. (5), by the Hungarian algorithm on the host."""
    return _least_mean(jnp.sqrt(_squared_distances(predicted, true)))


def linear_assignment_cost(predicted: Rows, true: Rows) -> Float[np.ndarray, " B"]:
    """Eq. (6), by the Hungarian algorithm on the host."""
    return _least_mean(_squared_distances(predicted, true) / FEATURES)


def _magnitudes(signals: Signals) -> Float[Array, "B S//2+1"]:
    return jnp.abs(jnp.fft.rfft(signals)) / signals.shape[-1]


def _squared_distances(predicted: Rows, true: Rows) -> Float[Array, "B K K"]:
    """The squared distances of every predicted to every true oscillator.

    They are sums of squared differences: the expanded square would lose digits for oscillators that are close.
    """
    differences = split_oscillators(predicted)[:, :, None] - split_oscillators(true)[:, None, :]
    return jnp.square(differences).sum(axis=-1)


def _least_mean(costs: Float[Array, "B K K"]) -> Float[np.ndarray, " B"]:
    """The mean cost of the best assignment in each example."""
    matrices = np.asarray(costs, np.float64)
    return np.array([matrix[linear_sum_assignment(matrix)].mean() for matrix in matrices])
