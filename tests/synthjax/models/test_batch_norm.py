"""Batch normalisation and the derivative written out for its moments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.models.norms import DECAY, EPSILON, BatchNorm, moments
from tests.synthjax.numpy_networks import filled

F32, BF16 = jnp.float32, jnp.bfloat16


def make(dtype: Any = F32) -> BatchNorm:
    norm = filled(lambda: BatchNorm(6, dtype=dtype, rngs=nnx.Rngs(0)))
    norm.var[...] = 0.5 + jnp.abs(norm.var[...])
    return norm


def inputs(shape: tuple[int, ...], dtype: Any = F32) -> jax.Array:
    """x, whose features have neither mean 0 nor deviation 1."""
    return jnp.asarray(0.5 + 3.0 * np.random.default_rng(0).normal(size=shape), dtype)


def affine(norm: BatchNorm) -> tuple[jax.Array, jax.Array]:
    assert norm.scale is not None
    assert norm.bias is not None
    return norm.scale[...], norm.bias[...]


def formula(norm: BatchNorm, x: jax.Array) -> jax.Array:
    """With the derivative that JAX finds."""
    rows, (scale, bias) = tuple(range(x.ndim - 1)), affine(norm)
    centred = x - x.mean(axis=rows)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=rows) + EPSILON) * scale + bias


def trained(norm: BatchNorm, x: jax.Array) -> jax.Array:
    return norm(x, use_running_average=False).astype(F32)


def gradients(of: Any, norm: BatchNorm, x: jax.Array) -> Any:
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), F32)
    graph, *states = nnx.split(norm, nnx.Param, nnx.BatchStat)
    parameters, statistics = (nnx.to_pure_dict(state) for state in states)
    loss = lambda parameters, x: (weights * of(nnx.merge(graph, parameters, statistics), x)).sum()  # noqa: E731
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(parameters, x)


@pytest.mark.parametrize("shape", [(9, 6), (3, 5, 6), (2, 3, 4, 6)])
def test_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    ours, expected = (gradients(of, make(), inputs(shape)) for of in (trained, formula))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, expected)


def test_moments_differentiate_forwards_as_backwards() -> None:
    x = inputs((4, 6))
    forwards, backwards = jax.jacfwd(moments)(x), jax.jacrev(moments)(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), forwards, backwards)


def test_running_statistics_serve_until_training_and_move_only_in_it() -> None:
    norm, x = make(), inputs((5, 7, 6))
    mean, var = (np.asarray(statistic[...]) for statistic in (norm.mean, norm.var))
    scale, bias = affine(norm)
    expected = (np.asarray(x) - mean) / np.sqrt(var + EPSILON) * scale + bias
    np.testing.assert_allclose(norm(x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], mean)
    norm.train()
    np.testing.assert_allclose(norm(x), formula(norm, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], DECAY * mean + (1 - DECAY) * x.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], DECAY * var + (1 - DECAY) * x.var(axis=(0, 1)), rtol=1e-5)


def test_a_far_mean_costs_no_precision() -> None:
    norm = make()
    x = 1000.0 + np.random.default_rng(1).normal(size=(50, 6))
    x = x.astype(np.float32).astype(np.float64)
    scale, bias = (np.asarray(parameter, np.float64) for parameter in affine(norm))
    expected = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + EPSILON) * scale + bias
    np.testing.assert_allclose(trained(norm, jnp.asarray(x, F32)), expected, atol=2e-3)


def test_in_bfloat16_results_and_the_gradient_of_x_are_rounded_once() -> None:
    norm, x = make(BF16), inputs((8, 6), BF16)
    np.testing.assert_array_equal(norm(x, False), trained(make(), x.astype(F32)).astype(BF16))
    of_parameters, of_x = gradients(trained, norm, x)
    _, exact_x = gradients(formula, make(), x.astype(F32))
    assert of_x.dtype == BF16
    np.testing.assert_allclose(of_x.astype(F32), exact_x, rtol=0.02, atol=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(of_parameters)} == {jnp.dtype(F32)}


def test_the_gradient_of_the_moments_takes_no_sum() -> None:
    def plain(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = x.mean(axis=(0, 1))
        return mean, jnp.square(x - mean).mean(axis=(0, 1))

    def sums(of: Any) -> int:
        x, gradient = inputs((5, 7, 6)), (jnp.ones(6), jnp.ones(6))
        return str(jax.make_jaxpr(lambda x, g: jax.vjp(of, x)[1](g))(x, gradient)).count("reduce_sum")

    assert sums(plain) > 2
    assert sums(moments) == 2  # Those of the values.
