"""The terms of the flow VAE's loss against NumPy, and learning on real rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import log_softmax, softmax
from scipy.stats import norm

from data_pipeline.params.spec import Categorical, ParamSpec, load_spec
from data_pipeline.shards.mel_stats import MelStats, standardise
from data_pipeline.shards.reader import ShardReader
from synthjax.methods.examples import Examples, to_model_scale
from synthjax.methods.flow_vae import FlowVAEMethod, RowLayout, latent_loss, parameter_loss, predicted_rows
from synthjax.models.flow_vae import FlowVAE, FlowVAEOutput
from tests.synthjax.random_modules import started

SPECS = pytest.mark.parametrize("spec", [load_spec("surge_simple"), load_spec("surge_xt")], ids=lambda spec: spec.name)
BATCH = 4


def true_rows(spec: ParamSpec) -> np.ndarray:
    return to_model_scale(spec.sample(seed=0, indices=range(BATCH), attempts=[0] * BATCH))


def prediction(spec: ParamSpec, scale: float = 2.0) -> np.ndarray:
    return (scale * np.random.default_rng(0).normal(size=(BATCH, spec.width))).astype(np.float32)


def output_of(rng: np.random.Generator, width: int = 7) -> FlowVAEOutput:
    draws = {name: rng.normal(size=(BATCH, width)) for name in ("prediction", "mu", "log_var", "z_0", "z_k")}
    shapes = {"reconstruction": rng.normal(size=(BATCH, 2, 3, 5)), "log_det": rng.normal(size=BATCH)}
    return FlowVAEOutput(**{name: np.float32(value) for name, value in (draws | shapes).items()})


@SPECS
def test_parameter_loss_is_the_mean_over_parameters(spec: ParamSpec) -> None:
    rows, predicted = true_rows(spec), prediction(spec)
    terms = []
    for parameter in spec.parameters:
        x, x_hat = (np.float64(array[:, spec.slices[parameter.name]]) for array in (rows, predicted))
        if isinstance(parameter, Categorical):
            picked = np.take_along_axis(log_softmax(x_hat, axis=1), x.argmax(axis=1)[:, None], axis=1)
            terms.append(-picked.mean())
        else:
            terms.append(np.square(x_hat - x).mean())
    loss = jax.jit(lambda predicted: parameter_loss(predicted, rows, RowLayout.from_spec(spec)).mean())(predicted)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)


def test_parameter_loss_of_the_truth_is_zero() -> None:
    spec = load_spec("surge_xt")
    rows, layout = true_rows(spec), RowLayout.from_spec(spec)
    certain = np.where(layout.one_hot, 50.0 * rows, rows)
    loss = jax.jit(lambda certain: parameter_loss(certain, rows, layout).mean())(certain)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)


def test_parameter_loss_and_gradient_stay_finite_for_large_logits() -> None:
    spec = load_spec("surge_xt")
    rows, layout = true_rows(spec), RowLayout.from_spec(spec)
    of_prediction = jax.value_and_grad(lambda predicted: parameter_loss(predicted, rows, layout).mean())
    loss, gradient = jax.jit(of_prediction)(prediction(spec, scale=1e4))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_latent_loss_is_the_weighted_divergence_estimate() -> None:
    output = output_of(np.random.default_rng(0))
    posterior = norm.logpdf(output.z_0, output.mu, np.exp(0.5 * output.log_var)).sum(axis=1)
    prior = norm.logpdf(output.z_k).sum(axis=1)
    expected = 0.2 * np.mean(posterior - prior - output.log_det)
    np.testing.assert_allclose(latent_loss(output), expected, rtol=1e-5)


@SPECS
def test_predicted_rows_hold_probabilities_and_decode_to_the_largest_logit(spec: ParamSpec) -> None:
    predicted = prediction(spec)
    rows = np.asarray(jax.jit(lambda predicted: predicted_rows(predicted, RowLayout.from_spec(spec)))(predicted))
    for parameter in spec.parameters:
        columns = spec.slices[parameter.name]
        if isinstance(parameter, Categorical):
            chances = (rows[:, columns] + 1.0) / 2.0
            np.testing.assert_allclose(chances, softmax(predicted[:, columns], axis=1), rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(rows[:, columns], predicted[:, columns])


def real_batch(shared_data: Path, name: str, rows: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Standardised spectrograms, thinned out to 16 mels and 26 frames for speed, and rows on the model's scale."""
    reader = ShardReader(shared_data / name / "shard-0.h5")
    mel = reader.read_rows("mel_spec", range(rows))[:, :, ::8, ::16]
    stats = MelStats(mel.mean(axis=0), mel.std(axis=0))
    return standardise(mel, stats), to_model_scale(reader.read_rows("param_array", range(rows)))


@pytest.fixture(scope="module")
def learn(shared_data: Path) -> Callable[[float, int], np.ndarray]:
    """(beta, steps) to the terms of the loss at each step of a small model that starts anew, (steps, 3)."""
    spec = load_spec("surge_xt")
    layout, (mel, rows) = RowLayout.from_spec(spec), real_batch(shared_data, spec.name)
    sizes = {"hidden": 32, "blocks": 1, "latent_layers": 2, "regression_layers": 2, "dtype": jnp.float32}
    channels = {"encoder_channels": (4, 4, 8, 8, 8, 16, 16), "decoder_channels": (16, 8, 8, 8, 8, 8)}
    model = started(lambda: FlowVAE(mel.shape[1:], spec.width, **sizes, **channels, rngs=nnx.Rngs(0)))
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params: Any, stats: Any, opt_state: Any, number: jax.Array, beta: jax.Array) -> tuple[Any, ...]:
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), rows.shape)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params, stats)
            method = FlowVAEMethod(layout, lambda step: beta)
            total, metrics = method.loss(model, Examples(mel, noise, rows), noise, number)
            losses = [metrics[f"loss_{term}"] for term in ("reconstruction", "latent", "parameters")]
            return total, (losses, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        (_, (losses, new_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)]).all()
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), new_stats, opt_state, losses, finite

    def run(beta: float, steps: int) -> np.ndarray:
        params, stats = (nnx.to_pure_dict(state) for state in states)
        opt_state, history = jax.jit(optimizer.init)(params), []
        for number in range(steps):
            params, stats, opt_state, losses, finite = step(params, stats, opt_state, jnp.int32(number), beta)
            assert finite, f"a gradient of step {number} is not finite"
            history.append([float(term) for term in losses])
        return np.array(history)

    return run


@pytest.mark.slow
def test_a_few_steps_on_real_rows_lower_the_loss(learn: Callable[[float, int], np.ndarray]) -> None:
    reconstruction, latent, parameters = learn(0.1, 20).T
    total = reconstruction + 0.1 * latent + parameters
    assert total[-1] < 0.6 * total[0]
    assert latent[-1] < 0.5 * latent[0]
    assert parameters[-1] < 0.8 * parameters[0]


@pytest.mark.slow
def test_real_spectrograms_and_rows_are_learnt_through_the_latents(learn: Callable[[float, int], np.ndarray]) -> None:
    # Without the latent term, which at first drives a small model's information out of its latents.
    reconstruction, _, parameters = learn(0.0, 100).T
    assert reconstruction[-1] < 0.9 * reconstruction[0]
    assert parameters[-1] < 0.25 * parameters[0]
