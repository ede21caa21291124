"""Path, random draws and velocity loss of conditional flow matching."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthjax.methods import flow

B, W = 4, 3


def rows(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, W)), jnp.float32)


def test_path_starts_at_the_noise_and_ends_at_the_data() -> None:
    x0, x1 = rows(0), rows(1)
    np.testing.assert_array_equal(flow.interpolate(x0, x1, jnp.zeros(B)), x0)
    np.testing.assert_array_equal(flow.interpolate(x0, x1, jnp.ones(B)), x1)


def test_path_is_straight_with_a_time_of_its_own_for_every_example() -> None:
    x0, x1, t = rows(0), rows(1), np.array([0.1, 0.25, 0.5, 0.9], np.float32)
    expected = np.stack([(1 - t[i]) * x0[i] + t[i] * x1[i] for i in range(B)])
    np.testing.assert_allclose(flow.interpolate(x0, x1, jnp.asarray(t)), expected, rtol=1e-6)


class FakeModel:
    """Answers with a given function and keeps what it was asked."""

    def __init__(self, velocity: object) -> None:
        self.answer = velocity

    def velocity(self, x: jax.Array, t: jax.Array, z: jax.Array, dropped: jax.Array | None = None) -> jax.Array:
        self.asked = x, t, z, dropped
        return self.answer(x, t) if callable(self.answer) else self.answer


def test_loss_is_the_mean_squared_distance_to_the_velocity_of_the_path() -> None:
    x0, x1, velocity, t = rows(0), rows(1), rows(2), jnp.linspace(0, 1, B)
    error = flow.velocity_error(FakeModel(velocity), rows(3), x0, x1, t)
    expected = [np.mean([(velocity[i, w] - (x1[i, w] - x0[i, w])) ** 2 for w in range(W)]) for i in range(B)]
    np.testing.assert_allclose(error, expected, rtol=1e-5)


def test_loss_is_zero_for_the_exact_field_alone() -> None:
    x0, x1, t = rows(0), rows(1), jnp.linspace(0.1, 0.9, B)
    # From x_t and x_1 alone: u = (x_1 - x_t) / (1 - t).
    exact = FakeModel(lambda x, t: (x1 - x) / (1 - t[:, None]))
    np.testing.assert_allclose(flow.velocity_error(exact, rows(3), x0, x1, t), 0, atol=1e-9)
    assert float(flow.velocity_error(exact, rows(3), x1, x0, t).min()) > 1e-3


def test_model_is_asked_at_the_point_of_the_path_with_its_conditioning() -> None:
    x0, x1, z, t, dropped = rows(0), rows(1), rows(2), jnp.linspace(0, 1, B), jnp.arange(B) < 2
    model = FakeModel(rows(3))
    flow.velocity_error(model, z, x0, x1, t, dropped)
    for asked, expected in zip(model.asked, (flow.interpolate(x0, x1, t), t, z, dropped), strict=True):
        np.testing.assert_array_equal(asked, expected)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_has_its_rate_over_many_draws(rate: float) -> None:
    dropped = np.asarray(flow.draw(jax.random.key(0), 100_000, rate).dropped)
    assert dropped.dtype == bool
    assert dropped.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 100_000))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_dropout_of_rate_zero_or_one_is_certain(rate: float) -> None:
    assert (np.asarray(flow.draw(jax.random.key(0), 1_000, rate).dropped) == bool(rate)).all()


def test_times_are_uniform_between_zero_and_one() -> None:
    t = np.asarray(flow.draw(jax.random.key(1), 100_000, 0.1).t)
    assert t.dtype == np.float32
    assert 0 <= t.min() < 1e-3
    assert 1 - 1e-3 < t.max() < 1
    counts, _ = np.histogram(t, bins=10, range=(0, 1))
    np.testing.assert_allclose(counts, 10_000, atol=4.5 * np.sqrt(9_000))


def test_draws_depend_on_the_key_alone() -> None:
    first, again = (
        flow.draw(jax.random.key(2), 64, 0.5),
        jax.jit(flow.draw, static_argnums=1)(jax.random.key(2), 64, 0.5),
    )
    other = flow.draw(jax.random.key(3), 64, 0.5)
    for name in ("t", "dropped"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert (getattr(first, name) != getattr(other, name)).any()


def test_times_and_dropout_are_independent() -> None:
    draws = flow.draw(jax.random.key(4), 100_000, 0.5)
    assert abs(np.corrcoef(draws.t, draws.dropped)[0, 1]) < 4 / np.sqrt(100_000)
    np.testing.assert_array_equal(draws.t, flow.draw(jax.random.key(4), 100_000, 0.1).t)
