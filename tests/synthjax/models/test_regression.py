"""Regression baselines: their parts in order, their sizes, their dtypes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.models.encoders import SpectrogramTransformer
from synthjax.models.layers import ResidualMLP
from synthjax.models.mlp_field import MLPField
from synthjax.models.regression import SignalRegression, SpectrogramRegression
from synthjax.models.spectral_encoder import SpectralEncoder
from synthjax.models.vector_fields import TransformerField
from tests.synthjax import numpy_baselines as reference
from tests.synthjax.numpy_networks import call, filled, parameters

B, S, W = 2, 64, 6
MEL = (2, 128, 401)
SIMPLE, FULL = 92, 300


def count(make: Any) -> int:
    """Scalars in a module's parameters; nothing is computed."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))


def options() -> dict[str, Any]:
    return {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 5), (5, 3)])
def test_residual_block_equals_the_formula(inputs: int, outputs: int) -> None:
    block = filled(lambda: ResidualMLP(inputs, 7, outputs, **options()))
    x = np.random.default_rng(0).normal(size=(B, inputs)).astype(np.float32)
    np.testing.assert_allclose(call(block, x), reference.residual_mlp(parameters(block), x), rtol=1e-4, atol=1e-5)


def test_skip_is_the_identity_where_widths_agree_and_has_no_bias_elsewhere() -> None:
    names = [set(nnx.to_pure_dict(nnx.state(ResidualMLP(4, 4, out, **options())))) for out in (4, 3)]
    assert names == [{"norm", "ff"}, {"norm", "ff", "skip"}]
    assert ResidualMLP(4, 4, 3, **options()).skip.bias is None


def spectrogram_regression(dtype: jnp.dtype = jnp.float32) -> SpectrogramRegression:
    def make() -> SpectrogramRegression:
        rest = {"dtype": dtype, "rngs": nnx.Rngs(0)}
        encoder = SpectrogramTransformer((1, 20, 30), dim=8, layers=1, heads=2, queries=1, **rest)
        return SpectrogramRegression(encoder, 8, W, **rest)

    return filled(make)


def test_spectrogram_regression_reads_its_one_query_through_a_residual_head() -> None:
    model = spectrogram_regression()
    mel = np.random.default_rng(0).normal(size=(B, 1, 20, 30)).astype(np.float32)
    p, encoded = parameters(model), np.float64(call(model.encoder, mel))
    assert encoded.shape == (B, 1, 8)
    expected = reference.linear(p["read"], reference.residual_mlp(p["head"], encoded[:, 0]))
    np.testing.assert_allclose(call(model, mel), expected, rtol=1e-4, atol=1e-4)


def signal_regression(blocks: int = 3, dtype: jnp.dtype = jnp.float32) -> SignalRegression:
    def make() -> SignalRegression:
        rest = {"dtype": dtype, "rngs": nnx.Rngs(0)}
        encoder = SpectralEncoder(S, dim=8, channels=2, stages=2, norm="layer", **rest)
        return SignalRegression(encoder, 8, W, blocks=blocks, **rest)

    return filled(make)


@pytest.mark.parametrize("blocks", [1, 3])
def test_signal_regression_ends_in_a_block_as_wide_as_the_row(blocks: int) -> None:
    model = signal_regression(blocks)
    signal = np.random.default_rng(0).normal(size=(B, S)).astype(np.float32)
    p, expected = parameters(model), np.float64(call(model.encoder, signal))
    assert [p["trunk"][i]["ff"]["up"]["kernel"].shape for i in range(blocks)] == [(8, 8)] * (blocks - 1) + [(8, W)]
    for i in range(blocks):
        expected = reference.residual_mlp(p["trunk"][i], expected)
    np.testing.assert_allclose(call(model, signal), expected, rtol=1e-4, atol=1e-4)


def test_rows_are_float32_whatever_dtype_computes() -> None:
    bfloat16 = jnp.bfloat16
    rows = [
        jax.eval_shape(spectrogram_regression(bfloat16), jax.ShapeDtypeStruct((B, 1, 20, 30), jnp.float32)),
        jax.eval_shape(signal_regression(dtype=bfloat16), jax.ShapeDtypeStruct((B, S), jnp.float32)),
    ]
    assert [(row.shape, row.dtype) for row in rows] == [((B, W), jnp.float32)] * 2


def test_gradients_are_finite_and_reach_every_parameter() -> None:
    graph, state = nnx.split(signal_regression())
    signal = np.random.default_rng(0).normal(size=(B, S)).astype(np.float32)
    gradients = jax.jit(jax.grad(lambda state: jnp.sin(nnx.merge(graph, state)(signal)).sum()))(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(gradients)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def ast(queries: int, dim: int = 512, layers: int = 8, heads: int = 8) -> SpectrogramTransformer:
    sizes = {"dim": dim, "layers": layers, "heads": heads, "queries": queries, "swapped_padding": True}
    return SpectrogramTransformer(MEL, **sizes, **options())


def param2tok_flow(width: int) -> int:
    sizes = {"dim": 512, "layers": 8, "heads": 8, "ff_dim": 512, "tokens": 128}
    field = count(lambda: TransformerField(width, **sizes, conditioning_dim=512, time_features=256, **options()))
    return count(lambda: ast(8)) + field


def mlp_flow(width: int) -> int:
    sizes = {"dim": 768, "layers": 9, "conditioning_dim": 512, "time_features": 256}
    return count(lambda: ast(9)) + count(lambda: MLPField(width, **sizes, **options()))


def regression(width: int) -> int:
    return count(lambda: SpectrogramRegression(ast(1, 768, 12, 16), 768, width, **options()))


@pytest.mark.parametrize(("model", "millions"), [(param2tok_flow, 40.2), (mlp_flow, 41.6), (regression, 45.3)])
def test_models_of_the_full_synthesizer_have_the_published_sizes(model: Any, millions: float) -> None:
    """The paper's figures are those of Surge Full's 300 columns, with the swapped padding of its code."""
    assert round(model(FULL) / 1e6, 1) == millions
    assert model(SIMPLE) < model(FULL)
