"""The parts of a run before its first step: checked config, data, mesh, trainer and initial state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from data_pipeline.console.cli import UserError
from data_pipeline.shards.mel_stats import MelStats
from synthjax.cluster import distributed, sharding
from synthjax.methods.examples import Batch, HostBatch
from synthjax.runs.bundles import Bundle, read_bundle
from synthjax.runs.check_config import check_config
from synthjax.runs.checkpoints import Checkpoints
from synthjax.tasks.batches import Batches
from synthjax.tasks.training_data import TrainingData, open_training_data
from synthjax.training.display import TrainingDisplay
from synthjax.training.trainer import Trainer, TrainState, abstract_state, jit_init


@dataclass(frozen=True)
class Run:
    """The parts of a run that do not change while it trains."""

    config: ml_collections.ConfigDict
    data: TrainingData
    mesh: Mesh
    trainer: Trainer
    shardings: TrainState
    batches: Batches
    stats: MelStats | None


def set_up(config: ml_collections.ConfigDict, saved: MelStats | None = None) -> Run:
    """Checks that config, data and devices fit each other, and builds the parts of the run.

    Args:
      saved: the statistics that the model has, if it has any.

    Raises:
      UserError: if they do not fit.
    """
    check_config(config)
    data = open_training_data(config, saved)
    trainer = Trainer.create(config, data.task)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.data.batch_size, mesh, config.train.accumulate)
    local_rows = sharding.rows_of_this_process(sharding.batch_sharding(mesh), config.data.batch_size)
    return Run(
        config=config,
        data=data,
        mesh=mesh,
        trainer=trainer,
        shardings=trainer.state_shardings(mesh),
        batches=data.batches(local_rows),
        stats=jax.device_put(data.stats, sharding.replicated(mesh)),
    )


def base_of(config: ml_collections.ConfigDict) -> Callable[[], Bundle] | None:
    """Reads the bundle that the config's ``start_from`` names, once; None if it names none.

    The function raises UserError for a bundle without a model, and as ``read_bundle`` does.
    """
    name = config.get("start_from")

    @cache
    def read() -> Bundle:
        bundle = read_bundle(name)
        if not bundle.has_model:
            raise UserError(f"start_from={name} holds no model, only a library")
        return bundle

    return read if name else None


def restore_or_init(
    run: Run, checkpoints: Checkpoints, base: Callable[[], Bundle] | None = None
) -> tuple[TrainState, int]:
    """The state of the latest checkpoint and its step; without a checkpoint, a fresh state and 0.

    Args:
      base: reads the bundle whose model's weights a fresh state has, if there is one.

    Raises:
      UserError: if the processes of the run have different configs, data or checkpoints, the checkpoint is broken, or
        the base is a model of another spec or architecture.
    """
    latest = checkpoints.latest
    settings = run.config.to_dict()
    settings["data"].pop("root", None)  # Every host may have its own copy.
    distributed.require_same(
        {"the config": settings, "the training data": run.data.identity, "the latest checkpoint": latest},
        "start all with the same flags and data, and with --workdir in a folder or bucket that all of them can read",
    )
    if latest is None:
        state = jit_init(run.trainer, run.shardings)()
        return (_with_weights_of(base(), state, run) if base else state), 0
    trees = checkpoints.restore(latest, abstract_state(run.trainer, run.shardings).trees())
    return TrainState.from_trees(trees), latest


def _with_weights_of(base: Bundle, state: TrainState, run: Run) -> TrainState:
    spec = run.data.task.spec
    if spec is None or base.spec.content_hash != spec.content_hash:
        raise UserError(f"start_from={base.name} holds a model of another spec than the config's")
    params = base.params(run.trainer.abstract_params(run.mesh))
    return replace(state, params=params, ema=jax.tree.map(jnp.copy, params))


def describe_start(run: Run, step: int, checkpoints: Checkpoints) -> list[str]:
    """The lines that a start prints: size of the model, devices, and the step from which it goes on."""
    config, devices = run.config, f"{jax.device_count()} {jax.default_backend()} devices"
    lines = [f"{run.trainer.parameter_count() / 1e6:.1f} M parameters on {devices} ({sharding.shape_of(run.mesh)})"]
    if step >= config.train.steps:
        lines.append(f"this run is complete: {step} steps are done; raise --config.train.steps to train on")
    elif step:
        lines.append(f"going on from step {step}{checkpoints.best_text()}")
    return lines


def load_data(run: Run, display: TrainingDisplay) -> Callable[[HostBatch], Batch]:
    """Fills the data's cache, if there is one; returns the function from host batches to batches on the devices."""
    started = time.perf_counter()
    to_batch = run.data.load(run.mesh)
    if run.config.data.get("cache", "none") != "none":
        display.say(f"read the training data into memory in {time.perf_counter() - started:.1f} s")
    return to_batch
