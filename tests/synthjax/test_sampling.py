"""Solvers on equations with known solutions, and classifier-free guidance."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from synthjax.models import build_model
from synthjax.sampling import SOLVERS, guided_field, sample_rows, solve
from tests.synthjax.numpy_networks import filled

ORDERS = {"euler": 1, "heun": 2, "rk4": 4}


def growth(x: jax.Array, t: jax.Array) -> jax.Array:
    """dx/dt = 4 (1 - t) x, with x(1) = x(0) e^2."""
    return 4 * (1 - t) * x


@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_error_falls_with_the_order_of_the_solver(solver: str, order: int) -> None:
    x0 = jnp.array([[1.0, -0.5]])
    errors = [np.abs(solve(growth, x0, solver=solver, steps=n) / x0 - math.exp(2)).max() for n in (8, 16, 32)]
    if solver == "rk4":
        errors = errors[:2]  # Float32 ends the third.
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    assert rates[-1] == pytest.approx(order, abs=0.4)


def test_every_solver_is_tested() -> None:
    assert SOLVERS.keys() == ORDERS.keys()


@pytest.mark.parametrize(("solver", "expected"), [("euler", 0.45), ("heun", 0.5), ("rk4", 0.5)])
def test_time_runs_from_zero_to_one(solver: str, expected: float) -> None:
    x = solve(lambda x, t: jnp.full_like(x, t), jnp.zeros((2, 3)), solver=solver, steps=10)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_a_step_is_compiled_once_with_its_evaluations(solver: str, evaluations: int) -> None:
    calls = []

    def field(x: jax.Array, t: jax.Array) -> jax.Array:
        calls.append(t)
        return x

    jax.eval_shape(lambda x: solve(field, x, solver=solver, steps=50), jnp.ones((1, 2)))
    assert len(calls) == evaluations


class FakeModel:
    """v(x, t | z) = x t + 10 z, v(x, t | none) = x t - 1; counts what it is asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.encoded = 0

    def encode(self, mel: jax.Array) -> jax.Array:
        self.encoded += 1
        return mel[:, None, :]

    def velocity(self, x: jax.Array, t: jax.Array, z: jax.Array, dropped: jax.Array | None = None) -> jax.Array:
        assert t.shape == (len(x),)
        assert len(z) == len(x)
        self.batches.append(len(x))
        dropped = jnp.zeros(len(x), bool) if dropped is None else dropped
        return x * t[:, None] + jnp.where(dropped[:, None], -1.0, 10.0 * z[:, 0])


X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
Z = np.array([[0.5, 0.1], [0.2, 0.3], [0.7, 0.9]], np.float32)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_guided_field_is_the_weighted_sum_of_both_branches(strength: float) -> None:
    velocity = guided_field(FakeModel(), jnp.asarray(Z)[:, None, :], strength)(jnp.asarray(X), jnp.float32(0.25))
    expected = (1 - strength) * (0.25 * X - 1) + strength * (0.25 * X + 10 * Z)
    np.testing.assert_allclose(velocity, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("strength", "batch"), [(2.0, 6), (1.0, 3)])
def test_both_branches_run_as_one_batch_and_strength_one_needs_one(strength: float, batch: int) -> None:
    model = FakeModel()
    guided_field(model, jnp.asarray(Z)[:, None, :], strength)(jnp.asarray(X), jnp.float32(0.25))
    assert model.batches == [batch]


def test_rows_are_sampled_with_one_run_of_the_encoder() -> None:
    model = FakeModel()
    rows = sample_rows(model, jnp.asarray(Z), jnp.asarray(X), guidance=2.0, solver="rk4", steps=25)
    assert model.encoded == 1
    # dx/dt = t x + c has x(1) = e^(1/2) (x0 + c * integral of e^(-t^2/2)).
    constant = 1 + 2 * 10 * Z
    integral = math.sqrt(math.pi / 2) * math.erf(1 / math.sqrt(2))
    np.testing.assert_allclose(rows, math.exp(0.5) * (X + constant * integral), rtol=1e-5)


def test_sampled_rows_of_a_model_equal_a_python_loop_over_separate_branches(
    tiny_config: ml_collections.ConfigDict,
) -> None:
    shape = 2, 32, 64
    graph, state = nnx.split(
        filled(
            lambda: build_model(tiny_config.model, width=2, input_shape=shape, dtype="float32", rngs=nnx.Rngs(0)),
            scale=0.2,
        )
    )
    mel = np.float32(np.random.default_rng(0).normal(size=(3, *shape)))
    sample = lambda state: sample_rows(  # noqa: E731
        nnx.merge(graph, state), jnp.asarray(mel), jnp.asarray(X), guidance=2.0, solver="euler", steps=3
    )
    velocity = jax.jit(lambda x, t, z, dropped: nnx.merge(graph, state).velocity(x, t, z, dropped))
    z = jax.jit(lambda mel: nnx.merge(graph, state).encode(mel))(mel)

    def by_hand(x: np.ndarray) -> np.ndarray:
        for i in range(3):
            t = np.full(3, i / 3, np.float32)
            x = x + (2 * velocity(x, t, z, np.zeros(3, bool)) - velocity(x, t, z, np.ones(3, bool))) / 3
        return x

    expected = by_hand(X)
    assert np.abs(expected - X).max() > 0.01
    np.testing.assert_allclose(jax.jit(sample)(state), expected, rtol=1e-4, atol=1e-4)
