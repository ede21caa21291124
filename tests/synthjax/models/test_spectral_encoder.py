"""The CNN spectral encoder against the formulas, and its batch statistics in training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from synthjax.models.layers import gelu
from synthjax.models.spectral_encoder import NormKind, SpectralEncoder
from tests.synthjax import numpy_baselines as reference
from tests.synthjax.numpy_networks import call, filled

B, S, D = 4, 64, 5


def make(norm: NormKind, dtype: jnp.dtype = jnp.float32) -> SpectralEncoder:
    return SpectralEncoder(S, dim=D, channels=3, stages=2, norm=norm, dtype=dtype, rngs=nnx.Rngs(0))


def encoder(norm: NormKind) -> SpectralEncoder:
    network = filled(lambda: make(norm))
    for _, module in nnx.iter_modules(network):
        if isinstance(module, nnx.BatchNorm):
            module.var[...] = 0.5 + jnp.abs(module.var[...])
    return network


def signals(batch: int = B) -> np.ndarray:
    return 20 * np.random.default_rng(1).normal(size=(batch, S)).astype(np.float32)


def values(network: SpectralEncoder) -> Any:
    """Parameters and running statistics in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(network)))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_output_equals_the_formulas(norm: NormKind) -> None:
    network = encoder(norm)
    expected = reference.spectral_encoder(values(network), signals())
    assert expected.shape == (B, D)
    np.testing.assert_allclose(call(network, signals()), expected, rtol=2e-4, atol=2e-4)


def test_layer_normalisation_has_no_statistics_and_no_norm_at_the_end_of_a_block() -> None:
    network = nnx.eval_shape(lambda: make("layer"))
    assert not jax.tree.leaves(nnx.state(network, nnx.BatchStat))
    assert "norm2" not in nnx.to_pure_dict(nnx.state(network))["stages"][0]["block1"]


def test_statistics_are_no_parameters() -> None:
    network = nnx.eval_shape(lambda: make("batch"))
    _, parameters, statistics = nnx.split(network, nnx.Param, nnx.BatchStat)
    names = {path[-1] for path, _ in nnx.to_flat_state(statistics)}
    assert names == {"mean", "var"}
    assert not names & {path[-1] for path, _ in nnx.to_flat_state(parameters)}


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_examples_of_a_batch_do_not_mix_outside_training(norm: NormKind) -> None:
    network, changed = encoder(norm), signals()
    changed[0] *= 2
    before, after = call(network, signals()), call(network, changed)
    np.testing.assert_array_equal(after[1:], before[1:])
    assert np.abs(after[0] - before[0]).max() > 1e-3


def test_training_normalises_by_the_batch_and_moves_the_statistics_by_a_tenth() -> None:
    network = encoder("batch")
    block = network.stages[0].block1
    old_mean, old_var = (np.asarray(v[...]) for v in (block.norm1.mean, block.norm1.var))
    spectrum = np.abs(np.fft.rfft(signals()))[..., None] / S
    activation = np.asarray(gelu(block.conv1(jnp.asarray(spectrum, jnp.float32))))
    mean, var = activation.mean(axis=(0, 1)), activation.var(axis=(0, 1))
    block.norm1.train()
    normalised = block.norm1(jnp.asarray(activation))
    scale, bias = np.asarray(block.norm1.scale[...]), np.asarray(block.norm1.bias[...])
    expected = (activation - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(normalised, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block.norm1.mean[...], 0.9 * old_mean + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(block.norm1.var[...], 0.9 * old_var + 0.1 * var, rtol=1e-5)


def split(network: SpectralEncoder) -> tuple[nnx.GraphDef, Any, Any]:
    """Structure, parameters and statistics, the latter as pure trees."""
    graph, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
    return graph, *(nnx.to_pure_dict(state) for state in states)


def test_statistics_arrive_at_those_of_a_batch_that_repeats() -> None:
    graph, parameters, statistics = split(encoder("batch"))

    @jax.jit
    def forward(statistics: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, parameters, statistics)
        model.train()
        return model(signals()), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    before = call(nnx.merge(graph, parameters, statistics), signals())
    for _ in range(150):
        out, statistics = forward(statistics)
    after = call(nnx.merge(graph, parameters, statistics), signals())
    assert np.abs(after - out).max() < 0.01 * np.abs(before - out).max()


@pytest.mark.slow
def test_a_jitted_step_carries_the_statistics_beside_the_parameters() -> None:
    """The way that the class documents."""
    sizes = {"dim": D, "channels": 3, "stages": 1, "norm": "batch", "dtype": jnp.float32}
    graph, parameters, statistics = split(SpectralEncoder(S, **sizes, rngs=nnx.Rngs(0)))
    first = statistics
    optimizer = optax.adam(1e-2)
    opt_state = optimizer.init(parameters)
    target = jnp.asarray(np.random.default_rng(2).normal(size=(16, D)), jnp.float32)

    @jax.jit
    def step(parameters: Any, statistics: Any, opt_state: Any, signal: jax.Array) -> tuple[Any, ...]:
        def loss_fn(parameters: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, parameters, statistics)
            model.train()
            loss = jnp.square(model(signal) - target).mean()
            return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        (loss, moved), gradients = jax.value_and_grad(loss_fn, has_aux=True)(parameters)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(parameters, updates), moved, opt_state, loss

    losses = []
    for _ in range(30):
        parameters, statistics, opt_state, loss = step(parameters, statistics, opt_state, signals(16))
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    for before, after in zip(*map(jax.tree.leaves, (first, statistics)), strict=True):
        assert np.abs(after - before).max() > 1e-4


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_gradients_are_finite_and_reach_every_parameter(norm: NormKind) -> None:
    graph, parameters, statistics = split(encoder(norm))
    loss = lambda parameters: jnp.sin(nnx.merge(graph, parameters, statistics)(signals())).sum()  # noqa: E731
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(parameters)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_activations_take_the_dtype_and_variables_are_float32(norm: NormKind) -> None:
    network = nnx.eval_shape(lambda: make(norm, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}
    out = jax.eval_shape(lambda x: make(norm, jnp.bfloat16)(x), jax.ShapeDtypeStruct((B, S), jnp.float32))
    assert out.dtype == jnp.bfloat16


def test_every_kernel_names_its_axes() -> None:
    state = nnx.state(nnx.eval_shape(lambda: make("batch")), nnx.Param)
    for path, variable in nnx.to_flat_state(state):
        if path[-1] == "kernel":
            assert len(variable.get_metadata()["axes"]) == variable.ndim, path


def test_convolutions_start_uniform() -> None:
    sizes = {"dim": 8, "channels": 16, "stages": 1, "norm": "batch", "dtype": jnp.float32}
    fresh = nnx.jit(lambda: SpectralEncoder(S, **sizes, rngs=nnx.Rngs(0)))()
    stage = fresh.stages[0]
    for conv, fan_in in [(stage.block1.conv1, 7), (stage.block2.conv1, 7 * 16), (stage.down, 6 * 16)]:
        kernel, bias = np.asarray(conv.kernel[...]), np.asarray(conv.bias[...])
        bound = 1 / np.sqrt(fan_in)
        assert max(np.abs(kernel).max(), np.abs(bias).max()) <= bound
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.15)
