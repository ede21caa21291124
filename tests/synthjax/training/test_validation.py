"""Validation: losses at every time, sampled rows, and the sounds for the probe."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import AxisType

from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import STATS_FILE, load_stats, standardise
from data_pipeline.shards.reader import AUDIO, PARAM_ARRAY
from synthjax.cluster import sharding
from synthjax.configs import important
from synthjax.methods import flow
from synthjax.methods.examples import EVAL_NOISE, draw_noise, from_model_scale, to_model_scale
from synthjax.methods.task import SpectrogramTask
from synthjax.tasks.batches import open_split
from synthjax.tasks.shards import HeldOutRows, ShardTrainingData
from synthjax.training.trainer import Trainer, TrainState, jit_init
from synthjax.training.validation import Result, Validator
from tests.helpers import TINY

SPEC = load_spec("surge_simple")
TIMES = (0.75, 0.125, 0.5)
ROWS = 6  # Of the validation split; the batch of 4 leaves a padded one.


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    config = important.get_config()
    config.update_from_flattened_dict(TINY)
    config.data.batch_size, config.mesh.fsdp = 4, True
    config.validation.times, config.validation.sampled_rows = TIMES, 5
    return Trainer.create(config, SpectrogramTask(SPEC, (2, 128, 401), config.data.min_std_db))


@pytest.fixture(scope="module")
def state(trainer: Trainer, mesh: jax.sharding.Mesh) -> TrainState:
    return jit_init(trainer, trainer.state_shardings(mesh))()


@pytest.fixture(scope="module")
def validator(trainer: Trainer, mesh: jax.sharding.Mesh, tiny_root: Path) -> Validator:
    held_out = HeldOutRows(
        open_split(tiny_root, "val", SPEC),
        SPEC,
        batch_size=4,
        seed=trainer.config.seed,
        placement=sharding.batch_sharding(mesh),
        limit=trainer.config.validation.rows,
    )
    return Validator(trainer, mesh, held_out)


@pytest.fixture(scope="module")
def result(validator: Validator, state: TrainState, mesh: jax.sharding.Mesh, tiny_root: Path) -> Result:
    stats = jax.device_put(load_stats(tiny_root / STATS_FILE), sharding.replicated(mesh))
    return validator(state.ema, stats)


def test_losses_are_those_of_the_flow_at_every_time(
    result: Result, trainer: Trainer, state: TrainState, tiny_root: Path
) -> None:
    reader, stats = open_split(tiny_root, "val", SPEC), load_stats(tiny_root / STATS_FILE)
    model = trainer.model(jax.device_get(state.ema))
    mel = reader.read_rows("mel_spec", np.arange(ROWS))
    x1 = to_model_scale(reader.read_rows(PARAM_ARRAY, np.arange(ROWS)))
    x0 = np.concatenate([draw_noise(1, SPEC.width, EVAL_NOISE, trainer.config.seed, index) for index in range(ROWS)])
    z = model.encode(standardise(jnp.asarray(mel), stats, trainer.config.data.min_std_db))
    for t in TIMES:
        expected = float(flow.velocity_error(model, z, x0, x1, jnp.full((ROWS,), t)).mean())
        assert result.losses[t] == pytest.approx(expected, rel=1e-5)
        assert result.scalars[f"val/loss_t{t}"] == result.losses[t]
    assert len({round(loss, 6) for loss in result.losses.values()}) == len(TIMES)


def test_the_loss_is_the_mean_over_the_times(result: Result) -> None:
    assert result.scalars["val/loss"] == pytest.approx(np.mean(list(result.losses.values())), rel=1e-12)
    assert [name for name in result.scalars if name.startswith("val/loss")] == [
        "val/loss", "val/loss_t0.75", "val/loss_t0.125", "val/loss_t0.5"
    ]  # fmt: skip


def test_val_mse_is_the_error_of_the_sampled_rows(result: Result, tiny_root: Path) -> None:
    true = open_split(tiny_root, "val", SPEC).read_rows(PARAM_ARRAY, np.arange(5))
    assert result.sampled.shape == (5, SPEC.width)
    assert result.scalars["val/mse"] == pytest.approx(
        np.square(from_model_scale(result.sampled) - true).mean(), rel=1e-5
    )


@pytest.mark.parametrize(("asked", "given"), [(2, 2), (8, ROWS)])
def test_probe_targets_are_the_sounds_of_the_first_rows(
    tiny_config: ml_collections.ConfigDict, tiny_root: Path, asked: int, given: int
) -> None:
    tiny_config.data.root = str(tiny_root)
    tiny_config.validation.update({"probe_sounds": asked, "sampled_rows": 8, "rows": 8})
    expected = [open_split(tiny_root, "val", SPEC).read(AUDIO, index) for index in range(given)]
    spec, sounds = ShardTrainingData(tiny_config).probe_targets()
    assert spec == SPEC
    np.testing.assert_array_equal(sounds, expected)


def test_a_run_without_probe_sounds_has_no_targets(tiny_config: ml_collections.ConfigDict, tiny_root: Path) -> None:
    tiny_config.data.root = str(tiny_root)
    tiny_config.validation.probe_sounds = 0
    assert ShardTrainingData(tiny_config).probe_targets() is None


def test_the_projection_is_gathered_from_all_devices(result: Result, state: TrainState) -> None:
    projection = state.ema["field"]["projection"]
    assert not projection["embed_in"].is_fully_replicated
    np.testing.assert_array_equal(result.assignment, projection["assignment"])
    np.testing.assert_array_equal(result.embeddings[:, :16], projection["embed_in"])
    np.testing.assert_array_equal(result.embeddings[:, 16:], projection["embed_out"])


def test_pictures_are_drawn_of_what_was_found(result: Result) -> None:
    pictures = result.pictures(SPEC.column_names)
    assert set(pictures) == {"assignment", "token_similarity", "loss_by_time", "parameter_mse"}
    assert all(pixels.dtype == np.uint8 and pixels.ndim == 3 for pixels in pictures.values())
