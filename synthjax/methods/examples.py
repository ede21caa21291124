"""The types and conversions that tasks and methods share: batches, examples, the scale of rows, the noise.

Shapes: B batch, W row width, C channels, M mels, F frames, S shape of one input.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

HostBatch = dict[str, np.ndarray]
# On the devices. With spectrograms: mel_spec (B, C, M, F) dB, x1 (B, W) in [-1, 1], x0 (B, W) noise.
Batch = dict[str, Array]
Metrics = dict[str, Array]  # Scalars.
# The first word of each random stream, so that no two uses of a seed share numbers.
TRAIN_NOISE, EVAL_NOISE, PREDICT_NOISE, CORRUPTION = 1, 2, 3, 4


class Examples(NamedTuple):
    """Model inputs, the true rows x1 on the model's scale, and the noise x0 that is paired with each row."""

    inputs: Float[Array, "B *S"]
    x0: Float[Array, "B W"]
    x1: Float[Array, "B W"]


def to_model_scale(rows: Float[np.ndarray, "*B W"]) -> Float[np.ndarray, "*B W"]:
    """Converts stored rows in [0, 1] to the model's scale [-1, 1]."""
    return 2.0 * rows.astype(np.float32) - 1.0


def from_model_scale(rows: Float[np.ndarray, "*B W"]) -> Float[np.ndarray, "*B W"]:
    """Converts rows on the model's scale to stored rows in [0, 1], not clipped."""
    return (rows + 1.0) / 2.0


def draw_noise(rows: int, width: int, *stream: int) -> Float[np.ndarray, "N W"]:
    """Standard normal rows of the counter-based generator with the key ``stream``."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(stream)))
    return generator.standard_normal((rows, width), np.float32)


def repeat_for_draws(rows: Float[Array, "B W"], x0: Float[Array, "B *K W"]) -> Float[Array, "B *K W"]:
    """The one row of each example, repeated for every noise row of ``x0``."""
    return jnp.broadcast_to(rows.reshape(rows.shape[0], *(1,) * (x0.ndim - 2), rows.shape[1]), x0.shape)
