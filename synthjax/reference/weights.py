"""Converts weights of the PyTorch reference, by their names, to parameter trees of this project.

PyTorch stores Linear as (out, in), Conv as (out, in, rows, columns) and attention's queries, keys and values packed
as (3D, D). The layers that it numbers are one stack here. Every weight must be used and every parameter filled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipeline.console.cli import UserError

Weights = Mapping[str, np.ndarray]
Tree = dict[str, Any]
# Parts that torch.compile, distributed training and Lightning's strategies insert into the names of weights.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_forward_module|module)\.")
# Buffers that are not imported: frequencies of the time encoding, which are computed here; an unused buffer of the
# encoder; the number of batches that batch normalisation has seen.
IGNORED = re.compile(r"(.+\.)?(time_encoding\.basis|_d|num_batches_tracked)")


def plain_names(weights: Weights) -> dict[str, np.ndarray]:
    """The same weights without the wrappers in their names.

    Raises:
      UserError: for a weight that is not finite, or two of the same plain name.
    """
    plain: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise UserError(f"weight {name} is not finite")
        if plain.setdefault(WRAPPERS.sub("", name), weight) is not weight:
            raise UserError(f"there are two weights {WRAPPERS.sub('', name)}")
    return plain


class Reader:
    """Gives weights by name and records which were used.

    Args:
      weights: name -> array.
      scope: the prefix of the module whose weights must all be used; "" for all weights.
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
        """A weight without its first ``axes`` axes. Raises ValueError unless each of them has length 1."""
        weight = self(name)
        if weight.shape[:axes] != (1,) * axes:
            raise ValueError(f"weight {name} has shape {weight.shape}, whose first {axes} axes are not of length 1")
        return weight.reshape(weight.shape[axes:])

    def count(self, prefix: str) -> int:
        """The number of numbered modules under a name. Raises ValueError if there are none."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = {match[1] for name in self._weights if (match := pattern.match(name))}
        if not numbers:
            raise ValueError(f"weights {prefix}.0 are missing")
        return len(numbers)

    def finish(self) -> None:
        """Raises ValueError, with their names, if weights were not used."""
        names = (name for name in self._weights if name.startswith(self._scope))
        unused = sorted(name for name in names if name not in self._used and not IGNORED.fullmatch(name))
        if unused:
            raise ValueError(f"{len(unused)} weights have no place in the model: {', '.join(unused[:5])}")


def linear(read: Reader, name: str) -> Tree:
    """The parameters of a Linear."""
    return {"kernel": read(f"{name}.weight").T, "bias": read(f"{name}.bias")}


def norm(read: Reader, name: str) -> Tree:
    """The scale and bias of a normalisation."""
    return {"scale": read(f"{name}.weight"), "bias": read(f"{name}.bias")}


def attention(read: Reader, name: str, heads: int) -> Tree:
    """The parameters of an ``Attention``, from packed queries, keys and values."""
    packed, out = read(f"{name}.in_proj_weight"), read(f"{name}.out_proj.weight")
    dim = out.shape[0]
    return {
        "qkv": packed.T.reshape(dim, 3, heads, dim // heads),
        "qkv_bias": read(f"{name}.in_proj_bias").reshape(3, heads, dim // heads),
        "out": out.T.reshape(heads, dim // heads, dim),
        "out_bias": read(f"{name}.out_proj.bias"),
    }


def feed_forward(read: Reader, up: str, down: str) -> Tree:
    """The parameters of a ``FeedForward``."""
    return {"up": linear(read, up), "down": linear(read, down)}


def stack(layers: list[Any]) -> Any:
    """The trees of L layers as one tree whose arrays lead with an L axis."""
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
    """The parameters of a ``SpectrogramTransformer``."""
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
    """The parameters of a ``Param2Tok``."""
    return {
        "assignment": read(f"{name}._assignment"),
        "embed_in": read(f"{name}._in_projection"),
        "embed_out": read(f"{name}._out_projection").T,
        "ff": feed_forward(read, f"{name}.initial_ffn.0", f"{name}.initial_ffn.2"),
    }


def transformer_field(read: Reader, name: str, heads: int, projection: Tree) -> Tree:
    """The parameters of a ``TransformerField`` with the given projection."""
    blocks = range(read.count(f"{name}.layers"))
    return {
        "projection": projection,
        "dropout_token": read.single(f"{name}.cfg_dropout_token"),
        "conditioning": feed_forward(read, f"{name}.conditioning_ffn.0", f"{name}.conditioning_ffn.2"),
        "blocks": stack([_field_block(read, f"{name}.layers.{i}", heads) for i in blocks]),
    }


def mlp_field(read: Reader, name: str) -> Tree:
    """The parameters of an ``MLPField``."""

    def block(i: int) -> Tree:
        layer = f"{name}.net.{i}"
        return {
            "norm": norm(read, f"{layer}.norm"),
            "ff": feed_forward(read, f"{layer}.net.0", f"{layer}.net.2"),
            "modulation": linear(read, f"{layer}.cond.1"),
        }

    return {
        "dropout_token": read.single(f"{name}.cfg_dropout_token", axes=2),
        "conditioning": feed_forward(read, f"{name}.conditioning_ffn.0", f"{name}.conditioning_ffn.2"),
        "embed": linear(read, f"{name}.in_proj"),
        "blocks": stack([block(i) for i in range(read.count(f"{name}.net"))]),
        "read": linear(read, f"{name}.out_proj"),
    }


def spectrogram_regression(read: Reader, name: str, heads: int) -> Tree:
    """The parameters of a ``SpectrogramRegression``."""
    head = f"{name}.prediction_head"
    return {
        "encoder": spectrogram_transformer(read, name, heads),
        "head": {"norm": norm(read, f"{head}.0"), "ff": feed_forward(read, f"{head}.1", f"{head}.3")},
        "read": linear(read, f"{name}.final_proj"),
    }


def flow(read: Reader, heads: int, field_heads: int) -> Tree:
    """The parameters of a ``FlowModel`` with AST encoder and transformer field with Param2Tok."""
    field = transformer_field(read, "vector_field", field_heads, param2tok(read, "vector_field.projection"))
    return {"encoder": spectrogram_transformer(read, "encoder", heads), "field": field}


def mlp_flow(read: Reader, heads: int) -> Tree:
    """The parameters of a ``FlowModel`` with AST encoder and MLP field."""
    return {"encoder": spectrogram_transformer(read, "encoder", heads), "field": mlp_field(read, "vector_field")}


def regression(read: Reader, heads: int) -> Tree:
    """The parameters of a ``SpectrogramRegression``, named as in a checkpoint."""
    return spectrogram_regression(read, "net", heads)


def convert(weights: Weights, parameters: Callable[..., Tree], *heads: int) -> Tree:
    """The parameter tree of a whole checkpoint.

    Args:
      weights: name -> array, with the names of the reference's ``state_dict``.
      parameters: ``flow``, ``mlp_flow`` or ``regression``.
      heads: attention heads of the encoder, then of the field if it has heads; the weights do not hold them.

    Raises:
      ValueError: if a weight is missing or left over; the message names it.
    """
    read = Reader(weights)
    tree = parameters(read, *heads)
    read.finish()
    return tree
