"""Weights of the PyTorch reference's k-osc models and regression baselines to this project's trees.

The first two functions read a whole checkpoint and fail unless they use all of it. Each of the others reads one module,
told by the first words of its weights' names, and fails unless it uses all of that. Running statistics of batch
normalisation, which are no parameters, come as a tree of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from synthjax.reference_weights import (
    Reader,
    Tree,
    Weights,
    feed_forward,
    linear,
    norm,
    param2tok,
    spectrogram_transformer,
    stack,
    transformer_field,
)

STATISTICS = ("mean", "var")


class ModelTrees(NamedTuple):
    """What a module with batch normalisation holds: its ``nnx.Param`` and its ``nnx.BatchStat`` variables."""

    parameters: Tree
    statistics: Tree


def mlp_flow_parameters(weights: Weights, heads: int) -> Tree:
    """Parameters of a ``FlowModel`` (AST encoder, MLP field), of all weights of a checkpoint.

    Args:
      heads: attention heads of the encoder, which the weights do not tell.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights)
    parameters = {
        "encoder": spectrogram_transformer(read, "encoder", heads),
        "field": _mlp_field(read, "vector_field"),
    }
    read.finish()
    return parameters


def regression_parameters(weights: Weights, heads: int) -> Tree:
    """Parameters of a ``SpectrogramRegression``, of all weights of a checkpoint.

    Args:
      heads: attention heads, which the weights do not tell.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights)
    parameters = _spectrogram_regression(read, "net", heads)
    read.finish()
    return parameters


def vector_field_parameters(weights: Weights, name: str, heads: int) -> Tree:
    """Parameters of a ``TransformerField`` of either projection, or of an ``MLPField``: the names tell which.

    Args:
      heads: attention heads, which the weights do not tell; an ``MLPField`` has none.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights, name)
    projection = f"{name}.projection"
    if f"{name}.in_proj.weight" in read:
        parameters = _mlp_field(read, name)
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
      heads: attention heads, which the weights do not tell.

    Raises:
      ValueError: naming a weight that is missing or left over.
    """
    read = Reader(weights, name)
    parameters = _spectrogram_regression(read, name, heads)
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


def _spectrogram_regression(read: Reader, name: str, heads: int) -> Tree:
    head = f"{name}.prediction_head"
    return {
        "encoder": spectrogram_transformer(read, name, heads),
        "head": {"norm": norm(read, f"{head}.0"), "ff": feed_forward(read, f"{head}.1", f"{head}.3")},
        "read": linear(read, f"{name}.final_proj"),
    }


def _mlp_field(read: Reader, name: str) -> Tree:
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
