"""Our k-osc models and baselines at the PyTorch reference's weights against its own outputs (no torch needed)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.models.encoders import SpectrogramTransformer
from synthjax.models.mlp_field import MLPField
from synthjax.models.regression import SignalRegression, SpectrogramRegression
from synthjax.models.spectral_encoder import SpectralEncoder
from synthjax.models.vector_fields import TransformerField
from synthjax.reference.weights import Weights
from tests.synthjax.reference import module_weights as importer

RELATIVE = 1e-5
OPTIONS = {"dtype": jnp.float32}


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights, and everything else."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    weights = {name.removeprefix("weights/"): array for name, array in arrays.items() if name.startswith("weights/")}
    return weights, {name: array for name, array in arrays.items() if not name.startswith("weights/")}


@pytest.fixture(scope="module")
def k_osc(shared_data: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return load(shared_data / "reference" / "k_osc_models.npz")


@pytest.fixture(scope="module")
def baselines(shared_data: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return load(shared_data / "reference" / "baselines.npz")


def run(make: Callable[..., nnx.Module], trees: Any, *inputs: Any) -> jax.Array:
    """The module's output once it holds the trees, which must fill exactly what it has."""
    trees = trees if isinstance(trees, importer.ModelTrees) else importer.ModelTrees(trees, {})
    graph, *states = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param, nnx.BatchStat)
    for tree, state in zip(trees, states, strict=True):
        assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, nnx.to_pure_dict(state))
    return jax.jit(lambda trees, inputs: nnx.merge(graph, *trees)(*inputs))(tuple(trees), inputs)


def assert_close(actual: jax.Array, expected: np.ndarray) -> None:
    """Relative to the largest value, with room for the rounding of the smallest."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual) / scale, expected / scale, rtol=RELATIVE, atol=RELATIVE / 10)


def spectral_sizes(tree: Any) -> dict[str, Any]:
    """Sizes of a CNN spectral encoder, read from its weights."""
    return {
        "channels": tree["stages"][0]["block1"]["conv1"]["kernel"].shape[-1],
        "stages": len(tree["stages"]),
        "norm": "batch",
    }


def test_parity_spectral_encoder(k_osc: Any) -> None:
    weights, arrays = k_osc
    trees = importer.spectral_encoder_trees(weights, "encoder")
    samples, dim = arrays["signal"].shape[1], arrays["conditioning"].shape[1]
    sizes = spectral_sizes(trees.parameters)
    make = partial(SpectralEncoder, samples, dim=dim, **sizes, **OPTIONS)
    assert_close(run(make, trees, arrays["signal"]), arrays["conditioning"])


def field(weights: Weights, name: str, arrays: dict[str, np.ndarray]) -> tuple[Callable, Any]:
    """A field with every size read from the weights, and the weights."""
    tree = importer.vector_field_parameters(weights, name, int(arrays["num_heads"]))
    width, conditioning_dim = arrays["x"].shape[1], arrays["conditioning"].shape[-1]
    features, dim = tree["conditioning"]["up"]["kernel"].shape
    sizes = {
        "dim": dim,
        "layers": len(jax.tree.leaves(tree["blocks"])[0]),
        "conditioning_dim": conditioning_dim,
        "time_features": features - conditioning_dim,
    }
    if "projection" not in tree:
        return partial(MLPField, width, **sizes, **OPTIONS), tree
    sizes |= {
        "heads": int(arrays["num_heads"]),
        "ff_dim": tree["blocks"]["ff"]["up"]["kernel"].shape[-1],
        "tokens": width // 3,
        "projection": "param2tok" if "assignment" in tree["projection"] else "oscillators",
    }
    return partial(TransformerField, width, **sizes, **OPTIONS), tree


@pytest.mark.parametrize("name", ["equivariant", "param2tok", "mlp"])
def test_parity_k_osc_fields(k_osc: Any, name: str) -> None:
    weights, arrays = k_osc
    inputs = [arrays["x"], arrays["t"][:, 0], arrays["conditioning"]]
    assert_close(run(*field(weights, name, arrays), *inputs), arrays[f"velocity_{name}"])


def test_parity_k_osc_mlp_field_without_conditioning(k_osc: Any) -> None:
    weights, arrays = k_osc
    inputs = [arrays["x"], arrays["t"][:, 0], arrays["conditioning"], np.ones(len(arrays["x"]), bool)]
    assert_close(run(*field(weights, "mlp", arrays), *inputs), arrays["velocity_mlp_unconditional"])


def test_parity_surge_mlp_field(baselines: Any) -> None:
    weights, arrays = baselines
    inputs = [arrays["x"], arrays["t"][:, 0], arrays["conditioning"]]
    assert_close(run(*field(weights, "surge_mlp", arrays), *inputs), arrays["velocity_surge_mlp"])


def test_parity_spectrogram_regression(baselines: Any) -> None:
    weights, arrays = baselines
    heads = int(arrays["num_heads"])
    tree = importer.spectrogram_regression_parameters(weights, "surge_ffn", heads)
    dim, width = tree["read"]["kernel"].shape
    sizes = {"dim": dim, "layers": len(tree["encoder"]["blocks"]["norm1"]["scale"]), "heads": heads, "queries": 1}

    def make(rngs: nnx.Rngs) -> SpectrogramRegression:
        shape = arrays["mel_spec"].shape[1:]
        encoder = SpectrogramTransformer(shape, **sizes, swapped_padding=True, **OPTIONS, rngs=rngs)
        return SpectrogramRegression(encoder, dim, width, **OPTIONS, rngs=rngs)

    assert_close(run(make, tree, arrays["mel_spec"]), arrays["prediction_surge_ffn"])


def test_parity_signal_regression(baselines: Any) -> None:
    weights, arrays = baselines
    trees = importer.signal_regression_trees(weights, "k_osc_ffn")
    samples, trunk = arrays["signal"].shape[1], trees.parameters["trunk"]
    dim, width = trunk[0]["ff"]["up"]["kernel"].shape[0], arrays["prediction_k_osc_ffn"].shape[1]

    def make(rngs: nnx.Rngs) -> SignalRegression:
        sizes = spectral_sizes(trees.parameters["encoder"])
        encoder = SpectralEncoder(samples, dim=dim, **sizes, **OPTIONS, rngs=rngs)
        return SignalRegression(encoder, dim, width, blocks=len(trunk), **OPTIONS, rngs=rngs)

    assert_close(run(make, trees, arrays["signal"]), arrays["prediction_k_osc_ffn"])


def test_the_tests_above_use_every_weight(k_osc: Any, baselines: Any) -> None:
    modules = [{name.split(".")[0] for name in weights} for weights, _ in (k_osc, baselines)]
    assert modules == [{"encoder", "equivariant", "param2tok", "mlp"}, {"surge_mlp", "surge_ffn", "k_osc_ffn"}]


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (importer.spectral_encoder_trees, "encoder"),
        (lambda weights, name: importer.vector_field_parameters(weights, name, 4), "equivariant"),
        (lambda weights, name: importer.vector_field_parameters(weights, name, 4), "mlp"),
    ],
)
def test_missing_and_left_over_weights_are_named(k_osc: Any, read: Any, name: str) -> None:
    weights, _ = k_osc
    with pytest.raises(ValueError, match=rf"{name}\.made_up"):
        read(weights | {f"{name}.made_up": np.zeros(1)}, name)
    assert read(weights | {"another.made_up": np.zeros(1)}, name)
    for missing in (key for key in weights if key.startswith(f"{name}.") and key.endswith("0.bias")):
        with pytest.raises(ValueError, match=rf"{missing} is missing"):
            read({key: array for key, array in weights.items() if key != missing}, name)
