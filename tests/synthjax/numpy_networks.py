"""The networks of MODELS.md written out in NumPy float64, from the formulas and not from our modules.

Parameters come as the nested dicts that ``parameters`` returns; ``layer`` picks one of a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import erf

Tree = dict[str, Any]
M = TypeVar("M", bound=nnx.Module)


def filled(make: Callable[[], M], seed: int = 0, scale: float = 0.4) -> M:
    """A module whose every parameter is drawn from scale * N(0, 1), without running its initialisation.

    Zero biases and unit scales would hide what is done with them.
    """
    graph, abstract = nnx.split(nnx.eval_shape(make))
    leaves, structure = jax.tree.flatten(abstract)
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(np.float32(scale * rng.normal(size=leaf.shape))) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(structure, drawn))


def call(module: nnx.Module, *inputs: Any, method: str = "__call__") -> Any:
    """``module.method(*inputs)``, compiled as a whole, once for modules of the same structure."""
    return _run(*nnx.split(module), method, inputs)


@partial(jax.jit, static_argnames=("graph", "method"))
def _run(graph: nnx.GraphDef, state: nnx.State, method: str, inputs: tuple[Any, ...]) -> Any:
    return getattr(nnx.merge(graph, state), method)(*inputs)


def abstract_call(make: Callable[[], nnx.Module], *inputs: Any, method: str = "__call__") -> Any:
    """Shape and dtype of ``make().method(*inputs)``; computes nothing."""
    return jax.eval_shape(lambda *inputs: getattr(make(), method)(*inputs), *inputs)


def parameters(module: nnx.Module) -> Tree:
    """All parameters of a module as float64 arrays."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def layer(stacked: Tree, index: int) -> Tree:
    """The parameters of one layer of a stack."""
    return jax.tree.map(lambda x: x[index], stacked)


def depth(stacked: Tree) -> int:
    """How many layers a stack has."""
    return len(jax.tree.leaves(stacked)[0])


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1.0 + erf(x / np.sqrt(2.0)))


def layer_norm(p: Tree, x: np.ndarray) -> np.ndarray:
    variance = x.var(axis=-1, keepdims=True)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def linear(p: Tree, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def feed_forward(p: Tree, x: np.ndarray) -> np.ndarray:
    return linear(p["down"], gelu(linear(p["up"], x)))


def softmax_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(B, N, H, K), (B, M, H, K) twice -> (B, N, H, K), one example and head at a time."""
    out = np.empty(query.shape)
    for b in range(query.shape[0]):
        for h in range(query.shape[2]):
            scores = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ value[b, :, h]
    return out


def self_attention(p: Tree, x: np.ndarray) -> np.ndarray:
    heads = p["out"].shape[0]
    out = np.broadcast_to(p["out_bias"], x.shape).copy()
    for h in range(heads):
        q, k, v = (x @ p["qkv"][:, i, h] + p["qkv_bias"][i, h] for i in range(3))
        out += softmax_attention(q[:, :, None], k[:, :, None], v[:, :, None])[:, :, 0] @ p["out"][h]
    return out


def encoder_block(p: Tree, x: np.ndarray) -> np.ndarray:
    x = x + self_attention(p["attention"], layer_norm(p["norm1"], x))
    return x + feed_forward(p["ff"], layer_norm(p["norm2"], x))


def spectrogram_transformer(
    p: Tree, mel: np.ndarray, *, queries: int, patch: int, stride: int, grid: tuple[int, int]
) -> np.ndarray:
    """Zeros after the data, patches mel row by mel row, queries first, no final norm, queries out of one Linear."""
    batch, channels, mels, frames = mel.shape
    padded = np.zeros((batch, channels, grid[0] * stride + patch, grid[1] * stride + patch))
    padded[:, :, :mels, :frames] = mel
    tokens = [np.broadcast_to(token, (batch, token.size)) for token in p["query_tokens"]]
    for row in range(grid[0]):
        for column in range(grid[1]):
            window = padded[:, :, row * stride :, column * stride :][:, :, :patch, :patch]
            tokens.append(np.einsum("bcij,ijcd->bd", window, p["patches"]["kernel"]) + p["patches"]["bias"])
    x = np.stack(tokens, axis=1) + p["positions"]
    for index in range(depth(p["blocks"])):
        x = encoder_block(layer(p["blocks"], index), x)
    return linear(p["out"], x[:, :queries])


def to_tokens(p: Tree, x: np.ndarray) -> np.ndarray:
    """A h(diag(x) Z), one row at a time."""
    return np.stack([p["assignment"] @ feed_forward(p["ff"], np.diag(row) @ p["embed_in"]) for row in x])


def to_row(p: Tree, tokens: np.ndarray) -> np.ndarray:
    """(Z' * (A^T X)) 1, one example at a time."""
    return np.stack([(p["embed_out"] * (p["assignment"].T @ x)).sum(axis=1) for x in tokens])


def time_encoding(t: np.ndarray, features: int) -> np.ndarray:
    """cos, then sin, of t / 10000^(i / half); the scalar t for one feature."""
    if features == 1:
        return t[:, None]
    half = features // 2
    angles = np.array([[time / 10_000 ** (i / half) for i in range(half)] for time in t])
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def field_block(p: Tree, x: np.ndarray, c: np.ndarray) -> np.ndarray:
    g1, b1, a1, g2, b2, a2 = (chunk[:, None] for chunk in np.split(linear(p["modulation"], gelu(c)), 6, axis=-1))
    x = x + a1 * self_attention(p["attention"], g1 * layer_norm(p["norm1"], x) + b1)
    return x + a2 * feed_forward(p["ff"], g2 * layer_norm(p["norm2"], x) + b2)


def transformer_field(p: Tree, x: np.ndarray, t: np.ndarray, z: np.ndarray) -> np.ndarray:
    """v(x, t | z) for z (B, L, D)."""
    features = p["conditioning"]["up"]["kernel"].shape[0] - z.shape[-1]
    time, tokens = time_encoding(t, features), to_tokens(p["projection"], x)
    for index in range(depth(p["blocks"])):
        c = feed_forward(p["conditioning"], np.concatenate([z[:, index], time], axis=-1))
        tokens = field_block(layer(p["blocks"], index), tokens, c)
    return to_row(p["projection"], tokens)
