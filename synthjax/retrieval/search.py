"""The patches of an index whose sounds are nearest to a sound: exact, by a matrix product.

Shapes: S sounds, C channels, M mels, F frames, N patches, D components, K neighbours.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from synthjax.retrieval.embedding import pooled
from synthjax.retrieval.index import Index, Patch

# Patches compared at once: a chunk of 16 MB in float32.
CHUNK = 1 << 16


class Library:
    """An index of known patches that is searched. Its embeddings stay on the device."""

    def __init__(self, index: Index) -> None:
        self.spec, self.embedding, self.synth = index.spec, index.embedding, index.synth
        self._index = index
        self.digest = index.digest
        rest = -len(index) % CHUNK
        codes = np.pad(index.codes, ((0, rest), (0, 0)))
        self._chunks = [jnp.asarray(part) for part in np.split(codes, len(codes) // CHUNK)]

    def nearest(self, mels: Float[np.ndarray, "S C M F"], count: int) -> list[list[Patch]]:
        """The ``count`` patches nearest to each spectrogram in dB (all, if there are fewer), nearest first."""
        numbers, distances = self.search(mels, count)
        return [self._index.patches(*found) for found in zip(numbers, distances, strict=True)]

    def search(
        self, mels: Float[np.ndarray, "S C M F"], count: int
    ) -> tuple[Int[np.ndarray, "S K"], Float[np.ndarray, "S K"]]:
        """The numbers in the index of the patches that ``nearest`` returns, and their distances."""
        queries = jnp.asarray(self.embedding.project(np.stack([pooled(mel) for mel in mels])))
        found = []
        for number, chunk in enumerate(self._chunks):
            patches = min(CHUNK, len(self._index) - number * CHUNK)
            negative, places = _nearest(queries, chunk, patches, min(count, CHUNK))
            found.append((negative, places + number * CHUNK))
        negative, numbers = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        negative, order = jax.lax.top_k(negative, min(count, len(self._index)))
        squares = np.maximum(0.0, -np.asarray(negative))
        return np.asarray(jnp.take_along_axis(numbers, order, axis=1)), np.sqrt(squares)


@partial(jax.jit, static_argnames="count")
def _nearest(
    queries: Float[Array, "S D"], codes: Array, patches: int, count: int
) -> tuple[Float[Array, "S K"], Int[Array, "S K"]]:
    """Negative squared distances to the nearest of the first ``patches`` codes of a chunk, and their places."""
    codes = codes.astype(jnp.float32)
    squares = jnp.square(queries).sum(axis=1)[:, None] - 2.0 * queries @ codes.T + jnp.square(codes).sum(axis=1)[None]
    squares = jnp.where(jnp.arange(len(codes)) < patches, squares, jnp.inf)
    return jax.lax.top_k(-squares, count)
