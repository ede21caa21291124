"""Imports a checkpoint of the PyTorch reference into a new workdir, which evaluates, predicts and trains further:

    python -m synthjax.import_checkpoint last.ckpt --config=configs/flow_100k.py --workdir=DIR --config.data.root=DATA

Three models with the AST encoder can be imported, saved with or without torch.compile: the flow with Param2Tok
(configs/flow_100k.py and its variants), the flow with MLP field (configs/flow_mlp.py) and the regression
(configs/regression.py). The config gives what the weights do not hold: heads, spec, sampling, and how to train on. The
import fails if the weights contradict the config. DATA is the data set that the model was trained on, with its splits
and stats.npz. The model keeps the raw statistics and the patch padding that it was trained with
(data.min_std_db=0, model.encoder.swapped_padding=True).

The workdir's checkpoint is step 0: the optimizer, its learning rate, the average of the weights and the order of the
data start from the beginning.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import ml_collections
from absl import flags

from data_pipeline.console import cli, config_flag
from data_pipeline.console.atomic import make_folder
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import STATS_FILE, load_stats
from synthjax.cluster import distributed
from synthjax.methods.task import SpectrogramTask
from synthjax.reference.imported_config import check_kind, check_sizes, model_parameters, recognise
from synthjax.reference.torch_checkpoint import read_checkpoint
from synthjax.reference.weights import plain_names
from synthjax.runs.check_config import check_config
from synthjax.runs.checkpoints import CheckpointError, Checkpoints
from synthjax.runs.workdir import Workdir
from synthjax.tasks.batches import open_split
from synthjax.tasks.shards import dataset_identity
from synthjax.training.trainer import NO_BAD_STEP, Trainer, TrainState


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) != 2:
        raise UserError("usage: python -m synthjax.import_checkpoint CHECKPOINT --config=CONFIG --workdir=DIR")
    distributed.require_devices()
    import_checkpoint(Path(argv[1]), config_flag.read(), Workdir(flags.FLAGS.workdir))
    return 0


def import_checkpoint(path: Path, config: ml_collections.ConfigDict, workdir: Workdir) -> None:
    """Creates ``workdir`` from the weights in ``path``; sets in ``config`` what the reference does otherwise.

    Raises:
      UserError: if the file cannot be read, holds another model, or does not fit the config or the data; if the
        workdir holds a run. The message names the cause.
    """
    if workdir.config.exists() or Path(workdir.checkpoints).exists():
        raise UserError(f"workdir {workdir.path} holds a run, or a part of one: choose another --workdir")
    check_config(config)
    checkpoint = read_checkpoint(path)
    weights = plain_names(checkpoint.weights)
    kind = recognise(weights)
    print(f"{path}: a {kind.title}, {len(weights)} weights after {checkpoint.global_step} steps")
    check_kind(kind, config)
    config.model.encoder.swapped_padding, config.data.min_std_db = True, 0.0

    spec, stats_file = load_spec(config.data.spec), Path(config.data.root) / STATS_FILE
    stats = load_stats(stats_file)
    if not stats.std.all():
        raise UserError(f"{stats_file}: a deviation is 0. The reference divides by it: no model was trained with it")
    reader = open_split(config.data.root, "train", spec, allow_external=config.data.allow_external)
    task = SpectrogramTask(spec, stats.mean.shape, config.data.min_std_db)
    try:
        check_sizes(kind, weights, config, task)
        trainer = Trainer.create(config, task)
        params = model_parameters(kind, weights, trainer)
    except (IndexError, TypeError, ValueError) as error:  # Weights with shapes that the reference never has.
        raise UserError(f"{path} does not hold the weights of this model: {error}") from error

    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
        params=params,
        ema=params,
        opt_state=trainer.optimizer.init(trainer.trained(params)),
    )
    make_folder(workdir.path)
    try:
        with Checkpoints(workdir.checkpoints) as checkpoints:
            checkpoints.save(0, state.trees())
            checkpoints.wait()
    except CheckpointError as error:
        cli.fail(error, 1)
    # The config is written last, because a folder with a config counts as a run.
    workdir.prepare(config, dataset_identity(reader, spec, stats), stats)
    print(
        f"imported as step 0 of {workdir.path}, with {' and '.join(map(str, kind.heads(config)))} heads, which the "
        "weights do not hold; to train on, give the same config with --config.model.encoder.swapped_padding=True "
        "--config.data.min_std_db=0"
    )


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_string("workdir", None, "Folder of the new run: config, checkpoint, statistics. Made if missing.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
