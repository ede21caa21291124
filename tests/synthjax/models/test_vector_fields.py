"""The transformer field, its time encoding and Param2Tok, against the formulas of MODELS.md."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from synthjax.models import build_model
from synthjax.models.layers import run_layers
from synthjax.models.projections import Param2Tok
from synthjax.models.vector_fields import TransformerField, sinusoidal_time
from tests.synthjax import numpy_networks as reference
from tests.synthjax.numpy_networks import abstract_call, call, filled

B, W, L, D = 3, 5, 3, 6


def field(time_features: int = 8, dtype: jnp.dtype = jnp.float32) -> TransformerField:
    sizes = {"dim": 8, "layers": L, "heads": 2, "ff_dim": 12, "tokens": 4, "conditioning_dim": D}
    return filled(lambda: TransformerField(W, **sizes, time_features=time_features, dtype=dtype, rngs=nnx.Rngs(0)))


def inputs(batch: int = B) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (B, W), t (B,), z (B, L, D)."""
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(batch, W)), rng.normal(size=(batch, L, D))
    return np.float32(x), np.float32(rng.uniform(size=batch)), np.float32(z)


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("time_features", [8, 1])
def test_velocity_equals_the_formulas(time_features: int) -> None:
    network = field(time_features)
    assert_close(call(network, *inputs()), reference.transformer_field(reference.parameters(network), *inputs()))


def test_time_encoding_is_cos_then_sin_of_unscaled_time() -> None:
    t = np.array([0.0, 0.25, 1.0], np.float32)
    encoded = np.asarray(sinusoidal_time(jnp.asarray(t), 256))
    angles = t[:, None] / 10_000 ** (np.arange(128) / 128)
    np.testing.assert_allclose(encoded[:, :128], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(encoded[:, 128:], np.sin(angles), atol=1e-6)
    assert encoded[2, 0] == pytest.approx(math.cos(1.0), abs=1e-6)


def test_velocity_does_not_depend_on_the_order_of_tokens() -> None:
    network = field()
    before = call(network, *inputs())
    network.projection.assignment[...] = network.projection.assignment[...][np.array([2, 0, 3, 1])]
    assert_close(call(network, *inputs()), before)


def test_transformer_is_equivariant_to_the_order_of_tokens() -> None:
    graph, state = nnx.split(field().blocks)
    run = jax.jit(lambda tokens, rows: run_layers(nnx.merge(graph, state), tokens, rows))
    rng = np.random.default_rng(2)
    tokens, rows = np.float32(rng.normal(size=(B, 4, 8))), np.float32(rng.normal(size=(L, B, 8)))
    order = np.array([2, 0, 3, 1])
    moved = run(tokens[:, order], rows)
    assert_close(moved, run(tokens, rows)[:, order])
    assert np.abs(moved - run(tokens, rows)).max() > 0.1


@partial(jax.jit, static_argnums=0)
def sensitivity_to_conditioning(graph: nnx.GraphDef, state: nnx.State, x: Any, t: Any, z: Any) -> jax.Array:
    return jax.grad(lambda z: jnp.sin(nnx.merge(graph, state)(x, t, z)).sum())(z)


@pytest.mark.parametrize("active", range(L))
def test_each_layer_reads_its_own_conditioning_row(active: int) -> None:
    network = field()
    # Without modulation (a1 = a2 = 0) the other layers hand their input on.
    only = np.arange(L) == active
    network.blocks.modulation.kernel[...] *= only[:, None, None]
    network.blocks.modulation.bias[...] *= only[:, None]
    sensitivity = sensitivity_to_conditioning(*nnx.split(network), *inputs())
    assert (np.abs(sensitivity).max(axis=(0, 2)) > 0).tolist() == only.tolist()


def test_one_conditioning_row_serves_every_layer() -> None:
    network, (x, t, z) = field(), inputs()
    repeated = np.repeat(z[:, :1], L, axis=1)
    np.testing.assert_array_equal(call(network, x, t, z[:, 0]), call(network, x, t, repeated))


DROPPED = np.array([True, False, True])


def test_dropped_examples_ignore_their_conditioning_and_others_do_not() -> None:
    network, (x, t, z) = field(), inputs()
    velocity, other = call(network, x, t, z, DROPPED), call(network, x, t, z + 1.0, DROPPED)
    assert (np.abs(velocity - other).max(axis=1) > 1e-3).tolist() == (~DROPPED).tolist()
    assert_close(velocity[1], call(network, x, t, z)[1])


def test_dropped_examples_are_conditioned_on_the_token_in_every_layer() -> None:
    network, (x, t, z) = field(), inputs()
    token = np.asarray(network.dropout_token[...])
    assert token.shape == (D,)
    assert_close(call(network, x, t, z, DROPPED)[DROPPED], call(network, x, t, np.tile(token, (B, L, 1)))[DROPPED])


def test_nothing_dropped_equals_no_mask() -> None:
    network = field()
    np.testing.assert_array_equal(call(network, *inputs(), np.zeros(B, bool)), call(network, *inputs()))


def test_examples_of_a_batch_do_not_mix() -> None:
    network, changed = field(), inputs()
    for array in changed:
        array[0] += 0.5
    before, after = call(network, *inputs()), call(network, *changed)
    np.testing.assert_array_equal(after[1:], before[1:])
    assert np.abs(after[0] - before[0]).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_velocity_is_float32_whatever_dtype_computes(dtype: jnp.dtype) -> None:
    x, t, z = inputs()
    velocity = call(field(dtype=dtype), x, t, jnp.asarray(z, dtype))
    assert velocity.dtype == jnp.float32
    assert np.abs(velocity - call(field(), *inputs())).max() < 0.1 * np.abs(velocity).max()


def test_model_is_float32_outside_under_bfloat16_compute(tiny_config: ml_collections.ConfigDict) -> None:
    make = lambda: build_model(  # noqa: E731
        tiny_config.model, width=W, input_shape=(2, 32, 64), dtype="bfloat16", rngs=nnx.Rngs(0)
    )
    z = abstract_call(make, jax.ShapeDtypeStruct((B, 2, 32, 64), jnp.float32), method="encode")
    assert z.dtype == jnp.bfloat16
    x, t = jax.ShapeDtypeStruct((B, W), jnp.float32), jax.ShapeDtypeStruct((B,), jnp.float32)
    velocity = abstract_call(make, x, t, z, method="velocity")
    assert (velocity.shape, velocity.dtype) == ((B, W), jnp.float32)
    assert abstract_call(make, method="penalty").dtype == jnp.float32


def test_penalty_is_the_mean_magnitude_of_the_assignment() -> None:
    network = field()
    assignment = np.array([[1.0, -2.0, 0.0, 3.0, -4.0]] * 4, np.float32)
    network.projection.assignment[...] = jnp.asarray(assignment)
    assert float(network.penalty()) == pytest.approx(2.0)


def test_compiled_size_does_not_grow_with_the_depth_of_the_field() -> None:
    def size(layers: int) -> int:
        sizes = {"dim": 8, "layers": layers, "heads": 2, "ff_dim": 12, "tokens": 4, "conditioning_dim": D}
        make = lambda: TransformerField(  # noqa: E731
            W, **sizes, time_features=8, dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
        graph, state = nnx.split(filled(make))
        x, t, z = inputs()
        arguments = state, x, t, np.repeat(z[:, :1], layers, axis=1)
        return len(jax.jit(lambda state, *rest: nnx.merge(graph, state)(*rest)).lower(*arguments).as_text())

    assert size(6) == pytest.approx(size(2), rel=0.02)


def projection() -> Param2Tok:
    return filled(lambda: Param2Tok(W, 4, 6, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def test_param2tok_makes_tokens_by_the_formula() -> None:
    module, x = projection(), inputs()[0]
    assert_close(call(module, x, method="to_tokens"), reference.to_tokens(reference.parameters(module), x))


def test_param2tok_reads_rows_back_by_the_formula() -> None:
    module, tokens = projection(), np.float32(np.random.default_rng(3).normal(size=(B, 4, 6)))
    assert_close(call(module, tokens, method="to_row"), reference.to_row(reference.parameters(module), tokens))


@pytest.fixture(scope="module")
def fresh() -> TransformerField:
    """A field as training starts from it: 92 columns, 32 tokens, width 256."""
    sizes = {"dim": 256, "layers": 1, "heads": 4, "ff_dim": 16, "tokens": 32, "conditioning_dim": 512}
    make = lambda: TransformerField(  # noqa: E731
        92, **sizes, time_features=16, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    return nnx.jit(make)()


def test_assignment_starts_uniform_with_a_little_noise(fresh: TransformerField) -> None:
    assignment = np.asarray(fresh.projection.assignment[...])
    assert assignment.shape == (32, 92)
    noise = assignment - 1 / math.sqrt(32 * 92)
    assert noise.std() == pytest.approx(1e-4, rel=0.05)
    assert abs(noise.mean()) < 4 * 1e-4 / math.sqrt(noise.size)


def test_parameter_embeddings_start_as_one_shared_vector_with_a_little_noise(fresh: TransformerField) -> None:
    embeddings = [np.asarray(fresh.projection.embed_in[...]), np.asarray(fresh.projection.embed_out[...])]
    assert [e.shape for e in embeddings] == [(92, 256)] * 2
    shared = np.concatenate(embeddings).mean(axis=0)
    assert shared.std() == pytest.approx(1 / math.sqrt(256), rel=0.15)
    assert abs(shared.mean()) < 4 / 256
    for embedding in embeddings:
        assert (embedding - shared).std() == pytest.approx(1e-4, rel=0.05)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-5  # Their noise is their own.


def test_dropout_token_starts_normal(fresh: TransformerField) -> None:
    token = np.asarray(fresh.dropout_token[...])
    assert token.std() == pytest.approx(1.0, rel=0.12)
    assert abs(token.mean()) < 4 / math.sqrt(token.size)


def test_conditioning_and_token_networks_start_uniform(fresh: TransformerField) -> None:
    layers = [(fresh.conditioning.up, 512 + 16), (fresh.conditioning.down, 256)]
    layers += [(fresh.projection.ff.up, 256), (fresh.projection.ff.down, 256)]
    for layer, fan_in in layers:
        for values in (np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])):
            assert np.abs(values).max() <= 1 / math.sqrt(fan_in)
            assert values.std() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.12)


def test_base_field_has_the_published_size() -> None:
    sizes = {"dim": 512, "layers": 8, "heads": 8, "ff_dim": 512, "tokens": 128, "conditioning_dim": 512}
    make = lambda: TransformerField(  # noqa: E731
        92, **sizes, time_features=256, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make))))
    assert round(count / 1e6, 1) == 26.5


def test_the_assignment_has_its_gradient_added_up_in_float32_under_bfloat16() -> None:
    """Over the rows of a batch: in bfloat16 the sum would be off by 0.8 %."""
    rng = np.random.default_rng(7)
    tokens, weights = np.float32(rng.normal(size=(128, 16, 64))), np.float32(rng.normal(size=(128, 92)))

    def gradient(dtype: jnp.dtype) -> np.ndarray:
        graph, state = nnx.split(filled(lambda: Param2Tok(92, 16, 64, dtype=dtype, rngs=nnx.Rngs(0))))
        rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), state)
        given = jnp.asarray(tokens, jnp.bfloat16).astype(dtype)
        loss = lambda state: (weights * nnx.merge(graph, state).to_row(given)).sum()  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(rounded)["assignment"][...])

    exact = gradient(jnp.float32)
    error = np.square(gradient(jnp.bfloat16) - exact).mean() / np.square(exact).mean()
    assert np.sqrt(error) < 0.004
