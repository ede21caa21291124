"""Encoders: patch grids, padding, the formulas of the spectrogram transformer, and the CNN's interface."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from data_pipeline.console.cli import UserError
from synthjax.models import FlowModel, build_model
from synthjax.models.encoders import ResidualCNN, SpectrogramTransformer, padding_to_patches
from tests.synthjax import numpy_networks as reference
from tests.synthjax.numpy_networks import abstract_call, call, filled

MEL_SHAPE = (2, 128, 401)
SMALL = (2, 12, 17)


def transformer(shape: tuple[int, int, int], **changes: Any) -> SpectrogramTransformer:
    sizes = {
        "dim": 8,
        "layers": 2,
        "heads": 2,
        "queries": 3,
        "patch": (8, 8),
        "stride": (5, 5),
        "dtype": jnp.float32,
    } | changes
    return filled(lambda: SpectrogramTransformer(shape, **sizes, rngs=nnx.Rngs(0)))


def mel(shape: tuple[int, int, int], batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "patch", "stride"), [(128, 16, 10), (401, 16, 10), (16, 16, 10), (12, 8, 5), (9, 3, 3)]
)
def test_padding_is_the_least_that_makes_patches_whole(size: int, patch: int, stride: int) -> None:
    padding = padding_to_patches(size, patch, stride)
    ends = [start + patch for start in range(0, size + stride, stride)]
    assert size + padding == min(end for end in ends if end >= size)


@pytest.mark.parametrize(("swapped", "grid"), [(False, 13 * 40), (True, 12 * 40)])
def test_positions_cover_queries_and_the_patch_grid(swapped: bool, grid: int) -> None:
    sizes = {"dim": 16, "layers": 1, "heads": 2, "queries": 8, "swapped_padding": swapped, "dtype": jnp.float32}
    make = lambda: SpectrogramTransformer(MEL_SHAPE, **sizes, rngs=nnx.Rngs(0))  # noqa: E731
    assert nnx.eval_shape(make).positions.shape == (8 + grid, 16)
    assert abstract_call(make, jax.ShapeDtypeStruct((3, *MEL_SHAPE), jnp.float32)).shape == (3, 8, 16)


@pytest.mark.parametrize("shape", [(2, 16, 24), SMALL])
@pytest.mark.parametrize("patch", [(8, 8), (12, 5)])
def test_patches_that_do_not_overlap_are_the_same_as_a_matrix_product(
    shape: tuple[int, int, int], patch: tuple[int, int]
) -> None:
    sizes = {"patch": patch, "stride": patch}
    product, convolution = transformer(shape, **sizes), transformer(shape, **sizes)
    assert product.tiled
    convolution.tiled = False
    np.testing.assert_allclose(call(product, mel(shape)), call(convolution, mel(shape)), rtol=1e-5, atol=1e-6)


# Patches 8, stride 5: mel 12 needs 1 zero (2 patches), time 17 needs 1 zero too (3 patches).
@pytest.mark.parametrize(
    ("shape", "swapped", "grid"),
    [
        (SMALL, False, (2, 3)),
        ((1, 12, 20), False, (2, 4)),  # Mel needs 1 zero, time 3.
        ((1, 12, 20), True, (2, 3)),  # Mel gets 3, time 1: its last patch no longer fits.
    ],
)
def test_transformer_equals_the_formulas(shape: tuple[int, int, int], swapped: bool, grid: tuple[int, int]) -> None:
    encoder = transformer(shape, swapped_padding=swapped)
    expected = reference.spectrogram_transformer(
        reference.parameters(encoder), mel(shape), queries=3, patch=8, stride=5, grid=grid
    )
    np.testing.assert_allclose(call(encoder, mel(shape)), expected, rtol=2e-4, atol=2e-4)


def test_patches_need_not_be_square() -> None:
    """All 12 mels of 4 frames, every 2 frames: 17 frames need 1 zero for 8 patches."""
    encoder = transformer(SMALL, patch=(12, 4), stride=(12, 2))
    assert encoder.positions.shape == (3 + 8, 8)
    mels = mel(SMALL)
    kernel, bias = encoder.patches.kernel[...], encoder.patches.bias[...]
    padded = np.pad(mels, ((0, 0), (0, 0), (0, 0), (0, 1)))
    third = np.einsum("bchw,hwcd->bd", padded[..., 4:8], kernel) + bias
    image = jnp.asarray(padded)
    np.testing.assert_allclose(encoder._overlapping_patches(image)[:, 0, 2], third, rtol=1e-4, atol=1e-5)


def test_zeros_follow_the_data() -> None:
    short, whole = transformer((2, 11, 21)), transformer((2, 13, 23))
    assert short.positions.shape == whole.positions.shape
    padded = np.pad(mel((2, 11, 21)), ((0, 0), (0, 0), (0, 2), (0, 2)))
    np.testing.assert_allclose(call(short, mel((2, 11, 21))), call(whole, padded), rtol=1e-5, atol=1e-5)


def test_examples_of_a_batch_do_not_mix() -> None:
    encoder, mels = transformer(SMALL), mel(SMALL)
    changed = mels.copy()  # JAX may still be reading the array that it was given.
    changed[0] += 1.0
    before, after = call(encoder, mels), call(encoder, changed)
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after[0] - before[0]).max() > 1e-3


@pytest.fixture(scope="module")
def fresh() -> SpectrogramTransformer:
    """An encoder as training starts from it: width 64, 4 heads, 32 queries, 520 patches."""
    sizes = {"dim": 64, "layers": 1, "heads": 4, "queries": 32, "dtype": jnp.float32}
    return nnx.jit(lambda: SpectrogramTransformer(MEL_SHAPE, **sizes, rngs=nnx.Rngs(0)))()


@pytest.mark.parametrize(("name", "deviation"), [("positions", 0.02), ("query_tokens", 1e-6)])
def test_tokens_start_normal(fresh: SpectrogramTransformer, name: str, deviation: float) -> None:
    values = np.asarray(getattr(fresh, name)[...])
    assert values.std() == pytest.approx(deviation, rel=0.06)
    assert abs(values.mean()) < 4 * deviation / math.sqrt(values.size)
    assert np.abs(values).max() > 3 * deviation


@pytest.mark.parametrize(
    ("path", "fan_in"),
    [("patches", 2 * 16 * 16), ("out", 64), ("blocks.ff.up", 64), ("blocks.ff.down", 64)],
)
def test_linear_and_convolution_start_uniform(fresh: SpectrogramTransformer, path: str, fan_in: int) -> None:
    layer = fresh
    for name in path.split("."):
        layer = getattr(layer, name)
    for values in (np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])):
        bound = 1 / math.sqrt(fan_in)
        assert np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.25 if values.size <= 64 else 0.03)


def test_base_encoder_has_the_published_size() -> None:
    sizes = {"dim": 512, "layers": 8, "heads": 8, "queries": 8, "dtype": jnp.float32}
    encoder = nnx.eval_shape(lambda: SpectrogramTransformer(MEL_SHAPE, **sizes, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(encoder)))
    assert round(count / 1e6, 1) == 13.4


def cnn(shape: tuple[int, int, int], dtype: jnp.dtype = jnp.float32) -> ResidualCNN:
    sizes = {"dim": 8, "channels": 4, "stages": 2, "blocks": 2, "queries": 3, "dtype": dtype}
    return filled(lambda: ResidualCNN(shape, **sizes, rngs=nnx.Rngs(0)), scale=0.2)


@pytest.mark.parametrize("shape", [SMALL, (2, 16, 24), (1, 9, 5)])
def test_cnn_gives_one_row_per_layer(shape: tuple[int, int, int]) -> None:
    out = jax.eval_shape(cnn(shape), jax.ShapeDtypeStruct((4, *shape), jnp.float32))
    assert out.shape == (4, 3, 8)


def test_cnn_gradients_are_finite_and_reach_every_parameter() -> None:
    graph, state = nnx.split(cnn(SMALL))
    loss = lambda state, x: jnp.sin(nnx.merge(graph, state)(x)).sum()  # noqa: E731
    gradients, by_mel = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, mel(SMALL))
    for path, leaf in jax.tree_util.tree_leaves_with_path((nnx.to_pure_dict(gradients), by_mel)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_cnn_has_no_loop_in_which_gradients_of_convolutions_would_be_slow() -> None:
    graph, state = nnx.split(cnn(SMALL))
    gradient = jax.jit(jax.grad(lambda state: nnx.merge(graph, state)(mel(SMALL)).sum()))
    assert "while" not in gradient.lower(state).as_text()


@pytest.mark.parametrize("make", [transformer, cnn])
def test_encoders_compute_in_the_dtype_asked_for(make: Any) -> None:
    out = jax.eval_shape(make(SMALL, dtype=jnp.bfloat16), jax.ShapeDtypeStruct((1, *SMALL), jnp.float32))
    assert out.dtype == jnp.bfloat16


def build(config: ml_collections.ConfigDict) -> FlowModel:
    return build_model(config.model, width=5, input_shape=MEL_SHAPE, dtype="float32", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["ast", "cnn"])
def test_model_takes_the_encoder_of_the_config_with_one_row_per_field_layer(
    tiny_config: ml_collections.ConfigDict, kind: str
) -> None:
    tiny_config.model.encoder.kind = kind
    tiny_config.model.field.layers = 5
    make = lambda: build(tiny_config)  # noqa: E731
    assert isinstance(nnx.eval_shape(make).encoder, {"ast": SpectrogramTransformer, "cnn": ResidualCNN}[kind])
    mels = jax.ShapeDtypeStruct((2, *MEL_SHAPE), jnp.float32)
    assert abstract_call(make, mels, method="encode").shape == (2, 5, 16)


def test_an_unknown_encoder_is_refused(tiny_config: ml_collections.ConfigDict) -> None:
    tiny_config.model.encoder.kind = "rnn"
    with pytest.raises(UserError, match="'rnn': use ast or cnn"):
        nnx.eval_shape(lambda: build(tiny_config))
