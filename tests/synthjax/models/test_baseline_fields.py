"""The vector fields of the baselines: the MLP field, and the transformer field on one token for each oscillator."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.methods import sampling
from synthjax.models import FlowModel
from synthjax.models.mlp_field import MLPField
from synthjax.models.projections import OscillatorTokens
from synthjax.models.vector_fields import TransformerField
from tests.synthjax import numpy_baselines as reference
from tests.synthjax.numpy_networks import call, filled, parameters

B, K, L, E = 3, 4, 3, 6
W = 3 * K
MakeField = Callable[..., MLPField | TransformerField]


def mlp(time_features: int = 8, dtype: jnp.dtype = jnp.float32) -> MLPField:
    sizes = {"dim": 8, "layers": L, "conditioning_dim": E, "time_features": time_features}
    return filled(lambda: MLPField(W, **sizes, dtype=dtype, rngs=nnx.Rngs(0)))


def oscillators(time_features: int = 8, dtype: jnp.dtype = jnp.float32) -> TransformerField:
    sizes = {"dim": 8, "layers": L, "heads": 2, "ff_dim": 12, "tokens": K, "conditioning_dim": E}
    return filled(
        lambda: TransformerField(
            W, **sizes, time_features=time_features, projection="oscillators", dtype=dtype, rngs=nnx.Rngs(0)
        )
    )


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (B, W), t (B,), z (B, L, E)."""
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(B, W)), rng.normal(size=(B, L, E))
    return np.float32(x), np.float32(rng.uniform(size=B)), np.float32(z)


def assert_close(actual: jax.Array, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)


FIELDS = pytest.mark.parametrize("make", [mlp, oscillators])


@pytest.mark.parametrize("time_features", [8, 1])
@pytest.mark.parametrize(("make", "formula"), [(mlp, reference.mlp_field), (oscillators, reference.oscillator_field)])
def test_velocity_equals_the_formulas(make: MakeField, formula: Callable, time_features: int) -> None:
    field = make(time_features)
    assert_close(call(field, *inputs()), formula(parameters(field), *inputs()))


@FIELDS
def test_one_conditioning_row_serves_every_layer(make: MakeField) -> None:
    field, (x, t, z) = make(), inputs()
    assert_close(call(field, x, t, z[:, 0]), call(field, x, t, np.repeat(z[:, :1], L, axis=1)))


@FIELDS
@pytest.mark.parametrize("rows", [1, L])
def test_dropped_examples_are_conditioned_on_the_token(make: MakeField, rows: int) -> None:
    field, (x, t, z) = make(), inputs()
    z = z if rows == L else z[:, 0]
    dropped = np.array([True, False, True])
    token = np.broadcast_to(np.asarray(field.dropout_token[...]), z.shape)
    velocity = call(field, x, t, z, dropped)
    assert_close(velocity[dropped], call(field, x, t, token)[dropped])
    assert_close(velocity[~dropped], call(field, x, t, z)[~dropped])
    assert np.abs(velocity - call(field, x, t, z))[dropped].max() > 1e-3


@FIELDS
def test_examples_of_a_batch_do_not_mix(make: MakeField) -> None:
    field, changed = make(), inputs()
    for array in changed:
        array[0] += 0.5
    before, after = call(field, *inputs()), call(field, *changed)
    np.testing.assert_array_equal(after[1:], before[1:])
    assert np.abs(after[0] - before[0]).max() > 1e-3


@FIELDS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_velocity_is_float32_whatever_dtype_computes(make: MakeField, dtype: jnp.dtype) -> None:
    x, t, z = inputs()
    velocity = call(make(dtype=dtype), x, t, jnp.asarray(z, dtype))
    assert velocity.dtype == jnp.float32
    assert np.abs(velocity - call(make(), *inputs())).max() < 0.1 * np.abs(velocity).max()


@FIELDS
def test_gradients_are_finite_and_reach_every_parameter(make: MakeField) -> None:
    graph, state = nnx.split(make())
    dropped = np.array([True, False, False])
    loss = lambda state: jnp.sin(nnx.merge(graph, state)(*inputs(), dropped)).sum()  # noqa: E731
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(jax.jit(jax.grad(loss))(state))):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@FIELDS
def test_every_kernel_names_its_axes(make: MakeField) -> None:
    for path, variable in nnx.to_flat_state(nnx.state(make())):
        if path[-1] == "kernel":  # Stacked layers lead with an axis that has no name.
            assert len(variable.get_metadata()["axes"]) == variable.ndim - ("blocks" in path), path


@FIELDS
def test_there_is_nothing_to_penalise(make: MakeField) -> None:
    assert float(make().penalty()) == 0


def reordered(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(B, 3, K)[:, :, np.array([2, 0, 3, 1])].reshape(B, W)


def test_the_field_on_oscillators_is_equivariant_to_their_order() -> None:
    field, (x, t, z) = oscillators(), inputs()
    moved = call(field, reordered(x), t, z)
    np.testing.assert_allclose(moved, reordered(np.asarray(call(field, x, t, z))), rtol=1e-5, atol=1e-5)
    assert np.abs(moved - call(field, x, t, z)).max() > 0.1


def test_the_mlp_field_is_not_equivariant() -> None:
    field, (x, t, z) = mlp(), inputs()
    moved = call(field, reordered(x), t, z)
    assert np.abs(moved - reordered(np.asarray(call(field, x, t, z)))).max() > 0.1


def test_a_row_that_is_not_made_of_the_oscillators_is_refused() -> None:
    with pytest.raises(ValueError, match="10 columns is not 3 oscillators"):
        OscillatorTokens(10, 3, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))


class Identity(nnx.Module):
    """An encoder for tests: the sound is its own conditioning."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def test_samples_of_an_equivariant_field_follow_the_order_of_their_noise() -> None:
    model, (x, _, z) = FlowModel(Identity(), oscillators()), inputs()
    draw = lambda noise: sampling.sample_rows(  # noqa: E731
        model, jnp.asarray(z[:, 0]), jnp.asarray(noise), sampling.Sampling(guidance=2.0, solver="heun", steps=3)
    )
    np.testing.assert_allclose(draw(reordered(x)), reordered(np.asarray(draw(x))), rtol=1e-4, atol=1e-4)
