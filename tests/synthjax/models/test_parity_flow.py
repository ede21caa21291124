"""Our networks at the PyTorch reference's weights against its own outputs (no torch needed)."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.methods import flow, sampling
from synthjax.models import FlowModel
from synthjax.models.encoders import SpectrogramTransformer
from synthjax.models.vector_fields import TransformerField
from synthjax.reference.weights import convert
from synthjax.reference.weights import flow as flow_weights

RELATIVE = 1e-4


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / "reference" / "surge_flow.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(reference: dict[str, np.ndarray]) -> FlowModel:
    """A model with every size read from the reference file."""
    weights = {k.removeprefix("weights/"): v for k, v in reference.items() if k.startswith("weights/")}
    heads = int(reference["num_heads"])
    tree = convert(weights, flow_weights, heads, heads)
    encoder, field = tree["encoder"], tree["field"]
    *patch, channels, dim = encoder["patches"]["kernel"].shape
    tokens, width = field["projection"]["assignment"].shape
    options = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    built = FlowModel(
        SpectrogramTransformer(
            reference["mel_spec"].shape[1:],
            dim=dim,
            layers=encoder["blocks"]["norm1"]["scale"].shape[0],
            heads=heads,
            queries=encoder["query_tokens"].shape[0],
            patch=tuple(patch),
            swapped_padding=True,
            **options,
        ),
        TransformerField(
            width,
            dim=dim,
            layers=field["blocks"]["norm1"]["scale"].shape[0],
            heads=heads,
            ff_dim=field["blocks"]["ff"]["up"]["kernel"].shape[-1],
            tokens=tokens,
            conditioning_dim=dim,
            time_features=field["conditioning"]["up"]["kernel"].shape[0] - dim,
            **options,
        ),
    )
    assert channels == reference["mel_spec"].shape[1]
    graph, state = nnx.split(built)
    expected = jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
    assert jax.tree.map(np.shape, tree) == expected
    return nnx.merge(graph, jax.tree.map(jnp.asarray, tree))


def assert_close(actual: jax.Array, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual) / scale, expected / scale, rtol=RELATIVE, atol=RELATIVE / 10)


def test_parity_encoder(model: FlowModel, reference: dict[str, np.ndarray]) -> None:
    assert_close(model.encode(reference["mel_spec"]), reference["conditioning"])


def test_parity_velocity(model: FlowModel, reference: dict[str, np.ndarray]) -> None:
    t = jnp.asarray(reference["t"][:, 0])
    velocity = model.velocity(reference["x"], t, jnp.asarray(reference["conditioning"]))
    assert_close(velocity, reference["velocity"])


def test_parity_velocity_without_conditioning(model: FlowModel, reference: dict[str, np.ndarray]) -> None:
    t = jnp.asarray(reference["t"][:, 0])
    dropped = jnp.ones(len(t), bool)
    velocity = model.velocity(reference["x"], t, jnp.asarray(reference["conditioning"]), dropped)
    assert_close(velocity, reference["velocity_unconditional"])


def test_parity_penalty(model: FlowModel, reference: dict[str, np.ndarray]) -> None:
    assert_close(0.01 * model.penalty(), reference["penalty"])


def test_parity_loss(model: FlowModel, reference: dict[str, np.ndarray]) -> None:
    loss = flow.velocity_error(
        model,
        jnp.asarray(reference["conditioning"]),
        jnp.asarray(reference["x"]),
        jnp.asarray(reference["x1"]),
        jnp.asarray(reference["t"][:, 0]),
    ).mean()
    assert_close(loss, reference["loss"])


def test_parity_guided_rk4_sample(model: FlowModel, reference: dict[str, np.ndarray]) -> None:
    settings = sampling.Sampling("rk4", int(reference["rk4_steps"]), guidance=float(reference["cfg_strength"]))
    rows = sampling.sample_rows(model, jnp.asarray(reference["mel_spec"]), jnp.asarray(reference["x"]), settings)
    assert_close(rows, reference["rk4_sample"])


def test_parity_import_names_missing_and_left_over_weights(reference: dict[str, np.ndarray]) -> None:
    weights = {k.removeprefix("weights/"): v for k, v in reference.items() if k.startswith("weights/")}
    heads = int(reference["num_heads"])
    with pytest.raises(ValueError, match=r"encoder\.made_up"):
        convert(weights | {"encoder.made_up": np.zeros(1)}, flow_weights, heads, heads)
    del weights["encoder.out_proj.bias"]
    with pytest.raises(ValueError, match=r"encoder\.out_proj\.bias is missing"):
        convert(weights, flow_weights, heads, heads)
