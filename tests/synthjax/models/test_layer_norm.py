"""Layer normalisation and the gradient written out for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.models.norms import EPSILON, LayerNorm
from tests.synthjax import numpy_networks as reference
from tests.synthjax.numpy_networks import call, filled

F32, BF16 = jnp.float32, jnp.bfloat16


def inputs(shape: tuple[int, ...], dtype: Any = F32) -> tuple[jax.Array, jax.Array]:
    """x, whose features have neither mean 0 nor deviation 1, and weights of the result's sum."""
    rng = np.random.default_rng(0)
    return jnp.asarray(0.5 + 3.0 * rng.normal(size=shape), dtype), jnp.asarray(rng.normal(size=shape), F32)


def formula(norm: LayerNorm, x: jax.Array) -> jax.Array:
    wide = x.astype(F32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    whitened = centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
    return (whitened * norm.scale[...] + norm.bias[...]).astype(x.dtype)


def gradients(norm: LayerNorm, of: Callable[..., jax.Array], x: jax.Array, weights: jax.Array) -> Any:
    graph, state = nnx.split(norm)
    loss = lambda state, x: (weights * of(nnx.merge(graph, state), x).astype(F32)).sum()  # noqa: E731
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(state, x)


@pytest.mark.parametrize("spread", [1.0, 3e-3])
def test_it_has_the_epsilon_of_pytorch_and_an_affine(spread: float) -> None:
    norm = filled(lambda: LayerNorm(32, dtype=F32, rngs=nnx.Rngs(0)))
    x = (1.0 + spread * np.random.default_rng(3).normal(size=(4, 32))).astype(np.float32)
    expected = reference.layer_norm(reference.parameters(norm), x.astype(np.float64))
    np.testing.assert_allclose(call(norm, x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 3, 4, 6)])
def test_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    norm = filled(lambda: LayerNorm(6, dtype=F32, rngs=nnx.Rngs(0)))
    x, weights = inputs(shape)
    ours, expected = (gradients(norm, of, x, weights) for of in (LayerNorm.__call__, formula))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, expected)


def test_a_constant_row_has_the_bias_and_finite_gradients() -> None:
    norm = filled(lambda: LayerNorm(6, dtype=F32, rngs=nnx.Rngs(0)))
    x, weights = jnp.full((2, 6), 7.0), inputs((2, 6))[1]
    np.testing.assert_allclose(call(norm, x), np.broadcast_to(norm.bias[...], (2, 6)), atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients(norm, LayerNorm.__call__, x, weights)))


def test_a_far_mean_costs_no_precision() -> None:
    norm = filled(lambda: LayerNorm(64, dtype=F32, rngs=nnx.Rngs(0)))
    x = (1000.0 + np.random.default_rng(1).normal(size=(3, 64))).astype(np.float32)
    expected = reference.layer_norm(reference.parameters(norm), x.astype(np.float64))
    np.testing.assert_allclose(call(norm, x), expected, atol=2e-3)


def test_in_bfloat16_results_are_rounded_once_and_parameters_have_float32_gradients() -> None:
    norm = filled(lambda: LayerNorm(64, dtype=BF16, rngs=nnx.Rngs(0)))
    x, weights = inputs((8, 64), BF16)
    assert call(norm, x).dtype == BF16
    np.testing.assert_array_equal(call(norm, x), formula(norm, x.astype(F32)).astype(BF16))
    of_state, of_x = gradients(norm, LayerNorm.__call__, x, weights.astype(BF16).astype(F32))
    exact_state, exact_x = gradients(norm, formula, x.astype(F32), weights.astype(BF16).astype(F32))
    assert of_x.dtype == BF16
    np.testing.assert_allclose(of_x.astype(F32), exact_x, atol=0.02)
    for ours, exact in zip(jax.tree.leaves(of_state), jax.tree.leaves(exact_state), strict=True):
        assert ours.dtype == F32
        np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-4)


def test_its_backward_pass_keeps_x_and_two_numbers_a_row() -> None:
    norm = filled(lambda: LayerNorm(64, dtype=BF16, rngs=nnx.Rngs(0)))
    x = inputs((8, 64), BF16)[0]
    kept = jax.tree.leaves(jax.vjp(norm, x)[1])
    assert sum(leaf.nbytes for leaf in kept if leaf.size > 64) == x.nbytes
    assert sorted(leaf.shape for leaf in kept) == [(8, 1), (8, 1), (8, 64), (64,)]
