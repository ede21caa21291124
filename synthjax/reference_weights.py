"""Weights of the PyTorch reference, by its names, to this project's parameter tree.

PyTorch stores Linear as (out, in), Conv as (out, in, rows, columns) and attention's queries, keys and values packed
as (3D, D); layers that are scanned here are numbered there. Every weight must be used and every parameter filled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]
# Computed on the fly here: the reference's buffer of time-encoding frequencies.
IGNORED = re.compile(r"vector_field\.time_encoding\.basis")


class _Reader:
    """Hands out weights by name and remembers which were used."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._used: set[str] = set()

    def __call__(self, name: str) -> np.ndarray:
        if name not in self._weights:
            raise ValueError(f"weight {name} is missing")
        self._used.add(name)
        return np.asarray(self._weights[name], np.float32)

    def left_over(self) -> list[str]:
        return sorted(name for name in self._weights if name not in self._used and not IGNORED.fullmatch(name))


def _linear(read: _Reader, name: str) -> dict[str, np.ndarray]:
    return {"kernel": read(f"{name}.weight").T, "bias": read(f"{name}.bias")}


def _norm(read: _Reader, name: str) -> dict[str, np.ndarray]:
    return {"scale": read(f"{name}.weight"), "bias": read(f"{name}.bias")}


def _attention(read: _Reader, name: str, heads: int) -> dict[str, np.ndarray]:
    packed, out = read(f"{name}.in_proj_weight"), read(f"{name}.out_proj.weight")
    dim = out.shape[0]
    return {
        "qkv": packed.T.reshape(dim, 3, heads, dim // heads),
        "qkv_bias": read(f"{name}.in_proj_bias").reshape(3, heads, dim // heads),
        "out": out.T.reshape(heads, dim // heads, dim),
        "out_bias": read(f"{name}.out_proj.bias"),
    }


def _feed_forward(read: _Reader, up: str, down: str) -> dict[str, Any]:
    return {"up": _linear(read, up), "down": _linear(read, down)}


def _encoder_block(read: _Reader, name: str, heads: int) -> dict[str, Any]:
    return {
        "norm1": _norm(read, f"{name}.norm1"),
        "attention": _attention(read, f"{name}.self_attn", heads),
        "norm2": _norm(read, f"{name}.norm2"),
        "ff": _feed_forward(read, f"{name}.linear1", f"{name}.linear2"),
    }


def _field_block(read: _Reader, name: str, heads: int) -> dict[str, Any]:
    return {
        "norm1": _norm(read, f"{name}.norm1"),
        "attention": _attention(read, f"{name}.attn", heads),
        "norm2": _norm(read, f"{name}.norm2"),
        "ff": _feed_forward(read, f"{name}.ff.0", f"{name}.ff.2"),
        "modulation": _linear(read, f"{name}.cond.1"),
    }


def _stack(layers: list[Any]) -> Any:
    first = layers[0]
    if isinstance(first, dict):
        return {key: _stack([layer[key] for layer in layers]) for key in first}
    return np.stack(layers)


def _count(weights: Weights, prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in weights if (match := pattern.match(name))})


def _encoder(read: _Reader, weights: Weights, heads: int) -> dict[str, Any]:
    convolution = read("encoder.patch_embed.projection.weight")
    blocks = range(_count(weights, "encoder.blocks"))
    return {
        "patches": {
            "kernel": convolution.transpose(2, 3, 1, 0),
            "bias": read("encoder.patch_embed.projection.bias"),
        },
        "query_tokens": read("encoder.embed_tokens")[0],
        "positions": read("encoder.positional_encoding.pe")[0],
        "blocks": _stack([_encoder_block(read, f"encoder.blocks.{i}", heads) for i in blocks]),
        "out": _linear(read, "encoder.out_proj"),
    }


def _field(read: _Reader, weights: Weights, heads: int) -> dict[str, Any]:
    name, projection = "vector_field", "vector_field.projection"
    blocks = range(_count(weights, f"{name}.layers"))
    return {
        "projection": {
            "assignment": read(f"{projection}._assignment"),
            "embed_in": read(f"{projection}._in_projection"),
            "embed_out": read(f"{projection}._out_projection").T,
            "ff": _feed_forward(read, f"{projection}.initial_ffn.0", f"{projection}.initial_ffn.2"),
        },
        "dropout_token": read(f"{name}.cfg_dropout_token")[0],
        "conditioning": _feed_forward(read, f"{name}.conditioning_ffn.0", f"{name}.conditioning_ffn.2"),
        "blocks": _stack([_field_block(read, f"{name}.layers.{i}", heads) for i in blocks]),
    }


def flow_parameters(weights: Weights, heads: int) -> dict[str, Any]:
    """Parameter tree of a ``FlowModel`` (AST encoder, transformer field with Param2Tok).

    Args:
      weights: name -> array, names as in the reference's ``state_dict``.
      heads: attention heads of both networks, which the weights do not tell.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = _Reader(weights)
    parameters = {"encoder": _encoder(read, weights, heads), "field": _field(read, weights, heads)}
    if unused := read.left_over():
        raise ValueError(f"{len(unused)} weights have no place in the model: {', '.join(unused[:5])}")
    return parameters
