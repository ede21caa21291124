"""Recognises the model in a checkpoint of the PyTorch reference, checks that a config fits it, and converts it.

The names of the weights give the kind of the model, their shapes its sizes. An error names every value of the config
that does not fit, and the value that the weights need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import bundled_spec_of_width
from synthjax.methods.task import SpectrogramTask
from synthjax.models.encoders import padding_to_patches
from synthjax.models.vector_fields import TIME_BASE
from synthjax.reference.weights import Tree, Weights, convert, flow, mlp_flow, regression
from synthjax.runs.architecture import Architecture
from synthjax.runs.check_config import value_of

Values = dict[str, Any]  # Dotted config key -> value.
TIME_BASIS = "vector_field.time_encoding.basis"
# Parts of weights' names that only models of the k-osc task have: its encoder, its projection.
K_OSC_MARKS = (".conv_net.", "vector_field.projection.forward_proj.")


@dataclass(frozen=True)
class Kind:
    """A model that can be imported.

    Attributes:
      title: the model's name in messages.
      mark: a weight that no other model has.
      config_file: an experiment with this model.
      choices: the values of the config that choose this model.
      attentive: parts of the model with attention heads, whose numbers the weights do not hold.
      parameters: see ``weights.convert``.
      width: tree -> columns of a row.
      sizes: tree -> sizes in the config, without those of the encoder.
    """

    title: str
    mark: str
    config_file: str
    choices: Values
    attentive: tuple[str, ...]
    parameters: Callable[..., Tree]
    width: Callable[[Tree], int]
    sizes: Callable[[Tree], Values]

    def heads(self, config: ml_collections.ConfigDict) -> list[int]:
        """The numbers of heads of the attentive parts."""
        return [config.model[part].heads for part in self.attentive]


def _field_sizes(params: Tree) -> Values:
    field = params["field"]
    return {
        "model.field.dim": len(field["conditioning"]["down"]["bias"]),
        "model.field.layers": len(field["blocks"]["modulation"]["bias"]),
        "model.field.time_features": len(field["conditioning"]["up"]["kernel"]) - len(field["dropout_token"]),
    }


def _transformer_sizes(params: Tree) -> Values:
    field = params["field"]
    tokens, _ = field["projection"]["assignment"].shape
    own = {"model.field.ff_dim": field["blocks"]["ff"]["up"]["kernel"].shape[-1], "model.field.tokens": tokens}
    return _field_sizes(params) | own


KINDS = (
    Kind(
        title="flow with Param2Tok",
        mark="vector_field.projection._assignment",
        config_file="configs/flow_100k.py",
        choices={"data.source": "shards", "model.kind": "flow", "model.field.kind": "transformer"},
        attentive=("encoder", "field"),
        parameters=flow,
        width=lambda params: params["field"]["projection"]["assignment"].shape[1],
        sizes=_transformer_sizes,
    ),
    Kind(
        title="flow with MLP field",
        mark="vector_field.in_proj.weight",
        config_file="configs/flow_mlp.py",
        choices={"data.source": "shards", "model.kind": "flow", "model.field.kind": "mlp"},
        attentive=("encoder",),
        parameters=mlp_flow,
        width=lambda params: len(params["field"]["embed"]["kernel"]),
        sizes=_field_sizes,
    ),
    Kind(
        title="regression",
        mark="net.final_proj.weight",
        config_file="configs/regression.py",
        choices={"data.source": "shards", "model.kind": "regression"},
        attentive=("encoder",),
        parameters=regression,
        width=lambda params: len(params["read"]["bias"]),
        sizes=lambda params: {},
    ),
)


def recognise(weights: Weights) -> Kind:
    """The kind of model that has these weights. Raises UserError if none of them can be imported."""
    if name := next((name for name in weights if any(mark in name for mark in K_OSC_MARKS)), None):
        raise UserError(
            f"the checkpoint holds a model of the k-osc task (weight {name}), which cannot be imported: train one with "
            "--config=configs/k_osc.py"
        )
    for kind in KINDS:
        if kind.mark in weights:
            return kind
    marks = " nor ".join(f"{kind.mark} (of a {kind.title})" for kind in KINDS)
    raise UserError(f"the checkpoint holds no model that can be imported: it has neither {marks}")


def check_kind(kind: Kind, config: ml_collections.ConfigDict) -> None:
    """Raises UserError, with the config file to use, if ``config`` describes another kind of model."""
    for key, value in kind.choices.items():
        if (configured := value_of(config, key)) != value:
            raise UserError(
                f"the checkpoint is a {kind.title}: use --config={kind.config_file} "
                f"({key} is {configured}, the weights need {value})"
            )


def check_sizes(kind: Kind, weights: Weights, config: ml_collections.ConfigDict, task: SpectrogramTask) -> None:
    """Raises UserError naming every value of the config that does not fit, ValueError for weights of wrong shapes."""
    # With one head no number of heads can be wrong: heads only divide axes.
    params = convert(weights, kind.parameters, *[1] * len(kind.attentive))
    sizes = kind.sizes(params)
    # The encoder has one query for each layer of the field; a regression has a single query.
    queries = sizes.get("model.field.layers", 1)
    sizes["data.spec"] = _spec(kind.width(params), config, task)
    sizes |= _encoder_sizes(params["encoder"], queries, config, task)
    misfits = {key: value for key, value in sizes.items() if value_of(config, key) != value}
    if misfits:
        wrong = [f"{key} is {value_of(config, key)}, the weights need {value}" for key, value in misfits.items()]
        raise UserError(f"the config does not fit: {'; '.join(wrong)}")


def _encoder_sizes(encoder: Tree, queries: int, config: ml_collections.ConfigDict, task: SpectrogramTask) -> Values:
    *patch, _, dim = encoder["patches"]["kernel"].shape
    if len(encoder["query_tokens"]) != queries:
        raise ValueError(f"there are {len(encoder['query_tokens'])} query tokens, not {queries}")
    return {
        "model.encoder.kind": "ast",
        "model.encoder.dim": dim,
        "model.encoder.layers": len(encoder["blocks"]["norm1"]["scale"]),
        "model.encoder.patch": tuple(patch),
        "model.encoder.stride": _stride(len(encoder["positions"]) - queries, tuple(patch), config, task),
    }


def _spec(width: int, config: ml_collections.ConfigDict, task: SpectrogramTask) -> str:
    """The config's spec if its rows have this width, else the bundled spec that has."""
    if width == task.width:
        return config.data.spec
    spec = bundled_spec_of_width(width)
    return spec.name if spec else f"one of {width} columns"


def _stride(
    patches: int, patch: tuple[int, ...], config: ml_collections.ConfigDict, task: SpectrogramTask
) -> tuple[int, ...] | str:
    """The config's stride if it gives this number of patches, else a stride equal along both axes that does."""

    def count(stride: tuple[int, ...]) -> int:
        axes = list(zip(task.input_shape[1:], patch, stride, strict=True))
        swapped = [padding_to_patches(*axis) for axis in axes][::-1]
        rows, columns = ((size + pad - n) // step + 1 for (size, n, step), pad in zip(axes, swapped, strict=True))
        return rows * columns

    configured = tuple(config.model.encoder.stride)
    equal_steps = ((step, step) for step in range(1, max(patch) + 1))
    fitting = (stride for stride in (configured, *equal_steps) if count(stride) == patches)
    return next(fitting, f"one of {patches} patches")


def model_parameters(kind: Kind, weights: Weights, architecture: Architecture) -> Tree:
    """The parameter tree of the architecture's model, on the device. Raises ValueError if the weights do not fit it."""
    config = architecture.config
    if config.model.kind == "flow":
        _check_time_basis(weights, config.model.field.time_features)
    params = convert(weights, kind.parameters, *kind.heads(config))
    _check_shapes(params, nnx.to_pure_dict(architecture.abstract))
    return jax.tree.map(jnp.asarray, params)


def _check_time_basis(weights: Weights, features: int) -> None:
    """Compares the stored frequencies of the time encoding with those that are computed here."""
    half = features // 2
    expected = TIME_BASE ** (-np.arange(half) / max(half, 1))
    basis = weights.get(TIME_BASIS, expected)
    if basis.size != half or not np.allclose(basis.ravel(), expected, rtol=1e-5):
        raise ValueError(f"{TIME_BASIS} has other frequencies")


def _check_shapes(params: Tree, expected: Tree) -> None:
    """Compares all shapes, also those that no value of the config decides."""
    shapes = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    for (path, found), wanted in shapes:
        if found.shape != wanted.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name} is of shape {found.shape}, not {wanted.shape}")
