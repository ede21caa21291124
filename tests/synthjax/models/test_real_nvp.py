"""Real NVP: its formulas, its log-determinant against autodiff's, and its running statistics."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.models.real_nvp import RealNVP
from tests.synthjax.random_modules import randomised

WIDTHS = pytest.mark.parametrize("width", [6, 7])


def flow(width: int, *, scale: float = 0.4, **changes: Any) -> RealNVP:
    sizes = {"layers": 4, "hidden": 5, "blocks": 2, "dtype": jnp.float32} | changes
    return randomised(lambda: RealNVP(width, **sizes, rngs=nnx.Rngs(0)), scale)


def rows(width: int, batch: int = 5, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, width)).astype(np.float32)


def forward(model: RealNVP, x: np.ndarray, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
    y, log_det, _ = _forward(*nnx.split(model), x, train)
    return y, log_det


@partial(jax.jit, static_argnames=("graph", "train"))
def _forward(
    graph: nnx.GraphDef, state: nnx.State, x: jax.Array, train: bool
) -> tuple[jax.Array, jax.Array, nnx.State]:
    model = nnx.merge(graph, state)
    return *model(x, train=train), nnx.state(model)


def numpy_norm(p: dict, x: np.ndarray) -> np.ndarray:
    return (x - p["mean"]) / np.sqrt(p["var"] + 1e-3) * p["scale"] + p["bias"]


def numpy_net(p: dict, x: np.ndarray) -> np.ndarray:
    x = x @ p["enter"]["kernel"] + p["enter"]["bias"]
    for _, block in sorted(p["blocks"].items()):
        y = np.maximum(numpy_norm(block["norm1"], x), 0.0) @ block["linear1"]["kernel"] + block["linear1"]["bias"]
        y = np.maximum(numpy_norm(block["norm2"], y), 0.0) @ block["linear2"]["kernel"] + block["linear2"]["bias"]
        x = x + y
    return x @ p["leave"]["kernel"] + p["leave"]["bias"]


def numpy_flow(model: RealNVP, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With masks: in every second coupling, from the first on, the even columns are those that stay."""
    state = nnx.to_pure_dict(nnx.state(model.pairs))
    x, log_det = x.astype(np.float64), np.zeros(len(x))
    for pair in range(state["change_odd"]["enter"]["kernel"].shape[0]):
        for start, name in ((0, "change_odd"), (1, "change_even")):
            stays = np.arange(x.shape[1]) % 2 == start
            parameters = jax.tree.map(lambda leaf: np.asarray(leaf[pair], np.float64), state[name])  # noqa: B023
            shift, raw = np.split(numpy_net(parameters, x[:, stays]), 2, axis=1)
            scale = 1.0 / (1.0 + np.exp(-(raw + 2.0))) + 1e-3
            x[:, ~stays] = scale * x[:, ~stays] + shift
            log_det += np.log(scale).sum(axis=1)
    return x, log_det


@WIDTHS
def test_flow_equals_masked_couplings_in_numpy(width: int) -> None:
    model, x = flow(width), rows(width)
    y, log_det = forward(model, x)
    expected_y, expected_log_det = numpy_flow(model, x)
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_det, expected_log_det, rtol=1e-5, atol=1e-5)


@WIDTHS
def test_log_determinant_is_that_of_the_jacobian(width: int) -> None:
    model, x = flow(width), rows(width)
    graph, state = nnx.split(model)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda x: nnx.merge(graph, state)(x[None])[0][0])))(x)
    _, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    np.testing.assert_allclose(forward(model, x)[1], expected, rtol=1e-5, atol=1e-5)
    assert (np.abs(jacobian).max(axis=0) > 1e-6).all(), "some column does not depend on another"


def test_log_determinants_of_a_training_batch_add_up_to_that_of_the_whole_batch() -> None:
    # By the batch's statistics every row depends on all; columns that stay still fix all of their networks.
    width, batch = 6, 5
    model, x = flow(width), rows(width, batch)
    graph, state = nnx.split(model)

    def flat(x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state, copy=True)(x.reshape(batch, width), train=True)[0].ravel()

    jacobian = jax.jit(jax.jacfwd(flat))(x.ravel())
    _, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    np.testing.assert_allclose(forward(model, x, train=True)[1].sum(), expected, rtol=1e-5)


def test_training_normalises_by_the_batch_and_keeps_a_running_average() -> None:
    model, x = flow(6, hidden=5, layers=2), 3.0 + 2.0 * rows(6, batch=64)
    _, _, after = _forward(*nnx.split(model), x, True)
    old, new = (
        jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), nnx.to_pure_dict(state)["pairs"]["change_odd"])
        for state in (nnx.state(model), after)
    )
    hidden = x[:, 0::2] @ old["enter"]["kernel"] + old["enter"]["bias"]
    old_norm, new_norm = (coupling["blocks"][0]["norm1"] for coupling in (old, new))
    np.testing.assert_allclose(new_norm["mean"], 0.9 * old_norm["mean"] + 0.1 * hidden.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(new_norm["var"], 0.9 * old_norm["var"] + 0.1 * hidden.var(axis=0), rtol=1e-5)
    # The input of the next norm was normalised by the batch, not by the running statistics.
    norm = old_norm | {"mean": hidden.mean(axis=0), "var": hidden.var(axis=0)}
    block = old["blocks"][0]
    inner = np.maximum(numpy_norm(norm, hidden), 0.0) @ block["linear1"]["kernel"] + block["linear1"]["bias"]
    moved = new["blocks"][0]["norm2"]["mean"] - 0.9 * block["norm2"]["mean"]
    np.testing.assert_allclose(moved, 0.1 * inner.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_evaluation_changes_no_statistics_and_treats_rows_alone() -> None:
    model, x = flow(6), rows(6)
    y, log_det, after = _forward(*nnx.split(model), x, False)
    jax.tree.map(np.testing.assert_array_equal, after, nnx.state(model))
    same_y, same_log_det = forward(model, np.concatenate([x[:1], 5.0 + x[1:]]))
    np.testing.assert_allclose(same_y[:1], y[:1], rtol=1e-5)
    np.testing.assert_allclose(same_log_det[:1], log_det[:1], rtol=1e-5)


def test_couplings_stay_float32_under_bfloat16() -> None:
    y, log_det = forward(flow(6, dtype=jnp.bfloat16), rows(6))
    expected, _ = forward(flow(6), rows(6))
    assert y.dtype == log_det.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, atol=0.1)


@pytest.mark.parametrize(("width", "layers", "message"), [(1, 2, "not 1"), (6, 3, "3 is odd")])
def test_impossible_sizes_are_refused(width: int, layers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RealNVP(width, layers=layers, hidden=4, blocks=1, dtype=jnp.float32, rngs=nnx.Rngs(0))
