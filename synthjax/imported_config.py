"""Which model a checkpoint of the PyTorch reference holds, and whether a config is that model's.

The names of the weights tell the kind of the model, their shapes its sizes. Each value of the config that is not the
weights' is named with what they need, so that nobody has to guess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_collections

from data_pipeline.cli import UserError
from data_pipeline.param_spec import bundled_spec_of_width
from synthjax.check_config import value_of
from synthjax.models.encoders import padding_to_patches
from synthjax.reference_baselines import mlp_flow_parameters, regression_parameters
from synthjax.reference_weights import Tree, Weights, flow_parameters
from synthjax.tasks import SpectrogramTask

Values = dict[str, Any]  # Dotted config key -> value.
# The k-osc task's encoder, and its projection.
K_OSC_MARKS = (".conv_net.", "vector_field.projection.forward_proj.")


@dataclass(frozen=True)
class Kind:
    """A model that can be imported.

    Attributes:
      title: what people call it.
      mark: a weight that no other model has.
      config_file: an experiment with this model.
      choices: what such files differ in.
      attentive: parts of the model that have heads, whose numbers the weights do not tell.
      parameters: the model's tree, of all weights and of the heads of each attentive part.
      width: columns of a row, and ...
      sizes: ... values of the config beside the encoder's, both told by the shapes of the tree.
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
        """Those of the attentive parts."""
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
        parameters=flow_parameters,
        width=lambda params: params["field"]["projection"]["assignment"].shape[1],
        sizes=_transformer_sizes,
    ),
    Kind(
        title="flow with MLP field",
        mark="vector_field.in_proj.weight",
        config_file="configs/flow_mlp.py",
        choices={"data.source": "shards", "model.kind": "flow", "model.field.kind": "mlp"},
        attentive=("encoder",),
        parameters=mlp_flow_parameters,
        width=lambda params: len(params["field"]["embed"]["kernel"]),
        sizes=_field_sizes,
    ),
    Kind(
        title="regression",
        mark="net.final_proj.weight",
        config_file="configs/regression.py",
        choices={"data.source": "shards", "model.kind": "regression"},
        attentive=("encoder",),
        parameters=regression_parameters,
        width=lambda params: len(params["read"]["bias"]),
        sizes=lambda params: {},
    ),
)


def recognise(weights: Weights) -> Kind:
    """The kind of model that has these weights. Raises UserError if it is none that can be imported."""
    if name := next((name for name in weights if any(mark in name for mark in K_OSC_MARKS)), None):
        raise UserError(
            f"the checkpoint is of the k-osc task (it has {name}), whose models are not imported: train one with "
            "--config=configs/k_osc.py"
        )
    for kind in KINDS:
        if kind.mark in weights:
            return kind
    marks = " nor ".join(f"{kind.mark} (of a {kind.title})" for kind in KINDS)
    raise UserError(f"the checkpoint is of no model that can be imported: it has neither {marks}")


def check_kind(kind: Kind, config: ml_collections.ConfigDict) -> None:
    """Raises UserError with the config file to use, if ``config`` is of another kind of model."""
    for key, value in kind.choices.items():
        if (configured := value_of(config, key)) != value:
            raise UserError(
                f"the checkpoint is a {kind.title}: use --config={kind.config_file} "
                f"({key} is {configured}, the weights need {value})"
            )


def check_sizes(kind: Kind, weights: Weights, config: ml_collections.ConfigDict, task: SpectrogramTask) -> None:
    """Raises UserError naming every value of the config that is not the weights', ValueError for misshapen weights."""
    # The number of heads only divides axes: with one, no config can be wrong about it.
    params = kind.parameters(weights, *[1] * len(kind.attentive))
    sizes = kind.sizes(params)
    # One for each layer that they condition; a regression reads its row from a single one.
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
        raise ValueError(f"there are {len(encoder['query_tokens'])} query tokens where {queries} are read")
    return {
        "model.encoder.kind": "ast",
        "model.encoder.dim": dim,
        "model.encoder.layers": len(encoder["blocks"]["norm1"]["scale"]),
        "model.encoder.patch": tuple(patch),
        "model.encoder.stride": _stride(len(encoder["positions"]) - queries, tuple(patch), config, task),
    }


def _spec(width: int, config: ml_collections.ConfigDict, task: SpectrogramTask) -> str:
    """The config's spec if its rows are so wide, else the bundled one that has such rows."""
    if width == task.width:
        return config.data.spec
    spec = bundled_spec_of_width(width)
    return spec.name if spec else f"one of {width} columns"


def _stride(
    patches: int, patch: tuple[int, ...], config: ml_collections.ConfigDict, task: SpectrogramTask
) -> tuple[int, ...] | str:
    """The config's stride if it makes so many patches, else the equal steps along both axes that do."""

    def count(stride: tuple[int, ...]) -> int:
        axes = list(zip(task.input_shape[1:], patch, stride, strict=True))
        swapped = [padding_to_patches(*axis) for axis in axes][::-1]
        rows, columns = ((size + pad - n) // step + 1 for (size, n, step), pad in zip(axes, swapped, strict=True))
        return rows * columns

    configured = tuple(config.model.encoder.stride)
    equal_steps = ((step, step) for step in range(1, max(patch) + 1))
    fitting = (stride for stride in (configured, *equal_steps) if count(stride) == patches)
    return next(fitting, f"one of {patches} patches")
