"""The learning rate schedule, and both optimizers against PyTorch's update written in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from synthjax.training.trainer import make_optimizer, make_schedule

STEPS = 100


@pytest.fixture
def optim(tiny_config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    tiny_config.optim.update({"lr": 1e-2, "final_lr": 1e-4, "warmup_steps": 0})
    return tiny_config.optim


@pytest.mark.parametrize(
    ("warmup", "values"),
    [
        (20, {0: 0.0, 5: 2.5e-3, 20: 1e-2, 60: (1e-2 + 1e-4) / 2, 100: 1e-4, 500: 1e-4}),
        (0, {0: 1e-2, 50: (1e-2 + 1e-4) / 2, 25: 1e-4 + 9.9e-3 * (1 + np.cos(np.pi / 4)) / 2, 100: 1e-4, 500: 1e-4}),
    ],
)
def test_schedule_warms_up_linearly_and_falls_as_a_cosine(
    optim: ml_collections.ConfigDict, warmup: int, values: dict[int, float]
) -> None:
    optim.warmup_steps = warmup
    schedule = make_schedule(optim, STEPS)
    np.testing.assert_allclose([float(schedule(step)) for step in values], list(values.values()), rtol=1e-5)


def pytorch_updates(optim: ml_collections.ConfigDict, weights: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """torch.optim.Adam / AdamW after clip_grad_norm_ and with the cosine, on one flat vector of weights."""
    weights, m, v = weights.copy(), np.zeros_like(weights), np.zeros_like(weights)
    for n, gradient in enumerate(gradients):
        lr = optim.final_lr + (optim.lr - optim.final_lr) * (1 + np.cos(np.pi * n / STEPS)) / 2
        gradient = gradient * min(1.0, optim.clip_norm / np.linalg.norm(gradient))
        if optim.name == "adam":
            gradient = gradient + optim.weight_decay * weights
        else:
            weights *= 1 - lr * optim.weight_decay
        m = optim.b1 * m + (1 - optim.b1) * gradient
        v = optim.b2 * v + (1 - optim.b2) * gradient**2
        corrected = m / (1 - optim.b1 ** (n + 1)), v / (1 - optim.b2 ** (n + 1))
        weights -= lr * corrected[0] / (np.sqrt(corrected[1]) + optim.eps)
    return weights


def our_updates(optim: ml_collections.ConfigDict, weights: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """The same on two leaves, over which the clipping norm has to reach."""
    optimizer = make_optimizer(optim, STEPS)
    split = lambda x: {"a": jnp.asarray(x[:2], jnp.float32), "b": jnp.asarray(x[2:], jnp.float32)}  # noqa: E731
    params = split(weights)
    state = optimizer.init(params)

    @jax.jit
    def step(params: dict, state: optax.OptState, gradients: dict) -> tuple[dict, optax.OptState]:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, split(gradient))
    return np.concatenate([params["a"], params["b"]])


@pytest.mark.parametrize("clip_norm", [0.5, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_optimizer_updates_as_pytorch_does(
    optim: ml_collections.ConfigDict, name: str, weight_decay: float, clip_norm: float
) -> None:
    optim.update({"name": name, "weight_decay": weight_decay, "clip_norm": clip_norm, "b1": 0.8, "b2": 0.9})
    rng = np.random.default_rng(0)
    weights = rng.normal(size=5)
    # Large gradients, clipped, between small ones, which clipping must leave alone.
    gradients = [scale * rng.normal(size=5) for scale in (0.05, 10.0, 0.05, 3.0)]
    expected = pytorch_updates(optim, weights, gradients)
    np.testing.assert_allclose(our_updates(optim, weights, gradients), expected, rtol=1e-5, atol=1e-6)


def test_epsilon_keeps_tiny_gradients_from_full_steps(optim: ml_collections.ConfigDict) -> None:
    optim.eps = 1e-3
    gradients = [np.full(5, 1e-4)]
    expected = pytorch_updates(optim, np.zeros(5), gradients)
    np.testing.assert_allclose(our_updates(optim, np.zeros(5), gradients), expected, rtol=1e-4)
    assert np.abs(expected).max() < 0.2 * optim.lr
