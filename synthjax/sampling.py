r"""Rows from noise: fixed-step solvers of dx/dt = v(x, t | z) from t = 0 to 1, with classifier-free guidance.

    v_s(x, t) = (1 - s) v(x, t | none) + s v(x, t | z)                     (1)  guidance strength s

Shapes: B batch, K draws for each sound, W row width, L conditioning rows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from synthjax.models import FlowModel

Field = Callable[[Array, Array], Array]  # (x (B, W), t ()) -> velocity (B, W)


def guided_field(model: FlowModel, z: Float[Array, "B L D"], strength: float) -> Field:
    """Eq. (1); both branches run as one batch of 2B, and strength 1 needs no second branch."""
    batch = z.shape[0]
    if strength == 1.0:
        return lambda x, t: model.velocity(x, jnp.full((batch,), t), z)
    doubled = jnp.concatenate([z, z])
    dropped = jnp.arange(2 * batch) >= batch

    def field(x: Array, t: Array) -> Array:
        velocity = model.velocity(jnp.concatenate([x, x]), jnp.full((2 * batch,), t), doubled, dropped)
        conditional, unconditional = jnp.split(velocity, 2)
        return (1.0 - strength) * unconditional + strength * conditional

    return field


def euler_step(field: Field, x: Array, t: Array, h: float) -> Array:
    """One evaluation, first order."""
    return x + h * field(x, t)


def heun_step(field: Field, x: Array, t: Array, h: float) -> Array:
    """Two evaluations, second order."""
    first = field(x, t)
    return x + h / 2 * (first + field(x + h * first, t + h))


def rk4_step(field: Field, x: Array, t: Array, h: float) -> Array:
    """Four evaluations, fourth order (the classical Runge-Kutta method)."""
    k1 = field(x, t)
    k2 = field(x + h / 2 * k1, t + h / 2)
    k3 = field(x + h / 2 * k2, t + h / 2)
    k4 = field(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


SOLVERS = {"euler": euler_step, "heun": heun_step, "rk4": rk4_step}


def solve(field: Field, x0: Float[Array, "B W"], *, solver: str, steps: int) -> Float[Array, "B W"]:
    """x at t = 1 from x0 at t = 0 in ``steps`` equal steps, as one ``lax.scan``.

    Args:
      solver: a key of ``SOLVERS``.
    """
    step, h = SOLVERS[solver], 1.0 / steps

    def body(x: Array, i: Array) -> tuple[Array, None]:
        return step(field, x, i * h, h), None

    x, _ = jax.lax.scan(body, x0, jnp.arange(steps, dtype=jnp.float32))
    return x


def sample_rows(
    model: FlowModel,
    mel: Float[Array, "B C M F"],
    x0: Float[Array, "B *K W"],
    *,
    guidance: float,
    solver: str,
    steps: int,
) -> Float[Array, "B *K W"]:
    """Rows on the model's scale [-1, 1] for standardised spectrograms.

    The encoder runs once for each sound, however many draws ``x0`` has for it, and all draws are solved as one batch.
    """
    draws = math.prod(x0.shape[1:-1])
    z = jnp.repeat(model.encode(mel), draws, axis=0)
    field = guided_field(model, z, guidance)
    return solve(field, x0.reshape(-1, x0.shape[-1]), solver=solver, steps=steps).reshape(x0.shape)
