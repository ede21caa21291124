"""The k-osc task as training data: rows drawn in the step, their pairing on the host, held-out rows."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from absl import flags
from jax.sharding import AxisType

from data_pipeline.console.cli import UserError
from synthjax.cluster import sharding
from synthjax.configs import k_osc as k_osc_config
from synthjax.k_osc import synthesis as k_osc
from synthjax.k_osc.synthesis import KOsc
from synthjax.methods.coupling import couple
from synthjax.methods.task import KOscTask, draw
from synthjax.tasks.batches import prefetch
from synthjax.tasks.k_osc import HELD_OUT_BATCH, KOscBatches, KOscHeldOut
from synthjax.training.trainer import Trainer, jit_init, jit_train_step
from tests.helpers import REPOSITORY, run_cli
from tests.synthjax.k_osc_runs import TINY, TINY_FIELD, tiny

MakeConfig = Callable[..., ml_collections.ConfigDict]
TASK = KOscTask(KOsc(3), seed=5, batch_size=16)


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])


def batches(coupled: bool = True, local_rows: range = range(16)) -> KOscBatches:
    return KOscBatches(TASK, coupled=coupled, local_rows=local_rows, steps=10)


def test_the_order_is_that_of_the_optimal_pairing() -> None:
    rows, noise = map(np.asarray, draw(TASK.seed, "train", 3, 16, 9))
    order = batches()[3]["order"]
    assert sorted(order) == list(range(16))
    assert (order != np.arange(16)).any()
    np.testing.assert_array_equal(noise[order], couple(noise, rows))


def test_groups_of_a_large_batch_are_paired_each_by_itself() -> None:
    task = KOscTask(KOsc(1), seed=0, batch_size=256)
    order = KOscBatches(task, coupled=True, local_rows=range(256), steps=1)[0]["order"]
    assert sorted(order[:128]) == list(range(128))
    rows, noise = map(np.asarray, draw(0, "train", 0, 256, 3))
    np.testing.assert_array_equal(noise[order[128:]], couple(noise[128:], rows[128:]))


def test_a_process_gets_the_part_of_the_order_that_it_holds() -> None:
    whole = batches()[2]["order"]
    np.testing.assert_array_equal(batches(local_rows=range(4, 12))[2]["order"], whole[4:12])


def test_nothing_is_sent_where_nothing_is_paired() -> None:
    assert batches(coupled=False)[0] == {}


def test_batches_travel_to_worker_processes_after_use() -> None:
    used = batches()
    first = used[1]["order"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(used))[1]["order"], first)


@pytest.mark.slow
def test_worker_processes_give_the_same_orders() -> None:
    flags.FLAGS.mark_as_parsed()  # As a command would have; grain looks.
    with prefetch(batches(), workers=1, start=2) as stream:
        found = next(iter(stream))["order"]
    np.testing.assert_array_equal(found, batches()[2]["order"])


def test_examples_of_a_step_are_drawn_and_paired_in_it() -> None:
    order = np.random.default_rng(0).permutation(16).astype(np.int32)
    examples = jax.jit(TASK.examples)({"order": order}, None, jnp.asarray(7))
    rows, noise = draw(TASK.seed, "train", 7, 16, 9)
    np.testing.assert_allclose(examples.x1, rows, atol=1e-6)
    np.testing.assert_allclose(examples.x0, noise[order], atol=1e-5)
    np.testing.assert_allclose(examples.inputs, k_osc.synthesise(rows, TASK.settings), atol=1e-4)
    unpaired = jax.jit(TASK.examples)({}, None, jnp.asarray(7))
    np.testing.assert_allclose(unpaired.x0, noise, atol=1e-5)


def test_rows_and_noise_of_steps_splits_and_seeds_differ() -> None:
    drawn = [
        draw(*which, 16, 9)
        for which in ((5, "train", 0), (5, "train", 1), (5, "val", 0), (5, "test", 0), (6, "train", 0))
    ]
    values = np.concatenate([np.ravel(array) for pair in drawn for array in pair])
    assert len(np.unique(values)) > 0.99 * values.size


def test_columns_are_named_in_the_order_of_a_row() -> None:
    assert list(TASK.column_names)[:4] == ["frequency_1", "frequency_2", "frequency_3", "amplitude_1"]
    assert len(TASK.column_names) == TASK.width == 9


# Held-out rows.


def test_held_out_rows_do_not_depend_on_the_batch_of_training(mesh: jax.sharding.Mesh) -> None:
    placement = sharding.batch_sharding(mesh)
    first, second = (KOscHeldOut(KOscTask(KOsc(2), 1, size), "val", 300, placement)[1]["x1"] for size in (8, 64))
    assert first.shape == (HELD_OUT_BATCH, 6)
    np.testing.assert_array_equal(first, second)


def test_only_the_asked_for_rows_are_valid(mesh: jax.sharding.Mesh) -> None:
    held_out = KOscHeldOut(TASK, "val", 300, sharding.batch_sharding(mesh))
    valid = np.concatenate([held_out[i]["valid"] for i in range(len(held_out))])
    np.testing.assert_array_equal(valid, np.arange(512) < 300)
    with pytest.raises(IndexError):
        held_out[2]


def test_a_right_answer_is_judged_right_in_any_order_and_a_wrong_one_wrong(mesh: jax.sharding.Mesh) -> None:
    held_out = KOscHeldOut(TASK, "test", 8, sharding.batch_sharding(mesh))
    true = np.asarray(held_out[0]["x1"])[:8]
    swapped = true.reshape(8, 3, 3)[:, :, [1, 2, 0]].reshape(8, 9)
    for name, values in held_out.judge(swapped, true).items():
        assert values.shape == (8,)
        if name == "mse":
            assert values.min() > 1e-3
        else:
            np.testing.assert_allclose(values, 0.0, atol=1e-3)
    assert all(values.mean() > 1e-3 for values in held_out.judge(-true, true).values())


def test_errors_by_parameter_exist_if_the_order_is_fixed(mesh: jax.sharding.Mesh) -> None:
    placement = sharding.batch_sharding(mesh)
    true, predicted = np.zeros((4, 6)), np.tile([0.0, 1.0, 0.0, 0.0, 0.0, 2.0], (4, 1))
    assert KOscHeldOut(KOscTask(KOsc(2), 0, 8), "val", 4, placement).parameter_errors(predicted, true) == {}
    asymmetric = KOscHeldOut(KOscTask(KOsc(2, symmetric=False), 0, 8), "val", 4, placement)
    errors = asymmetric.parameter_errors(predicted, true)
    assert list(errors) == list(KOscTask(KOsc(2), 0, 8).column_names)
    assert list(errors.values()) == [0.0, 1.0, 0.0, 0.0, 0.0, 4.0]


# Training.


def one_step(config: ml_collections.ConfigDict, devices: int) -> tuple[Trainer, dict, dict]:
    """The trainer, the state before and after one step, on so many devices."""
    mesh = jax.make_mesh(
        (devices, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )
    task = KOscTask.from_config(config)
    trainer = Trainer.create(config, task)
    shardings = trainer.state_shardings(mesh)
    state = jit_init(trainer, shardings)()
    before = jax.device_get(state)
    order = KOscBatches(task, coupled=True, local_rows=range(task.batch_size), steps=1)[0]
    step = jit_train_step(trainer, mesh, shardings)
    after, metrics = step(state, sharding.place(order, sharding.batch_sharding(mesh)), None)
    return trainer, before, jax.device_get((after, metrics))


def test_batch_norm_cannot_be_accumulated(k_osc_config_of: MakeConfig) -> None:
    config = k_osc_config_of("mse")
    config.train.accumulate = 2
    with pytest.raises(UserError, match=r"the model has batch norm, .*: set train\.accumulate to 1"):
        Trainer.create(config, KOscTask.from_config(config))


@pytest.mark.slow
def test_batch_statistics_move_and_weights_are_trained(
    k_osc_config_of: MakeConfig,
) -> None:
    _, before, (after, metrics) = one_step(k_osc_config_of("mse"), devices=1)
    norm = ("encoder", "stages", 0, "block1", "norm1")
    for tree in ("params", "ema"):
        old, new = (getattr(state, tree) for state in (before, after))
        for name in norm:
            old, new = old[name], new[name]
        np.testing.assert_array_equal(old["mean"], 0.0)
        assert np.abs(new["mean"]).max() > 1e-6
        assert np.abs(new["var"] - old["var"]).max() > 1e-6
        assert np.abs(new["scale"] - old["scale"]).max() > 0
    assert np.isfinite(metrics["loss"])


@pytest.mark.slow
def test_statistics_are_those_of_the_whole_batch_on_any_mesh(
    k_osc_config_of: MakeConfig,
) -> None:
    states = [one_step(k_osc_config_of("equivariant"), devices)[2] for devices in (1, 4)]
    (one, one_metrics), (four, four_metrics) = states
    np.testing.assert_allclose(one_metrics["loss"], four_metrics["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one.params, four.params)


def test_statistics_are_not_counted_as_parameters(k_osc_config_of: MakeConfig) -> None:
    batch, layer = (
        Trainer.create(config, KOscTask.from_config(config))
        for config in (k_osc_config_of("mse"), k_osc_config_of("mse", "norm=layer"))
    )
    norms_at_the_ends_of_blocks = 2 * 2 * 4 * 2  # Layer normalisation has none there; scale and bias of 4 channels.
    widths = sum(2**stage for stage in range(batch.config.model.encoder.stages))
    assert batch.parameter_count() - layer.parameter_count() == norms_at_the_ends_of_blocks // 2 * widths


def test_the_optimizer_holds_no_moments_of_statistics(k_osc_config_of: MakeConfig) -> None:
    config = k_osc_config_of("mse")
    trainer = Trainer.create(config, KOscTask.from_config(config))
    state = jax.eval_shape(trainer.init)
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    norm = ("encoder", "stages", 0, "block1", "norm1")
    for tree, held in [
        (state.params, {"scale", "bias", "mean", "var"}),
        *((tree, {"scale", "bias"}) for tree in moments),
    ]:
        for name in norm:
            tree = tree[name]
        assert set(tree) == held
    assert [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in moments] == 2 * [trainer.parameter_count()]


def train(model: str, workdir: Path, **changes: str) -> None:
    config = f"--config=configs/k_osc.py:model={model},k=2"
    field = TINY_FIELD | {"model.field.heads": 2, "model.field.ff_dim": 8} if model == "param2tok" else {}
    values = TINY | field | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    result = run_cli("synthjax.train", config, f"--workdir={workdir}", *flags, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", ["chamfer", "param2tok"])
def test_a_stopped_run_goes_on_to_the_same_figures(model: str, tmp_path: Path) -> None:
    train(model, tmp_path / "whole")
    train(model, tmp_path / "stopped", train__steps="3")
    train(model, tmp_path / "stopped")
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    assert lines[0][-1] == lines[1][-1]
    assert not (tmp_path / "whole" / "spec.json").exists()


@pytest.fixture
def k_osc_config_of() -> MakeConfig:
    return lambda model, *variants: tiny(k_osc_config.get_config(",".join([f"model={model}", "k=2", *variants])))
