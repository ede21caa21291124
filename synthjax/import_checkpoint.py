"""Imports a checkpoint of the PyTorch reference into a new workdir, which evaluates, predicts and trains on:

    python -m synthjax.import_checkpoint last.ckpt --config=configs/flow_100k.py --workdir=DIR --config.data.root=DATA

So far of the flow with the AST encoder and Param2Tok, saved with or without torch.compile. The config says what the
weights do not: heads, spec, sampling, and how to train on; whatever the weights tell is checked against it. DATA is the
data set that the model was trained on, with its splits and stats.npz: a model keeps the statistics it was trained with,
as they are, and its patch padding (model.encoder.swapped_padding=True, data.min_std_db=0).

The workdir's checkpoint is step 0. The optimizer, its learning rate, the average of the weights and the order of the
data begin anew, so that any later step would stand for a course of training that the workdir does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from flax import nnx

from data_pipeline import cli, config_flag
from data_pipeline.atomic import make_folder
from data_pipeline.cli import UserError
from data_pipeline.param_spec import bundled_spec_of_width, load_spec
from data_pipeline.stats import STATS_FILE, MelStats, load_stats
from synthjax.checkpoints import CheckpointError, Checkpoints
from synthjax.data import open_split
from synthjax.models.encoders import padding_to_patches
from synthjax.models.vector_fields import TIME_BASE
from synthjax.reference_weights import flow_parameters
from synthjax.torch_checkpoint import read_checkpoint
from synthjax.train import dataset_identity
from synthjax.train_step import NO_BAD_STEP, Trainer, TrainState
from synthjax.workdir import Workdir

Weights = Mapping[str, np.ndarray]
Parameters = dict[str, Any]

# Parts of a weight's name that torch.compile, distributed training and Lightning's strategies put between its others.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_forward_module|module)\.")
# Weights that only the supported encoder and field have.
MARKS = ("encoder.patch_embed.projection.weight", "vector_field.projection._assignment")
TIME_BASIS = "vector_field.time_encoding.basis"


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) != 2:
        raise UserError("usage: python -m synthjax.import_checkpoint CHECKPOINT --config=CONFIG --workdir=DIR")
    import_checkpoint(Path(argv[1]), config_flag.read(), Workdir(flags.FLAGS.workdir))
    return 0


def import_checkpoint(path: Path, config: ml_collections.ConfigDict, workdir: Workdir) -> None:
    """Makes ``workdir`` of the weights in ``path``; sets in ``config`` what the reference does otherwise.

    Raises:
      UserError: if the file cannot be read, is another model's, or does not fit the config or the data; if the
        workdir holds a run; naming what is wrong.
    """
    if workdir.config.exists() or workdir.checkpoints.exists():
        raise UserError(f"workdir {workdir.path} holds a run, or a part of one: choose another --workdir")
    config.model.encoder.swapped_padding, config.data.min_std_db = True, 0.0
    spec = load_spec(config.data.spec)
    stats = _load_raw_stats(Path(config.data.root) / STATS_FILE)
    reader = open_split(config.data.root, "train", spec, allow_external=config.data.allow_external)
    checkpoint = read_checkpoint(path)
    weights = _plain_names(checkpoint.weights)
    print(f"{path}: {len(weights)} weights after {checkpoint.global_step} steps")
    trainer = Trainer.create(config, width=spec.width, spectrogram_shape=stats.mean.shape)
    try:
        params = _parameters(weights, trainer)
    except (IndexError, TypeError, ValueError) as error:  # Of weights with other shapes than the reference's ever have.
        raise UserError(f"{path} does not hold the weights of this model: {error}") from error

    make_folder(workdir.path)
    _save(workdir, _fresh_state(params, trainer))
    # Last: a folder with a config is a run.
    workdir.prepare(config, dataset_identity(reader, spec, stats))
    heads = " and ".join(str(config.model[part].heads) for part in ("encoder", "field"))
    print(
        f"imported as step 0 of {workdir.path}, with {heads} heads, which the weights do not tell; to train on, give "
        "the same config with --config.model.encoder.swapped_padding=True --config.data.min_std_db=0"
    )


def _load_raw_stats(path: Path) -> MelStats:
    stats = load_stats(path)
    if not stats.std.all():
        raise UserError(f"{path}: a deviation is 0, by which the reference would divide: no model was trained with it")
    return stats


def _plain_names(weights: Weights) -> dict[str, np.ndarray]:
    """The same weights without the wrappers in their names; finite, and of a model that can be imported."""
    plain: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise UserError(f"weight {name} is not finite")
        if plain.setdefault(WRAPPERS.sub("", name), weight) is not weight:
            raise UserError(f"there are two weights {WRAPPERS.sub('', name)}")
    if missing := [name for name in MARKS if name not in plain]:
        raise UserError(
            f"the checkpoint is not of a flow with AST encoder and Param2Tok, which alone is supported: it has no "
            f"{' and no '.join(missing)}"
        )
    return plain


def _parameters(weights: Weights, trainer: Trainer) -> Parameters:
    """The parameter tree of the trainer's model. Raises UserError, or ValueError, where the weights do not fit it."""
    config = trainer.config
    # The number of heads only divides axes.
    told = _told_by(flow_parameters(weights, heads=1), trainer)
    misfits = {key: value for key, value in told.items() if _get(config, key) != value}
    if misfits:
        wrong = [f"{key} is {_get(config, key)}, the weights need {value}" for key, value in misfits.items()]
        raise UserError(f"the config does not fit: {'; '.join(wrong)}")
    _check_time_basis(weights, config.model.field.time_features)
    params = {part: flow_parameters(weights, config.model[part].heads)[part] for part in ("encoder", "field")}
    _check_shapes(params, trainer)
    return jax.tree.map(jnp.asarray, params)


def _told_by(params: Parameters, trainer: Trainer) -> dict[str, Any]:
    """Config keys and the values that the shapes of parameters tell."""
    encoder, field = params["encoder"], params["field"]
    *patch, _, dim = encoder["patches"]["kernel"].shape
    tokens, width = field["projection"]["assignment"].shape
    queries, layers = len(encoder["query_tokens"]), len(field["blocks"]["norm1"]["scale"])
    if queries != layers:
        raise ValueError(f"{queries} query tokens do not condition {layers} layers")
    return {
        "data.spec": _spec(width, trainer),
        "model.encoder.kind": "ast",
        "model.encoder.dim": dim,
        "model.encoder.layers": len(encoder["blocks"]["norm1"]["scale"]),
        "model.encoder.patch": tuple(patch),
        "model.encoder.stride": _stride(len(encoder["positions"]) - queries, tuple(patch), trainer),
        "model.field.dim": field["projection"]["embed_in"].shape[1],
        "model.field.layers": layers,
        "model.field.ff_dim": field["blocks"]["ff"]["up"]["kernel"].shape[-1],
        "model.field.tokens": tokens,
        "model.field.time_features": len(field["conditioning"]["up"]["kernel"]) - len(field["dropout_token"]),
    }


def _spec(width: int, trainer: Trainer) -> str:
    """The config's spec if its rows are so wide, else the bundled one that has such rows."""
    if width == trainer.width:
        return trainer.config.data.spec
    spec = bundled_spec_of_width(width)
    return spec.name if spec else f"one of {width} columns"


def _stride(patches: int, patch: tuple[int, ...], trainer: Trainer) -> tuple[int, ...] | str:
    """The config's stride if it makes so many patches, else the equal steps along both axes that do."""
    sizes = trainer.spectrogram_shape[1:]

    def count(stride: tuple[int, ...]) -> int:
        axes = list(zip(sizes, patch, stride, strict=True))
        swapped = [padding_to_patches(*axis) for axis in axes][::-1]
        rows, columns = ((size + pad - n) // step + 1 for (size, n, step), pad in zip(axes, swapped, strict=True))
        return rows * columns

    configured = tuple(trainer.config.model.encoder.stride)
    equal_steps = ((step, step) for step in range(1, max(patch) + 1))
    fitting = (stride for stride in (configured, *equal_steps) if count(stride) == patches)
    return next(fitting, f"one of {patches} patches")


def _check_time_basis(weights: Weights, features: int) -> None:
    """The reference stores its frequencies of the time encoding; here they are computed."""
    half = features // 2
    expected = TIME_BASE ** (-np.arange(half) / max(half, 1))
    basis = weights.get(TIME_BASIS, expected)
    if basis.size != half or not np.allclose(basis.ravel(), expected, rtol=1e-5):
        raise ValueError(f"{TIME_BASIS} has other frequencies")


def _check_shapes(params: Parameters, trainer: Trainer) -> None:
    """Against the model, for what no key of the config changes."""
    expected = nnx.to_pure_dict(trainer.abstract)
    shapes = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    for (path, found), wanted in shapes:
        if found.shape != wanted.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name} is of shape {found.shape}, not {wanted.shape}")


def _get(config: ml_collections.FrozenConfigDict, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


def _fresh_state(params: Parameters, trainer: Trainer) -> TrainState:
    """A run that begins at ``params``; their average is they themselves."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
        params=params,
        ema=params,
        opt_state=trainer.optimizer.init(params),
    )


def _save(workdir: Workdir, state: TrainState) -> None:
    try:
        with Checkpoints(workdir.checkpoints) as checkpoints:
            checkpoints.save(0, state)
            checkpoints.wait()
    except CheckpointError as error:
        cli.fail(error, 1)


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_string("workdir", None, "Folder of the new run: config, checkpoint, statistics. Made if missing.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
