"""Imports a checkpoint of the PyTorch reference into a new workdir, which evaluates, predicts and trains on:

    python -m synthjax.import_checkpoint last.ckpt --config=configs/flow_100k.py --workdir=DIR --config.data.root=DATA

Of the flow with Param2Tok (configs/flow_100k.py and its like), the flow with MLP field (configs/flow_mlp.py) and the
regression (configs/regression.py), each with the AST encoder, saved with or without torch.compile. The config says what
the weights do not: heads, spec, sampling, and how to train on; whatever the weights tell is checked against it. DATA is
the data set that the model was trained on, with its splits and stats.npz: a model keeps the statistics it was trained
with, as they are, and its patch padding (model.encoder.swapped_padding=True, data.min_std_db=0).

The workdir's checkpoint is step 0. The optimizer, its learning rate, the average of the weights and the order of the
data begin anew, so that any later step would stand for a course of training that the workdir does not have.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from flax import nnx

from data_pipeline import cli, config_flag
from data_pipeline.atomic import make_folder
from data_pipeline.cli import UserError
from data_pipeline.param_spec import load_spec
from data_pipeline.stats import STATS_FILE, MelStats, load_stats
from synthjax.check_config import check_config
from synthjax.checkpoints import CheckpointError, Checkpoints
from synthjax.data import open_split
from synthjax.imported_config import Kind, check_kind, check_sizes, recognise
from synthjax.models.vector_fields import TIME_BASE
from synthjax.reference_weights import Tree, Weights
from synthjax.tasks import SpectrogramTask
from synthjax.torch_checkpoint import read_checkpoint
from synthjax.train_step import NO_BAD_STEP, Trainer, TrainState
from synthjax.training_data import dataset_identity
from synthjax.workdir import Workdir

# Parts of a weight's name that torch.compile, distributed training and Lightning's strategies put between its others.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_forward_module|module)\.")
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
    if workdir.config.exists() or Path(workdir.checkpoints).exists():
        raise UserError(f"workdir {workdir.path} holds a run, or a part of one: choose another --workdir")
    check_config(config)
    checkpoint = read_checkpoint(path)
    weights = _plain_names(checkpoint.weights)
    kind = recognise(weights)
    print(f"{path}: a {kind.title}, {len(weights)} weights after {checkpoint.global_step} steps")
    check_kind(kind, config)
    config.model.encoder.swapped_padding, config.data.min_std_db = True, 0.0
    spec = load_spec(config.data.spec)
    stats = _load_raw_stats(Path(config.data.root) / STATS_FILE)
    reader = open_split(config.data.root, "train", spec, allow_external=config.data.allow_external)
    task = SpectrogramTask(spec, stats.mean.shape, config.data.min_std_db)
    try:
        check_sizes(kind, weights, config, task)
        trainer = Trainer.create(config, task)
        params = _parameters(kind, weights, trainer)
    except (IndexError, TypeError, ValueError) as error:  # Of weights with other shapes than the reference's ever have.
        raise UserError(f"{path} does not hold the weights of this model: {error}") from error

    make_folder(workdir.path)
    _save(workdir, _fresh_state(params, trainer))
    # Last: a folder with a config is a run.
    workdir.prepare(config, dataset_identity(reader, spec, stats))
    print(
        f"imported as step 0 of {workdir.path}, with {' and '.join(map(str, kind.heads(config)))} heads, which the "
        "weights do not tell; to train on, give the same config with --config.model.encoder.swapped_padding=True "
        "--config.data.min_std_db=0"
    )


def _load_raw_stats(path: Path) -> MelStats:
    stats = load_stats(path)
    if not stats.std.all():
        raise UserError(f"{path}: a deviation is 0, by which the reference would divide: no model was trained with it")
    return stats


def _plain_names(weights: Weights) -> dict[str, np.ndarray]:
    """The same weights, all finite, without the wrappers in their names."""
    plain: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise UserError(f"weight {name} is not finite")
        if plain.setdefault(WRAPPERS.sub("", name), weight) is not weight:
            raise UserError(f"there are two weights {WRAPPERS.sub('', name)}")
    return plain


def _parameters(kind: Kind, weights: Weights, trainer: Trainer) -> Tree:
    """The parameter tree of the trainer's model. Raises ValueError where the weights do not fit it."""
    config = trainer.config
    if config.model.kind == "flow":
        _check_time_basis(weights, config.model.field.time_features)
    params = kind.parameters(weights, *kind.heads(config))
    _check_shapes(params, trainer)
    return jax.tree.map(jnp.asarray, params)


def _check_time_basis(weights: Weights, features: int) -> None:
    """The reference stores its frequencies of the time encoding; here they are computed."""
    half = features // 2
    expected = TIME_BASE ** (-np.arange(half) / max(half, 1))
    basis = weights.get(TIME_BASIS, expected)
    if basis.size != half or not np.allclose(basis.ravel(), expected, rtol=1e-5):
        raise ValueError(f"{TIME_BASIS} has other frequencies")


def _check_shapes(params: Tree, trainer: Trainer) -> None:
    """Against the model, for what no key of the config changes."""
    expected = nnx.to_pure_dict(trainer.abstract)
    shapes = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    for (path, found), wanted in shapes:
        if found.shape != wanted.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name} is of shape {found.shape}, not {wanted.shape}")


def _fresh_state(params: Tree, trainer: Trainer) -> TrainState:
    """A run that begins at ``params``; their average is they themselves."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
        params=params,
        ema=params,
        opt_state=trainer.optimizer.init(trainer.trained(params)),
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
