"""The training loss, validation losses and rows of every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from synthjax.k_osc.synthesis import KOsc
from synthjax.methods.examples import Examples
from synthjax.methods.flow_vae import FlowVAEMethod, RowLayout, parameter_loss, predicted_rows
from synthjax.methods.method import METHODS, make_method
from synthjax.methods.regression import Regression
from synthjax.methods.sampling import Sampling
from synthjax.methods.task import KOscTask, SpectrogramTask
from synthjax.models.build import KINDS
from synthjax.models.flow_vae import FlowVAEOutput

SPEC = load_spec("surge_simple")
TASK = SpectrogramTask(SPEC, (2, 128, 401), 1.0)
B, W = 3, SPEC.width
KEY = jax.random.key(0)
NO_SAMPLING = Sampling(guidance=2.0, solver="rk4", steps=1)


def examples(seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    x1 = 2.0 * SPEC.sample(seed, range(B), [0] * B) - 1.0
    return Examples(jnp.asarray(rng.normal(size=(B, 4))), jnp.asarray(rng.normal(size=(B, W))), jnp.asarray(x1))


@dataclass
class Answers:
    """A regression that answers with rows it was given."""

    rows: jax.Array

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.rows


def test_regression_is_judged_by_its_own_loss() -> None:
    some = examples()
    model, method = Answers(some.x1 + jnp.asarray([[0.0], [1.0], [2.0]])), Regression("mse")
    total, metrics = method.loss(model, some, method.draw(KEY, (B, W)), jnp.zeros(()))
    assert float(total) == float(metrics["loss"]) == pytest.approx(5 / 3, rel=1e-5)
    np.testing.assert_allclose(method.errors(lambda: model, some), [[0.0, 1.0, 4.0]], rtol=1e-4, atol=1e-9)
    assert method.names == ("loss_mse",)


def test_regression_by_frequency_sorts_the_targets() -> None:
    """One oscillator pair: (f, f, a, a, w, w)."""
    true = jnp.asarray([[0.5, -0.5, 0.1, 0.2, 0.3, 0.4]])
    in_order = Answers(jnp.asarray([[-0.5, 0.5, 0.2, 0.1, 0.4, 0.3]]))
    some = Examples(jnp.zeros((1, 4)), jnp.zeros((1, 6)), true)
    losses = {
        kind: float(Regression(kind).loss(in_order, some, (), jnp.zeros(()))[0])
        for kind in ("mse", "sorted_mse", "chamfer")
    }
    assert losses["sorted_mse"] == pytest.approx(0.0, abs=1e-9)
    assert losses["chamfer"] == pytest.approx(0.0, abs=1e-9)
    assert losses["mse"] > 0.1


@pytest.mark.parametrize("draws", [(), (5,)])
def test_a_model_that_draws_nothing_answers_the_same_for_every_noise_row(draws: tuple[int, ...]) -> None:
    some = examples()
    x0 = jnp.ones((B, *draws, W))
    rows = Regression("mse").rows(Answers(some.x1), some.inputs, x0, NO_SAMPLING)
    assert rows.shape == x0.shape
    expected = some.x1[:, None] if draws else some.x1
    np.testing.assert_array_equal(rows, jnp.broadcast_to(expected, x0.shape))


@dataclass
class FakeVAE:
    """A flow VAE that always gives the same output, and notes the noise that it was called with."""

    output: FlowVAEOutput
    noise: Any = None

    def __call__(self, mel: jax.Array, noise: jax.Array | None = None) -> FlowVAEOutput:
        self.noise = noise
        return self.output

    def predict(self, mel: jax.Array) -> jax.Array:
        return self.output.prediction


def vae() -> tuple[FlowVAEMethod, FakeVAE, Examples]:
    some, rng = examples(), np.random.default_rng(1)
    mu, log_var, z_0, z_k = (jnp.asarray(rng.normal(size=(B, W))) for _ in range(4))
    prediction = jnp.asarray(rng.normal(size=(B, W)))
    output = FlowVAEOutput(some.inputs + 1.0, prediction, mu, log_var, z_0, z_k, jnp.zeros(B))
    config = ml_collections.ConfigDict({"model": {"kind": "flow_vae", "beta": {"start": 0.1, "end": 0.2, "steps": 10}}})
    method = make_method(config, TASK)
    assert isinstance(method, FlowVAEMethod)
    return method, FakeVAE(output), some


@pytest.mark.parametrize(("step", "beta"), [(0, 0.1), (5, 0.15), (10, 0.2), (1000, 0.2)])
def test_the_terms_of_the_vae_add_up_with_the_beta_of_the_step(step: int, beta: float) -> None:
    method, model, some = vae()
    total, metrics = method.loss(model, some, method.draw(KEY, (B, W)), jnp.asarray(step))
    assert float(metrics["beta"]) == pytest.approx(beta)
    expected = metrics["loss_reconstruction"] + beta * metrics["loss_latent"] + metrics["loss_parameters"]
    assert float(total) == float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["loss_reconstruction"]) == pytest.approx(1.0)
    assert model.noise.shape == (B, W)


def test_the_vae_is_validated_by_its_parameter_loss_without_noise() -> None:
    method, model, some = vae()
    errors = method.errors(lambda: model, some)
    assert errors.shape == (1, B)
    assert model.noise is None
    layout = RowLayout.from_spec(SPEC)
    expected = parameter_loss(model.output.prediction, some.x1, layout)
    np.testing.assert_allclose(errors[0], expected, rtol=1e-5)
    rows = method.rows(model, some.inputs, some.x0, NO_SAMPLING)
    np.testing.assert_array_equal(rows, predicted_rows(model.output.prediction, layout))


def test_flows_are_judged_at_the_times_of_the_config(tiny_config: ml_collections.ConfigDict) -> None:
    tiny_config.validation.times = (0.25, 1.0)
    assert make_method(tiny_config, TASK).names == ("loss_t0.25", "loss_t1")


def test_every_kind_of_model_has_a_method() -> None:
    assert METHODS.keys() == KINDS.keys()


def test_a_task_that_does_not_fit_is_refused() -> None:
    config = ml_collections.ConfigDict({"model": {"kind": "flow_vae", "beta": {"start": 0.0, "end": 0.0, "steps": 1}}})
    with pytest.raises(UserError, match=r"made for spectrograms"):
        make_method(config, KOscTask(KOsc(2), 0, 8))
