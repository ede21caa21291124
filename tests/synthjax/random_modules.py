"""Modules with batch normalisation, filled without running (and compiling) their initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def randomised(make: Callable[[], M], scale: float = 0.4, seed: int = 0) -> M:
    """A module with parameters and running means of scale * N(0, 1), and running variances around 1."""
    rng = np.random.default_rng(seed)
    graph, abstract = nnx.split(nnx.eval_shape(make))

    def draw(path: tuple[jax.tree_util.KeyEntry, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        normal = rng.normal(size=leaf.shape)
        is_variance = "var" in [getattr(entry, "key", None) for entry in path]
        return jnp.asarray(np.exp(0.3 * normal) if is_variance else scale * normal, jnp.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, abstract))


def started(make: Callable[[], M]) -> M:
    """A module about as it starts: kernels by their fan-in, biases 0, norms the identity."""
    rng = np.random.default_rng(0)
    graph, abstract = nnx.split(nnx.eval_shape(make))

    def draw(path: tuple[jax.tree_util.KeyEntry, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        names = [getattr(entry, "key", None) for entry in path]
        if "kernel" not in names:
            return jnp.full(leaf.shape, float("scale" in names or "var" in names), jnp.float32)
        fan_in = leaf.shape[1] if leaf.ndim == 3 else math.prod(leaf.shape[:-1])  # Stacked layers have three axes.
        return jnp.asarray(rng.uniform(-1.0, 1.0, leaf.shape) / math.sqrt(fan_in), jnp.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, abstract))


def statistics(module: nnx.Module) -> dict:
    """The running statistics as a tree of NumPy arrays."""
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))
