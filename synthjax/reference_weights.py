"""Weights of the PyTorch reference, by its names, to this project's parameter tree.

PyTorch stores Linear as (out, in), Conv as (out, in, rows, columns) and attention's queries, keys and values packed
as (3D, D); layers that are scanned here are numbered there. Every weight must be used and every parameter filled.
``synthjax.reference_baselines`` has the models besides the flow on spectrograms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]
Tree = dict[str, Any]
# Buffers that need not be stored: frequencies of the time encoding, computed here on the fly; the encoder's memory of
# its device; how many batches the running statistics of batch normalisation have seen.
IGNORED = re.compile(r"(.+\.)?(time_encoding\.basis|_d|num_batches_tracked)")


class Reader:
    """Hands out weights by name and remembers which were used.

    Args:
      weights: name -> array.
      scope: the module whose weights have to be used up, by the first words of their names; "" is all of them.
    """

    def __init__(self, weights: Weights, scope: str = "") -> None:
        self._weights = weights
        self._scope = f"{scope}." if scope else ""
        self._used: set[str] = set()

    def __call__(self, name: str) -> np.ndarray:
        if name not in self._weights:
            raise ValueError(f"weight {name} is missing")
        self._used.add(name)
        return np.asarray(self._weights[name], np.float32)

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def single(self, name: str, axes: int = 1) -> np.ndarray:
        """A weight without the first axes, along which there is one of it. Raises ValueError where there are more."""
        weight = self(name)
        if weight.shape[:axes] != (1,) * axes:
            raise ValueError(f"weight {name} of shape {weight.shape} is not one along its first {axes} axes")
        return weight.reshape(weight.shape[axes:])

    def count(self, prefix: str) -> int:
        """How many numbered modules there are under a name. Raises ValueError where there are none."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = {match[1] for name in self._weights if (match := pattern.match(name))}
        if not numbers:
            raise ValueError(f"weights {prefix}.0 are missing")
        return len(numbers)

    def finish(self) -> None:
        """Raises ValueError naming weights that were not used."""
        names = (name for name in self._weights if name.startswith(self._scope))
        unused = sorted(name for name in names if name not in self._used and not IGNORED.fullmatch(name))
        if unused:
            raise ValueError(f"{len(unused)} weights have no place in the model: {', '.join(unused[:5])}")


def linear(read: Reader, name: str) -> Tree:
    """A Linear."""
    return {"kernel": read(f"{name}.weight").T, "bias": read(f"{name}.bias")}


def norm(read: Reader, name: str) -> Tree:
    """The affine part of a normalisation."""
    return {"scale": read(f"{name}.weight"), "bias": read(f"{name}.bias")}


def attention(read: Reader, name: str, heads: int) -> Tree:
    """Multi-head attention with packed queries, keys and values."""
    packed, out = read(f"{name}.in_proj_weight"), read(f"{name}.out_proj.weight")
    dim = out.shape[0]
    return {
        "qkv": packed.T.reshape(dim, 3, heads, dim // heads),
        "qkv_bias": read(f"{name}.in_proj_bias").reshape(3, heads, dim // heads),
        "out": out.T.reshape(heads, dim // heads, dim),
        "out_bias": read(f"{name}.out_proj.bias"),
    }


def feed_forward(read: Reader, up: str, down: str) -> Tree:
    """Two Linears around an activation."""
    return {"up": linear(read, up), "down": linear(read, down)}


def stack(layers: list[Any]) -> Any:
    """Layers that are numbered there as one that leads with an L axis."""
    first = layers[0]
    if isinstance(first, dict):
        return {key: stack([layer[key] for layer in layers]) for key in first}
    return np.stack(layers)


def _encoder_block(read: Reader, name: str, heads: int) -> Tree:
    return {
        "norm1": norm(read, f"{name}.norm1"),
        "attention": attention(read, f"{name}.self_attn", heads),
        "norm2": norm(read, f"{name}.norm2"),
        "ff": feed_forward(read, f"{name}.linear1", f"{name}.linear2"),
    }


def _field_block(read: Reader, name: str, heads: int) -> Tree:
    return {
        "norm1": norm(read, f"{name}.norm1"),
        "attention": attention(read, f"{name}.attn", heads),
        "norm2": norm(read, f"{name}.norm2"),
        "ff": feed_forward(read, f"{name}.ff.0", f"{name}.ff.2"),
        "modulation": linear(read, f"{name}.cond.1"),
    }


def spectrogram_transformer(read: Reader, name: str, heads: int) -> Tree:
    """A ``SpectrogramTransformer``."""
    convolution = read(f"{name}.patch_embed.projection.weight")
    blocks = range(read.count(f"{name}.blocks"))
    return {
        "patches": {
            "kernel": convolution.transpose(2, 3, 1, 0),
            "bias": read(f"{name}.patch_embed.projection.bias"),
        },
        "query_tokens": read.single(f"{name}.embed_tokens"),
        "positions": read.single(f"{name}.positional_encoding.pe"),
        "blocks": stack([_encoder_block(read, f"{name}.blocks.{i}", heads) for i in blocks]),
        "out": linear(read, f"{name}.out_proj"),
    }


def param2tok(read: Reader, name: str) -> Tree:
    """A ``Param2Tok``."""
    return {
        "assignment": read(f"{name}._assignment"),
        "embed_in": read(f"{name}._in_projection"),
        "embed_out": read(f"{name}._out_projection").T,
        "ff": feed_forward(read, f"{name}.initial_ffn.0", f"{name}.initial_ffn.2"),
    }


def transformer_field(read: Reader, name: str, heads: int, projection: Tree) -> Tree:
    """A ``TransformerField`` around the tree of its projection."""
    blocks = range(read.count(f"{name}.layers"))
    return {
        "projection": projection,
        "dropout_token": read.single(f"{name}.cfg_dropout_token"),
        "conditioning": feed_forward(read, f"{name}.conditioning_ffn.0", f"{name}.conditioning_ffn.2"),
        "blocks": stack([_field_block(read, f"{name}.layers.{i}", heads) for i in blocks]),
    }


def flow_parameters(weights: Weights, heads: int, field_heads: int | None = None) -> Tree:
    """Parameter tree of a ``FlowModel`` (AST encoder, transformer field with Param2Tok).

    Args:
      weights: name -> array, names as in the reference's ``state_dict``.
      heads: attention heads of the encoder, which the weights do not tell.
      field_heads: those of the field; as many if not given.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights)
    projection = param2tok(read, "vector_field.projection")
    parameters = {
        "encoder": spectrogram_transformer(read, "encoder", heads),
        "field": transformer_field(read, "vector_field", field_heads or heads, projection),
    }
    read.finish()
    return parameters
