"""Weights of single modules of the PyTorch reference, as its reference files hold them, to this project's trees.

Each function reads the module with a given prefix and fails unless it uses all of its weights. Running statistics of
batch normalisation come as a tree of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from synthjax.reference.weights import (
    Reader,
    Tree,
    Weights,
    feed_forward,
    linear,
    mlp_field,
    norm,
    param2tok,
    spectrogram_regression,
    transformer_field,
)

STATISTICS = ("mean", "var")


class ModelTrees(NamedTuple):
    """The ``nnx.Param`` and the ``nnx.BatchStat`` variables of a module with batch normalisation."""

    parameters: Tree
    statistics: Tree


def vector_field_parameters(weights: Weights, name: str, heads: int) -> Tree:
    """The parameters of a ``TransformerField`` of either projection, or of an ``MLPField``, by its weights' names.

    Args:
      heads: attention heads, which the weights do not hold; an ``MLPField`` has none.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights, name)
    projection = f"{name}.projection"
    if f"{name}.in_proj.weight" in read:
        parameters = mlp_field(read, name)
    elif f"{projection}.forward_proj.weight" in read:
        parameters = transformer_field(read, name, heads, _oscillator_tokens(read, projection))
    else:
        parameters = transformer_field(read, name, heads, param2tok(read, projection))
    read.finish()
    return parameters


def spectral_encoder_trees(weights: Weights, name: str) -> ModelTrees:
    """Parameters and statistics of a ``SpectralEncoder`` with batch normalisation.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights, name)
    tree = _spectral_encoder(read, name)
    read.finish()
    return _apart(tree)


def spectrogram_regression_parameters(weights: Weights, name: str, heads: int) -> Tree:
    """Parameters of a ``SpectrogramRegression``.

    Args:
      heads: attention heads, which the weights do not hold.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights, name)
    parameters = spectrogram_regression(read, name, heads)
    read.finish()
    return parameters


def signal_regression_trees(weights: Weights, name: str) -> ModelTrees:
    """Parameters and statistics of a ``SignalRegression`` with batch normalisation.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights, name)
    blocks = range(read.count(f"{name}.trunk"))
    tree = {
        "encoder": _spectral_encoder(read, f"{name}.encoder"),
        "trunk": {i: _residual_mlp(read, f"{name}.trunk.{i}") for i in blocks},
    }
    read.finish()
    return _apart(tree)


def _oscillator_tokens(read: Reader, name: str) -> Tree:
    return {"embed": linear(read, f"{name}.forward_proj"), "read": linear(read, f"{name}.backward_proj")}


def _residual_mlp(read: Reader, name: str) -> Tree:
    tree: Tree = {
        "norm": norm(read, f"{name}.net.0"),
        "ff": feed_forward(read, f"{name}.net.1", f"{name}.net.3"),
    }
    if f"{name}.residual.weight" in read:
        tree["skip"] = {"kernel": read(f"{name}.residual.weight").T}
    return tree


def _spectral_encoder(read: Reader, name: str) -> Tree:
    """Three numbered modules there are one stage here."""
    stages = range(read.count(f"{name}.conv_net") // 3)
    return {
        "stages": {i: _spectral_stage(read, [f"{name}.conv_net.{3 * i + j}" for j in range(3)]) for i in stages},
        "flat": linear(read, f"{name}.net.0"),
        "out": _residual_mlp(read, f"{name}.net.1"),
    }


def _spectral_stage(read: Reader, names: list[str]) -> Tree:
    block1, block2, down = names
    return {
        "block1": _spectral_block(read, block1),
        "block2": _spectral_block(read, block2),
        "norm": _batch_norm(read, f"{down}.net.0"),
        "down": _convolution(read, f"{down}.net.1"),
    }


def _spectral_block(read: Reader, name: str) -> Tree:
    tree = {
        "conv1": _convolution(read, f"{name}.net.0"),
        "norm1": _batch_norm(read, f"{name}.net.2"),
        "conv2": _convolution(read, f"{name}.net.3"),
        "norm2": _batch_norm(read, f"{name}.net.5"),
    }
    if f"{name}.residual.weight" in read:
        tree["skip"] = _convolution(read, f"{name}.residual")
    return tree


def _convolution(read: Reader, name: str) -> Tree:
    """Conv over one axis: (out, in, size) there, (size, in, out) here."""
    return {"kernel": read(f"{name}.weight").transpose(2, 1, 0), "bias": read(f"{name}.bias")}


def _batch_norm(read: Reader, name: str) -> Tree:
    return norm(read, name) | {"mean": read(f"{name}.running_mean"), "var": read(f"{name}.running_var")}


def _apart(tree: Tree) -> ModelTrees:
    """Parameters and statistics, each without the branches that hold none."""
    parameters: dict[Any, Any] = {}
    statistics: dict[Any, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            inner = _apart(value)
            parameters[key] = inner.parameters
            if inner.statistics:
                statistics[key] = inner.statistics
        else:
            (statistics if key in STATISTICS else parameters)[key] = value
    return ModelTrees(parameters, statistics)
