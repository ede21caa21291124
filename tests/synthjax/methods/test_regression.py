"""Losses of the regression baselines."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.methods.regression import LOSSES, sort_by_frequency

B, K = 4, 3


def pair() -> tuple[jax.Array, jax.Array]:
    predicted, true = np.random.default_rng(0).uniform(-1, 1, (2, B, 3 * K)).astype(np.float32)
    return jnp.asarray(predicted), jnp.asarray(true)


def reordered(rows: jax.Array, order: list[int]) -> jax.Array:
    return rows.reshape(B, 3, K)[:, :, np.array(order)].reshape(B, -1)


def test_squared_error_is_the_mean_over_columns() -> None:
    predicted, true = pair()
    np.testing.assert_allclose(LOSSES["mse"](predicted, true), np.mean((predicted - true) ** 2, axis=1), rtol=1e-6)


def test_sorting_moves_whole_oscillators_by_frequency() -> None:
    rows = jnp.array([[0.5, -0.5, 0.0, 1.0, 2.0, 3.0, 10.0, 20.0, 30.0]])
    np.testing.assert_array_equal(sort_by_frequency(rows), [[-0.5, 0.0, 0.5, 2.0, 3.0, 1.0, 20.0, 30.0, 10.0]])


def test_sorted_error_sorts_the_targets_and_not_the_prediction() -> None:
    predicted, true = pair()
    loss, order = LOSSES["sorted_mse"], [2, 0, 1]
    np.testing.assert_allclose(loss(predicted, reordered(true, order)), loss(predicted, true), rtol=1e-6)
    assert np.abs(loss(reordered(predicted, order), true) - loss(predicted, true)).max() > 1e-2
    np.testing.assert_array_equal(loss(sort_by_frequency(true), true), 0)


def test_chamfer_sees_no_order_at_all() -> None:
    predicted, true = pair()
    loss, order = LOSSES["chamfer"], [2, 0, 1]
    np.testing.assert_allclose(loss(reordered(predicted, order), true), loss(predicted, true), rtol=1e-6)
    np.testing.assert_allclose(loss(predicted, reordered(true, order)), loss(predicted, true), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_one_figure_an_example_with_finite_gradients(name: str) -> None:
    predicted, true = pair()
    assert LOSSES[name](predicted, true).shape == (B,)
    gradient = jax.jit(jax.grad(lambda x: LOSSES[name](x, true).mean()))
    assert np.isfinite(gradient(predicted)).all()
    assert np.abs(gradient(predicted)).max() > 0
    # The minimum is reached, and is no corner.
    np.testing.assert_array_equal(gradient(sort_by_frequency(true) if name == "sorted_mse" else true), 0)
