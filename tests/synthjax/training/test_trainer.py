"""The jitted train step: same figures on any mesh, one compilation, no host transfers, non-finite steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import MIN_STD_DB, MelStats
from scripts.compile_memory import network_bytes
from synthjax.cluster import sharding
from synthjax.configs import important
from synthjax.methods.sampling import Sampling
from synthjax.methods.task import SpectrogramTask
from synthjax.models.kernels.platform import as_on_accelerators
from synthjax.runs.checkpoints import Checkpoints
from synthjax.runs.model import jit_sampler
from synthjax.training.trainer import NO_BAD_STEP, Trainer, TrainState, abstract_state, jit_init, jit_train_step
from tests.helpers import TINY

SHAPE = (2, 128, 401)
WIDTH = 92
# The learning rate is large so that a wrong gradient shows within a few steps.
LEARNING_RATE = 3e-3

MESHES = {
    "one": (1, 1, False),
    "data": (8, 1, False),
    "fsdp": (8, 1, True),
    "model": (1, 2, False),
    "both": (2, 2, True),
}


@dataclass
class Bench:
    """A compiled tiny run on some mesh."""

    mesh: Mesh
    trainer: Trainer
    shardings: TrainState
    step: Any
    init: Any
    stats: MelStats

    def batch(self, step: int) -> dict[str, jax.Array]:
        return sharding.place(host_batch(step), sharding.batch_sharding(self.mesh))

    def run(self, state: TrainState, start: int, steps: int) -> tuple[TrainState, list[float]]:
        losses = []
        for step in range(start, start + steps):
            state, metrics = self.step(state, self.batch(step), self.stats)
            losses.append(float(metrics["loss"]))
        return state, losses


def host_batch(step: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(step)
    return {
        "mel_spec": generator.uniform(-80, 0, (8, *SHAPE)).astype(np.float16),
        "x1": generator.uniform(-1, 1, (8, WIDTH)).astype(np.float32),
        "x0": generator.standard_normal((8, WIDTH), np.float32),
    }


@cache
def make_bench(name: str, compute_dtype: str = "float32", accumulate: int = 1, remat: str = "elementwise") -> Bench:
    data, model, fsdp = MESHES[name]
    config = important.get_config()
    config.update_from_flattened_dict(TINY)
    config.mesh.fsdp, config.optim.lr, config.compute_dtype = fsdp, LEARNING_RATE, compute_dtype
    config.train.accumulate, config.train.remat = accumulate, remat
    devices = jax.devices()[: data * model]
    mesh = jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    trainer = Trainer.create(config, SpectrogramTask(load_spec("surge_simple"), SHAPE, MIN_STD_DB))
    shardings = trainer.state_shardings(mesh)
    stats = MelStats(np.full(SHAPE, -40, np.float32), np.full(SHAPE, 20, np.float32))
    stats = jax.device_put(stats, sharding.replicated(mesh))
    return Bench(
        mesh, trainer, shardings, jit_train_step(trainer, mesh, shardings), jit_init(trainer, shardings), stats
    )


@pytest.fixture(scope="module")
def single() -> Bench:
    return make_bench("one")


@pytest.fixture(scope="module")
def expected(single: Bench) -> list[float]:
    return single.run(single.init(), 0, 10)[1]


@pytest.mark.parametrize(
    "name",
    [
        name if name == "both" else pytest.param(name, marks=pytest.mark.slow)  # Both axes and FSDP at once.
        for name in MESHES
        if name != "one"
    ],
)
def test_losses_are_the_same_on_every_mesh(name: str, expected: list[float]) -> None:
    bench = make_bench(name)
    _, losses = bench.run(bench.init(), 0, 10)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("both", {"accumulate": 2}),
        ("one", {"accumulate": 4}),
        ("one", {"remat": "layers"}),
        ("one", {"remat": "none"}),
    ],
)
def test_what_saves_memory_changes_no_figure(name: str, changes: dict[str, Any], expected: list[float]) -> None:
    bench = make_bench(name, **changes)
    _, losses = bench.run(bench.init(), 0, 10)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


def test_fsdp_splits_parameters_and_moments_over_the_data_axis() -> None:
    bench = make_bench("both")
    state = bench.init()
    kernel = state.params["field"]["blocks"]["ff"]["up"]["kernel"]  # (L, D, F)
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "data", "model")
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
    assert moments
    assert all(leaf.sharding.is_equivalent_to(kernel.sharding, 3) for leaf in moments)
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


@pytest.mark.slow
def test_fsdp_moves_weights_and_no_activations() -> None:
    """Weights to every device and gradients from it, once a step, whatever the batch."""
    bench = make_bench("fsdp")
    state = abstract_state(bench.trainer, bench.shardings)
    traffic = []
    for rows in (8, 64):
        batch = {name: np.repeat(array, rows // 8, axis=0) for name, array in host_batch(0).items()}
        placed = sharding.place(batch, sharding.batch_sharding(bench.mesh))
        with as_on_accelerators():  # The CPU's attention gathers what its loop runs over.
            step = jit_train_step(bench.trainer, bench.mesh, bench.shardings)
            lowered = step.lower(state, placed, bench.stats)
        traffic.append(network_bytes(lowered.compile().as_text()))
    weights = 4 * bench.trainer.parameter_count()
    assert traffic[1] < 4 * weights
    assert traffic[1] - traffic[0] < 0.1 * weights


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_sampling_moves_nothing_between_devices_but_its_results(solver: str) -> None:
    bench = make_bench("data")
    sampler = jit_sampler(bench.trainer, bench.mesh, Sampling(guidance=2.0, solver=solver, steps=3))
    batch = {name: array for name, array in bench.batch(0).items() if name != "x1"}
    with as_on_accelerators():  # The CPU's attention gathers what its loop runs over.
        lowered = sampler.lower(abstract_state(bench.trainer, bench.shardings).params, batch, bench.stats)
    arrived = 4 if solver == "dopri5" else 0  # Whether all have, which is one word.
    assert network_bytes(lowered.compile().as_text()) <= batch["x0"].nbytes + arrived


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("one", "both"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("both", "data"), ("fsdp", "one"), ("data", "model"))
        ),
    ],
)
def test_a_checkpoint_of_one_mesh_goes_on_on_another(
    written: str, read: str, expected: list[float], tmp_path: Path
) -> None:
    first, second = make_bench(written), make_bench(read)
    state, losses = first.run(first.init(), 0, 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state.trees())
        checkpoints.wait()
        trees = checkpoints.restore(4, abstract_state(second.trainer, second.shardings).trees())
    restored = TrainState.from_trees(trees)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    assert restored.params["field"]["blocks"]["ff"]["up"]["kernel"].sharding.mesh.shape == second.mesh.shape
    _, more = second.run(restored, 4, 4)
    np.testing.assert_allclose(losses + more, expected[:8], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_one_compilation_serves_all_steps(single: Bench) -> None:
    step = jit_train_step(single.trainer, single.mesh, single.shardings)  # Its cache has seen no other test.
    replace(single, step=step).run(single.init(), 0, 3)
    assert step._cache_size() == 1


def test_the_step_moves_nothing_between_host_and_device(single: Bench) -> None:
    state, batch = single.init(), single.batch(0)
    state, _ = single.step(state, batch, single.stats)  # Compiling uploads constants.
    with jax.transfer_guard("disallow"):
        state, metrics = single.step(state, batch, single.stats)
        jax.block_until_ready((state, metrics))


def test_the_step_takes_over_the_buffers_of_the_state(single: Bench) -> None:
    state = single.init()
    following, _ = single.step(state, single.batch(0), single.stats)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(following))


def test_steps_depend_on_seed_and_step_alone(single: Bench) -> None:
    state, _ = single.run(single.init(), 0, 2)
    again, _ = single.run(single.init(), 0, 2)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(again))


def test_times_and_dropout_differ_from_step_to_step(single: Bench) -> None:
    state, batch = single.init(), single.batch(0)
    frozen = jax.tree.map(jnp.copy, state)
    _, first = single.step(state, batch, single.stats)
    later = TrainState(jnp.ones((), jnp.int32), frozen.bad_step, frozen.params, frozen.ema, frozen.opt_state)
    _, second = single.step(later, batch, single.stats)
    assert float(first["loss"]) != float(second["loss"])


def test_a_non_finite_step_changes_nothing_and_stops_all_later_ones(single: Bench) -> None:
    state, _ = single.run(single.init(), 0, 2)
    before = jax.device_get(state)
    poisoned = single.batch(2)
    poisoned["mel_spec"] = poisoned["mel_spec"].at[3, 0, 5, 7].set(jnp.nan)
    state, metrics = single.step(state, poisoned, single.stats)
    assert int(metrics["bad_step"]) == 2
    state, metrics = single.step(state, single.batch(3), single.stats)
    after = jax.device_get(state)
    assert (int(after.bad_step), int(after.step)) == (2, 4)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))


def test_bad_step_is_unset_in_a_good_run(single: Bench) -> None:
    state, _ = single.run(single.init(), 0, 2)
    assert (int(state.bad_step), int(state.step)) == (NO_BAD_STEP, 2)


def test_average_follows_the_weights_with_a_growing_memory(single: Bench) -> None:
    state = single.init()
    start = jax.device_get(state.params)
    ema = start
    for step in range(3):
        state, _ = single.step(state, single.batch(step), single.stats)
        decay = (1 + step) / (10 + step)
        ema = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, ema, jax.device_get(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), jax.device_get(state.ema), ema)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, ema)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_metrics_hold_the_norm_of_every_module(single: Bench) -> None:
    _, metrics = single.step(single.init(), single.batch(0), single.stats)
    norms = {name: float(value) for name, value in metrics.items() if name.startswith("grad_norm/")}
    assert {"grad_norm/encoder.blocks", "grad_norm/field.blocks", "grad_norm/field.projection"} <= norms.keys()
    np.testing.assert_allclose(float(metrics["grad_norm"]), np.sqrt(sum(v**2 for v in norms.values())), rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_state(single: Bench) -> None:
    bench = make_bench("one", "bfloat16")
    state, losses = bench.run(bench.init(), 0, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {np.dtype(np.float32)}
    _, exact = single.run(single.init(), 0, 3)
    np.testing.assert_allclose(losses, exact, rtol=2e-2)
