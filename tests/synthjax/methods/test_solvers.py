"""Solvers on equations with known solutions, and how many evaluations of the field they need."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy.integrate import solve_ivp

from synthjax.cluster import sharding
from synthjax.methods import solvers
from synthjax.methods.solvers import DOPRI5, FIRST_STEP, SOLVERS, solve, solve_adaptive

ORDERS = {"euler": 1, "heun": 2, "rk4": 4}
EVALUATIONS = {"euler": 1, "heun": 2, "rk4": 4}
X0 = jnp.array([[1.0, -0.5]])


def growth(x: jax.Array, t: jax.Array) -> jax.Array:
    """dx/dt = 4 (1 - t) x, with x(1) = x(0) e^2; t is one time or one for each row."""
    return 4 * (1 - jnp.broadcast_to(t, len(x))[:, None]) * x


def rates(x: jax.Array, t: jax.Array) -> jax.Array:
    """Rows of (value, frequency): dx/dt = f cos(f t), so that rows differ in how hard they are."""
    return jnp.stack([x[:, 1] * jnp.cos(x[:, 1] * t), jnp.zeros_like(t)], axis=1)


class Watched:
    """A field that notes the times at which it is evaluated; what is not traced is evaluated under ``disable_jit``."""

    def __init__(self, field: Callable[[jax.Array, jax.Array], jax.Array]) -> None:
        self.field = field
        self.times: list[jax.Array] = []

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        self.times.append(t)
        return self.field(x, t)


@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_error_falls_with_the_order_of_the_solver(solver: str, order: int) -> None:
    errors = [np.abs(solve(growth, X0, solver=solver, steps=n) / X0 - math.exp(2)).max() for n in (8, 16, 32)]
    if solver == "rk4":
        errors = errors[:2]  # Float32 ends the third.
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    assert rates[-1] == pytest.approx(order, abs=0.4)


def test_every_solver_is_tested() -> None:
    assert (*ORDERS, DOPRI5) == SOLVERS


@pytest.mark.parametrize(("solver", "expected"), [("euler", 0.45), ("heun", 0.5), ("rk4", 0.5)])
def test_time_runs_from_zero_to_one(solver: str, expected: float) -> None:
    x = solve(lambda x, t: jnp.full_like(x, t), jnp.zeros((2, 3)), solver=solver, steps=10)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(("solver", "evaluations"), EVALUATIONS.items())
def test_a_step_is_compiled_once_with_its_evaluations(solver: str, evaluations: int) -> None:
    field = Watched(growth)
    jax.eval_shape(lambda x: solve(field, x, solver=solver, steps=50), X0)
    assert len(field.times) == evaluations


def test_a_stretch_of_time_is_solved_from_its_start_to_its_end() -> None:
    for x in (
        solve(growth, X0, solver="rk4", steps=40, start=0.25, end=0.7),
        solve_adaptive(growth, X0, tolerance=1e-6, start=0.25, end=0.7),
    ):
        # The integral of 4 (1 - t) is 4 t - 2 t^2.
        np.testing.assert_allclose(x, X0 * math.exp((2.8 - 0.98) - (1.0 - 0.125)), rtol=1e-5)


@pytest.mark.parametrize(
    ("ends", "counts"),
    [
        ((0.0, 1.0), [10]),
        ((0.0, 0.3, 0.45, 1.0), [3, 1, 6]),
        ((0.0, 0.41, 0.44, 1.0), [4, 1, 6]),  # None would be left for the second.
    ],
)
def test_stretches_share_the_steps(ends: tuple[float, ...], counts: list[int]) -> None:
    found = []
    for start, end in pairwise(ends):
        field = Watched(growth)
        with jax.disable_jit():
            solve(field, X0, solver="euler", steps=10, start=start, end=end)
        np.testing.assert_allclose(field.times[0], start, rtol=1e-6)
        found.append(len(field.times))
    assert found == counts


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
def test_dopri5_takes_the_steps_of_scipy(tolerance: float) -> None:
    theirs = solve_ivp(
        lambda t, x: np.array([x[1] * np.cos(x[1] * t), 0.0]),
        (0.0, 1.0),
        [0.0, 40.0],
        rtol=tolerance,
        atol=tolerance,
        first_step=FIRST_STEP,
    )
    field = Watched(rates)
    with jax.disable_jit():
        x = solve_adaptive(field, jnp.array([[0.0, 40.0]]), tolerance=tolerance)
    assert len(field.times) == pytest.approx(theirs.nfev, abs=6)  # Rounding may tip one step.
    assert theirs.nfev > 1 + 6 * (len(theirs.t) - 1)  # Some were refused.
    np.testing.assert_allclose(x[0], theirs.y[:, -1], atol=tolerance / 10)


def test_dopri5_is_as_accurate_as_its_tolerance_and_needs_fewer_evaluations_than_rk4() -> None:
    reference = solve(growth, X0, solver="rk4", steps=100)
    np.testing.assert_allclose(reference, X0 * math.exp(2), rtol=1e-6)
    evaluations = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        field = Watched(growth)
        with jax.disable_jit():
            x = solve_adaptive(field, X0, tolerance=tolerance)
        np.testing.assert_allclose(x, reference, rtol=3 * tolerance)
        evaluations.append(len(field.times))
    assert evaluations == sorted(set(evaluations))
    assert evaluations[-1] < 4 * 100 / 3


def test_times_of_dopri5_lie_between_start_and_end() -> None:
    field = Watched(growth)
    with jax.disable_jit():
        solve_adaptive(field, X0, tolerance=1e-3, start=0.3, end=0.9)
    times = np.concatenate(field.times)
    assert times.min() == np.float32(0.3)
    assert times.max() == np.float32(0.9)


def walk(x0: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows at t = 1, and each row's times (N, B), those after its arrival among them."""
    field = Watched(rates)
    with jax.disable_jit():
        x = solve_adaptive(field, jnp.array(x0), tolerance=1e-4)
    return np.asarray(x), np.stack(field.times)


def test_a_row_takes_the_same_steps_whatever_rows_are_beside_it() -> None:
    easy, hard = [0.0, 1.0], [0.0, 60.0]
    mixed, mixed_times = walk([easy, hard])
    np.testing.assert_allclose(mixed[:, 0], [math.sin(1.0), math.sin(60.0)], atol=1e-3)
    evaluations = []
    for row, own in enumerate((easy, hard)):
        alike, times = walk([own, own])
        evaluations.append(len(times))
        np.testing.assert_array_equal(mixed[row], alike[row])
        np.testing.assert_array_equal(mixed_times[: len(times), row], times[:, row])
    assert 3 * evaluations[0] < evaluations[1] == len(mixed_times)


def test_rows_may_be_split_over_devices() -> None:
    mesh = jax.make_mesh((8, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    x0 = jnp.stack([jnp.zeros(16), jnp.arange(16.0)], axis=1)
    solved = jax.jit(lambda x0: solve_adaptive(rates, x0, tolerance=1e-4))
    split = solved(jax.device_put(x0, sharding.batch_sharding(mesh)))
    assert len(split.sharding.device_set) == 8
    np.testing.assert_allclose(split, solved(x0), rtol=1e-6, atol=1e-6)


def test_a_tolerance_that_cannot_be_met_ends_after_so_many_steps_and_solves_as_well_as_they_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(solvers, "MAX_STEPS", 20)
    field = Watched(growth)
    with jax.disable_jit():
        x = solve_adaptive(field, X0, tolerance=1e-12)
    assert len(field.times) == 1 + 6 * 20
    np.testing.assert_allclose(x, X0 * math.exp(2), rtol=1e-4)


def test_a_row_that_is_not_finite_ends_and_leaves_the_others_alone() -> None:
    x0 = jnp.array([[1.0, -0.5], [jnp.nan, 1.0]])
    x = jax.jit(lambda x0: solve_adaptive(growth, x0, tolerance=1e-4))(x0)
    assert np.isnan(x[1]).any()
    np.testing.assert_allclose(x[:1], X0 * math.exp(2), rtol=1e-3)


def test_a_row_that_is_not_finite_costs_the_others_nothing() -> None:
    evaluations = []
    for x0 in (X0, jnp.concatenate([X0, jnp.full_like(X0, jnp.nan)])):
        field = Watched(growth)
        with jax.disable_jit():
            solve_adaptive(field, x0, tolerance=1e-4)
        evaluations.append(len(field.times))
    assert evaluations[0] == evaluations[1]


def test_a_step_to_where_the_field_is_not_finite_is_tried_again_shorter() -> None:
    # It is finite up to 1.2 times the solution; a step of the first length would overshoot that.
    steep = 30.0

    def field(x: jax.Array, t: jax.Array) -> jax.Array:
        bound = 1.2 * jnp.exp(steep * t)[:, None]
        return steep * x + 0 * jnp.sqrt(bound - x)

    x = jax.jit(lambda x0: solve_adaptive(field, x0, tolerance=1e-4, end=0.2))(jnp.ones((1, 1)))
    np.testing.assert_allclose(x, math.exp(0.2 * steep), rtol=1e-2)
