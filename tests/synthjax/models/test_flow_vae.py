"""The flow VAE: published sizes, its convolutions against NumPy, and what training and evaluation differ in."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.cluster import sharding
from synthjax.models.flow_vae import STAGES, ConvStage, FlowVAE, FlowVAEOutput, feature_sizes
from synthjax.models.layers import conv
from tests.synthjax.random_modules import randomised, statistics

MEL_SHAPE = (2, 128, 401)
SMALL_SHAPE = (2, 9, 14)
PUBLISHED = {
    "encoder_channels": (16, 32, 64, 64, 128, 256, 512),
    "decoder_channels": (512, 256, 128, 64, 32, 16),
    "hidden": 512,
    "blocks": 2,
    "latent_layers": 6,
    "regression_layers": 16,
}
SMALL = {
    "encoder_channels": (4, 3, 4, 3, 4, 3, 6),
    "decoder_channels": (5, 4, 3, 4, 3, 4),
    "hidden": 8,
    "blocks": 1,
    "latent_layers": 2,
    "regression_layers": 2,
}


def make(shape: tuple[int, int, int] = SMALL_SHAPE, width: int = 5, **changes: Any) -> FlowVAE:
    return FlowVAE(shape, width, **({"dtype": jnp.float32} | SMALL | changes), rngs=nnx.Rngs(0))


def mel(shape: tuple[int, int, int] = SMALL_SHAPE, batch: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)


def noise(batch: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, width)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> FlowVAE:
    return randomised(make, scale=0.3)


def run(model: FlowVAE, *inputs: Any) -> tuple[FlowVAEOutput, dict]:
    """A compiled call, and the running statistics after it; ``model`` stays as it is."""
    return _run(*nnx.split(model), inputs)


@partial(jax.jit, static_argnames="graph")
def _run(graph: nnx.GraphDef, state: nnx.State, inputs: tuple[Any, ...]) -> tuple[FlowVAEOutput, dict]:
    model = nnx.merge(graph, state)
    return model(*inputs), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize(("width", "count", "published"), [(92, 39_521_404, 39.5), (300, 44_319_548, 44.3)])
def test_published_sizes_give_the_published_parameter_counts(width: int, count: int, published: float) -> None:
    model = nnx.eval_shape(lambda: make(MEL_SHAPE, width, **PUBLISHED))
    counted = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert counted == count
    assert round(counted / 1e6, 1) == published


def test_feature_maps_of_the_data_sets_spectrograms() -> None:
    sizes = [(128, 401), (64, 201), (32, 101), (16, 51), (8, 26), (4, 13), (4, 4), (2, 2)]
    assert feature_sizes(128, 401) == sizes


@pytest.mark.parametrize("shape", [MEL_SHAPE, (1, 33, 70)])
def test_reconstructions_have_the_spectrograms_shape(shape: tuple[int, int, int]) -> None:
    output = jax.eval_shape(lambda mel: make(shape)(mel), jax.ShapeDtypeStruct((3, *shape), jnp.float32))
    assert output.reconstruction.shape == (3, *shape)
    assert output.prediction.shape == output.z_k.shape == output.mu.shape == output.log_var.shape == (3, 5)
    assert output.log_det.shape == (3,)


def numpy_conv(p: dict, x: np.ndarray, stride: tuple[int, int] = (1, 1), groups: int = 1) -> np.ndarray:
    """Zero-padded by half the kernel; the formula, tap by tap."""
    kernel = p["kernel"]
    height, width, _, outputs = kernel.shape
    padded = np.pad(x, ((0, 0), (height // 2, height // 2), (width // 2, width // 2), (0, 0)))
    rows, columns = (-(-size // step) for size, step in zip(x.shape[1:3], stride, strict=True))
    out = np.zeros((len(x), rows, columns, outputs)) + p["bias"]
    for i, j in np.ndindex(height, width):
        taps = padded[:, i:, j:][:, :: stride[0], :: stride[1]][:, :rows, :columns]
        out += taps * kernel[i, j, 0] if groups > 1 else taps @ kernel[i, j]
    return out


def numpy_transposed_conv(p: dict, x: np.ndarray, stride: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Every input adds its kernel to the output around stride times its place."""
    kernel = p["kernel"]
    height, width, _, outputs = kernel.shape
    out = np.zeros((len(x), *target, outputs)) + p["bias"]
    for row, column, i, j in np.ndindex(*x.shape[1:3], height, width):
        at = row * stride[0] + height // 2 - i, column * stride[1] + width // 2 - j
        if 0 <= at[0] < target[0] and 0 <= at[1] < target[1]:
            out[:, at[0], at[1]] += x[:, row, column] @ kernel[i, j]
    return out


def numpy_leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.1 * x)


def numpy_after_resizing(p: dict, h: np.ndarray) -> np.ndarray:
    norm = p["norm"]
    normed = (h - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
    inner = numpy_leaky(numpy_conv(p["pointwise"], normed))
    return numpy_leaky(h + numpy_conv(p["depthwise"], inner, groups=h.shape[-1]))


@pytest.mark.parametrize("stage", sorted(set(STAGES)))
@pytest.mark.parametrize("direction", ["down", "up"])
def test_stages_equal_numpy(stage: Any, direction: str) -> None:
    big, inputs, outputs = (7, 10), 3, 4
    small = tuple(-(-size // step) for size, step in zip(big, stage.stride, strict=True))

    def make_stage() -> ConvStage:
        upsample = None if direction == "down" else (small, big)
        return ConvStage(inputs, outputs, stage, upsample=upsample, dtype=jnp.float32, rngs=nnx.Rngs(0))

    module = randomised(make_stage)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(module)))
    source = big if direction == "down" else small
    x = np.random.default_rng(2).normal(size=(2, *source, inputs)).astype(np.float32)
    if direction == "down":
        resized = numpy_conv(p["resize"], x, stage.stride)
    else:
        resized = numpy_transposed_conv(p["resize"], x, stage.stride, big)
    np.testing.assert_allclose(module(x, train=False), numpy_after_resizing(p, resized), rtol=1e-5, atol=1e-5)


def test_convolutions_start_as_pytorchs_do() -> None:
    options = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    down = conv(30, 40, (3, 5), **options)
    depthwise = conv(40, 40, (3, 5), groups=40, **options)
    up = conv(30, 40, (3, 5), transposed=True, **options)
    for module, fan_in in ((down, 30 * 15), (depthwise, 15), (up, 40 * 15)):
        largest = np.abs(module.kernel[...]).max()
        assert 0.99 < largest * np.sqrt(fan_in) <= 1.0


@pytest.mark.slow
def test_training_draws_latents_from_the_posterior_of_the_batch(model: FlowVAE) -> None:
    output, _ = run(model, mel(), noise())
    expected = np.asarray(output.mu) + np.exp(0.5 * np.asarray(output.log_var)) * noise()
    np.testing.assert_allclose(output.z_0, expected, rtol=1e-5, atol=1e-6)
    # The encoder ends in batch normalisation.
    mean = np.concatenate([output.mu, output.log_var], axis=1).mean(axis=0)
    np.testing.assert_allclose(mean, model.encoder.norm.bias[...], atol=1e-5)


def test_training_moves_every_running_statistic_and_evaluation_none(model: FlowVAE) -> None:
    before = statistics(model)
    _, kept = run(model, mel())
    jax.tree.map(np.testing.assert_array_equal, kept, before)
    _, moved = run(model, mel(), noise())
    assert all(jax.tree.leaves(jax.tree.map(lambda old, new: not np.array_equal(old, new), before, moved)))


def test_evaluation_takes_the_posterior_mean_and_treats_sounds_alone(model: FlowVAE) -> None:
    output, _ = run(model, mel())
    np.testing.assert_array_equal(output.z_0, output.mu)
    others = np.concatenate([mel()[:1], 5.0 + mel()[1:]])
    for name, one, same in zip(output._fields, output, run(model, others)[0], strict=True):
        np.testing.assert_allclose(one[:1], same[:1], rtol=1e-5, atol=1e-5, err_msg=name)


def test_parts_follow_each_other_as_the_equations_say(model: FlowVAE) -> None:
    output, _ = run(model, mel())
    graph, state = nnx.split(model)

    @jax.jit
    def parts(state: nnx.State, mel: jax.Array) -> tuple[Any, ...]:
        model = nnx.merge(graph, state)
        z_k, log_det = model.latent_flow(model.encoder(mel, train=False)[0])
        return z_k, log_det, model.regression_flow(z_k)[0], model.decoder(z_k, train=False), model.predict(mel)

    z_k, log_det, prediction, reconstruction, predicted = parts(state, mel())
    np.testing.assert_allclose(output.z_k, z_k, rtol=1e-5)
    np.testing.assert_allclose(output.log_det, log_det, rtol=1e-5)
    np.testing.assert_allclose(output.prediction, prediction, rtol=1e-5)
    np.testing.assert_allclose(output.reconstruction, reconstruction, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output.prediction, predicted, rtol=1e-5)


def test_outputs_are_float32_under_bfloat16() -> None:
    output = jax.eval_shape(lambda *inputs: make(dtype=jnp.bfloat16)(*inputs), mel(), noise())
    assert {part.dtype for part in output} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("channels", ["encoder_channels", "decoder_channels"])
def test_channels_of_another_number_of_stages_are_refused(channels: str) -> None:
    with pytest.raises(ValueError, match="zip"):
        nnx.eval_shape(lambda: make(**{channels: (4, 4)}))


def test_parameters_are_split_over_both_mesh_axes() -> None:
    state = nnx.state(nnx.eval_shape(lambda: make(MEL_SHAPE, 92, **PUBLISHED)), nnx.Param)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    placed = sharding.parameter_shardings(state, mesh, fsdp=True)
    block = placed["regression_flow"]["pairs"]["change_odd"]["blocks"][0]
    assert block["linear1"]["kernel"].spec == jax.sharding.PartitionSpec(None, "data", "model")
    assert placed["decoder"]["enter"]["kernel"].spec == jax.sharding.PartitionSpec("data", "model")
    assert placed["encoder"]["stages"][0]["resize"]["kernel"].spec[-1] == "model"
