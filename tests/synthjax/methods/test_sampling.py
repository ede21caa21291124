"""Classifier-free guidance, when it is on, and rows drawn with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import groupby

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from synthjax.methods.sampling import Given, Part, Sampling, guided_field, sample_rows
from synthjax.methods.solvers import DOPRI5, FIXED_STEPS, SOLVERS
from synthjax.models import build_model
from tests.synthjax.numpy_networks import filled


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


@pytest.mark.parametrize(
    ("guidance", "interval", "parts"),
    [
        (2.0, (0.0, 1.0), [(0.0, 1.0, 2.0)]),
        (2.0, (0.2, 0.6), [(0.0, 0.2, 1.0), (0.2, 0.6, 2.0), (0.6, 1.0, 1.0)]),
        (0.0, (0.0, 0.6), [(0.0, 0.6, 0.0), (0.6, 1.0, 1.0)]),
        (2.0, (0.2, 1.0), [(0.0, 0.2, 1.0), (0.2, 1.0, 2.0)]),
        (1.0, (0.2, 0.6), [(0.0, 1.0, 1.0)]),
    ],
)
def test_the_way_is_cut_where_guidance_begins_and_ends(
    guidance: float, interval: tuple[float, float], parts: list[tuple[float, float, float]]
) -> None:
    assert Sampling("rk4", 5, guidance=guidance, guidance_interval=interval).parts() == [Part(*part) for part in parts]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.23, 0.71), (0.0, 0.4), (0.9, 1.0)])
def test_guidance_is_on_in_its_interval_and_the_encoder_runs_once(solver: str, interval: tuple[float, float]) -> None:
    model = FakeModel()
    steps = {"euler": 4_000, "heun": 200}.get(solver, 25)
    rows = sample_rows(model, jnp.asarray(Z), jnp.asarray(X), Sampling(solver, steps, 1e-6, 2.0, interval))
    assert model.encoded == 1

    # dx/dt = t x + c has x(1) = e^(1/2) (x0 + integral of c e^(-t^2/2)).
    def integral(start: float, end: float) -> float:
        return math.sqrt(math.pi / 2) * (math.erf(end / math.sqrt(2)) - math.erf(start / math.sqrt(2)))

    guided, free = integral(*interval), integral(0.0, 1.0) - integral(*interval)
    expected = math.exp(0.5) * (X + (1 + 2 * 10 * Z) * guided + 10 * Z * free)
    np.testing.assert_allclose(rows, expected, rtol=1e-3 if solver == "euler" else 1e-5)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_the_second_branch_is_not_evaluated_where_guidance_is_off(solver: str, evaluations: int) -> None:
    model = FakeModel()
    with jax.disable_jit():  # Loops are Python's: every evaluation is one call.
        sample_rows(model, jnp.asarray(Z), jnp.asarray(X), Sampling(solver, 10, 1e-4, 2.0, (0.2, 0.6)))
    assert model.batches == [3] * 2 * evaluations + [6] * 4 * evaluations + [3] * 4 * evaluations


def test_nor_is_it_by_dopri5() -> None:
    model = FakeModel()
    with jax.disable_jit():
        sample_rows(model, jnp.asarray(Z), jnp.asarray(X), Sampling(DOPRI5, 1, 1e-3, 2.0, (0.2, 0.6)))
    runs = [(size, len(list(of_size))) for size, of_size in groupby(model.batches)]
    assert [size for size, _ in runs] == [3, 6, 3]
    assert all(count % 6 == 1 for _, count in runs)


@pytest.mark.parametrize("solver", FIXED_STEPS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_guidance_all_the_way_is_one_scan_with_the_bits_of_a_plain_one(solver: str, guidance: float) -> None:
    z, x0, steps = jnp.asarray(Z), jnp.asarray(X), 7

    def plain(x: jax.Array) -> jax.Array:
        def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
            if guidance == 1.0:
                return FakeModel().velocity(x, jnp.full(3, t), z[:, None])
            doubled, dropped = jnp.concatenate([z, z])[:, None], jnp.arange(6) >= 3
            both = FakeModel().velocity(jnp.concatenate([x, x]), jnp.full(6, t), doubled, dropped)
            return (1.0 - guidance) * both[3:] + guidance * both[:3]

        def body(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            return FIXED_STEPS[solver](velocity, x, i * (1.0 / steps), 1.0 / steps), None

        return jax.lax.scan(body, x, jnp.arange(steps, dtype=jnp.float32))[0]

    def sample(x: jax.Array) -> jax.Array:
        return sample_rows(FakeModel(), z, x, Sampling(solver, steps, guidance=guidance))

    np.testing.assert_array_equal(jax.jit(sample)(x0), jax.jit(plain)(x0))
    program = str(jax.make_jaxpr(sample)(x0))
    assert (program.count("scan["), program.count("cond["), program.count("while[")) == (1, 0, 0)


def test_what_a_reader_is_told_is_what_has_a_bearing_on_the_rows() -> None:
    assert Sampling("rk4", 5, guidance=2.0).about() == {"solver": "rk4", "steps": 5, "guidance": 2.0}
    assert Sampling(DOPRI5, 5, 0.1, 2.0).about() == {"solver": DOPRI5, "tolerance": 0.1, "guidance": 2.0}
    assert Sampling("rk4", 5, 1e-4, 2.0, (0.2, 0.6)).about()["guidance_interval"] == [0.2, 0.6]
    assert "guidance_interval" not in Sampling("rk4", 5, 1e-4, 1.0, (0.2, 0.6)).about()


SHAPE = (2, 32, 64)


Tiny = tuple[nnx.GraphDef, nnx.State]


def tiny_model(config: ml_collections.ConfigDict, scale: float) -> Tiny:
    """A small model of rows of two columns; the larger its weights, the more it bends."""
    build = lambda: build_model(config.model, width=2, input_shape=SHAPE, dtype="float32", rngs=nnx.Rngs(0))  # noqa: E731
    return nnx.split(filled(build, scale=scale))


@pytest.fixture
def tiny(tiny_config: ml_collections.ConfigDict) -> Tiny:
    return tiny_model(tiny_config, scale=0.2)


MEL = np.float32(np.random.default_rng(0).normal(size=(3, *SHAPE)))


def sampler(tiny: Tiny, sampling: Sampling) -> Callable[..., jax.Array]:
    graph, state = tiny
    sample = jax.jit(lambda state, mel, x0: sample_rows(nnx.merge(graph, state), mel, x0, sampling))
    return partial(sample, state)


def test_sampled_rows_of_a_model_equal_a_python_loop_over_separate_branches(
    tiny: Tiny,
) -> None:
    graph, state = tiny
    velocity = jax.jit(lambda x, t, z, dropped: nnx.merge(graph, state).velocity(x, t, z, dropped))
    z = jax.jit(lambda mel: nnx.merge(graph, state).encode(mel))(MEL)

    def by_hand(x: np.ndarray) -> np.ndarray:
        for i in range(3):
            t = np.full(3, i / 3, np.float32)
            x = x + (2 * velocity(x, t, z, np.zeros(3, bool)) - velocity(x, t, z, np.ones(3, bool))) / 3
        return x

    expected = by_hand(X)
    assert np.abs(expected - X).max() > 0.01
    np.testing.assert_allclose(
        sampler(tiny, Sampling("euler", 3, guidance=2.0))(MEL, X), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_dopri5_draws_the_rows_of_many_steps_of_rk4_from_a_model(tiny: Tiny) -> None:
    fine, coarse, adaptive = (
        sampler(tiny, settings)(MEL, X)
        for settings in (
            Sampling("rk4", 100, guidance=2.0),
            Sampling("euler", 3, guidance=2.0),
            Sampling(DOPRI5, 1, 1e-5, 2.0),
        )
    )
    assert np.abs(coarse - fine).max() > 1e-3
    np.testing.assert_allclose(adaptive, fine, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_row_that_dopri5_draws_does_not_depend_on_those_beside_it(tiny_config: ml_collections.ConfigDict) -> None:
    sample = sampler(tiny_model(tiny_config, scale=0.4), Sampling(DOPRI5, 1, 1e-3, 2.0, (0.1, 0.8)))
    together = sample(MEL, X)
    for row in range(3):
        others = np.arange(3) != row
        mel, x0 = MEL.copy(), X.copy()
        mel[others], x0[others] = 0.0, 9.0 * X[others]
        np.testing.assert_array_equal(sample(mel, x0)[row], together[row])


@pytest.mark.slow
def test_nor_on_their_number(tiny: Tiny) -> None:
    sample = sampler(tiny, Sampling(DOPRI5, 1, 1e-5, 2.0))
    np.testing.assert_allclose(sample(MEL[:1], X[:1]), sample(MEL, X)[:1], atol=1e-5)


class Coupled:
    """dx_0/dt is the value of column 1, dx_1/dt is 100."""

    def encode(self, mel: jax.Array) -> jax.Array:
        return mel[:, None, :]

    def velocity(self, x: jax.Array, t: jax.Array, z: jax.Array, dropped: jax.Array | None = None) -> jax.Array:
        return jnp.stack([x[:, 1], jnp.full(len(x), 100.0)], axis=1)


@pytest.mark.parametrize("solver", ["heun", "rk4", DOPRI5])
def test_known_columns_follow_the_straight_path_and_the_others_see_them_on_it(solver: str) -> None:
    known = np.full((3, 2), np.nan, np.float32)
    known[:2, 1] = [0.5, -0.25]  # Column 1 of the third row follows the field.
    settings = Sampling(solver, 10, 1e-6, guidance=2.0, guidance_interval=(0.3, 0.8))
    rows = sample_rows(Coupled(), jnp.asarray(Z), jnp.asarray(X), settings, Given(known=jnp.asarray(known)))
    end = np.where(np.isnan(known[:, 1]), X[:, 1] + 100.0, known[:, 1])
    np.testing.assert_allclose(rows, np.stack([X[:, 0] + (X[:, 1] + end) / 2, end], axis=1), rtol=1e-5)


@pytest.mark.parametrize("solver", ["heun", DOPRI5])  # Exact on a straight line.
@pytest.mark.parametrize("keep", [0.0, 0.25, 1.0])
def test_the_field_begins_with_noise_and_start_at_the_time_of_keep(solver: str, keep: float) -> None:
    settings, start = Sampling(solver, 10, 1e-6), np.float32([[0.5, 2.0], [-1.0, 0.0], [3.0, 1.0]])
    given = Given(start=jnp.asarray(start), keep=jnp.asarray(keep))
    rows = sample_rows(Coupled(), jnp.asarray(Z), jnp.asarray(X), settings, given)
    speed = sample_rows(Coupled(), jnp.asarray(Z), jnp.asarray(X), settings)[:, 1] - X[:, 1]
    begin = (1.0 - keep) * X + keep * start
    end = begin[:, 1] + (1.0 - keep) * speed
    expected = np.stack([begin[:, 0] + (1.0 - keep) * (begin[:, 1] + end) / 2, end], axis=1)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)
    known = np.full((3, 2), np.nan, np.float32)
    known[:, 1] = 7.0
    rows = sample_rows(Coupled(), jnp.asarray(Z), jnp.asarray(X), settings, given._replace(known=jnp.asarray(known)))
    np.testing.assert_allclose(rows[:, 1], 7.0, rtol=1e-4)
