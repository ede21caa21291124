"""Solvers of dx/dt = v(x, t): with fixed steps, and an adaptive one.

Fixed steps are the same for all rows. ``dopri5`` chooses them, for every row its own, so that a row does not depend on
those beside it. JAX's own ``odeint`` was no choice: out of steps it extrapolates without a word, it evaluates the field
at times beyond the last, and rows with steps of their own would go through the network one by one.

Shapes: B batch, W row width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.integrate import RK45

Field = Callable[[Array, Array], Array]  # (x (B, W), t () or (B,)) -> velocity (B, W)


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


FIXED_STEPS = {"euler": euler_step, "heun": heun_step, "rk4": rk4_step}
DOPRI5 = "dopri5"
SOLVERS = (*FIXED_STEPS, DOPRI5)


def solve(
    field: Field, x0: Float[Array, "B W"], *, solver: str, steps: int, start: float = 0.0, end: float = 1.0
) -> Float[Array, "B W"]:
    """x at ``end`` from x0 at ``start`` in equal steps, as one ``lax.scan``.

    Args:
      solver: a key of ``FIXED_STEPS``.
      steps: from t = 0 to 1, of which this stretch gets its share, one at least.
    """
    # Ends are rounded, not lengths: stretches that follow one another have all the steps between them.
    count = max(1, round(end * steps) - round(start * steps))
    step, h = FIXED_STEPS[solver], (end - start) / count

    def body(x: Array, i: Array) -> tuple[Array, None]:
        return step(field, x, start + i * h, h), None

    x, _ = jax.lax.scan(body, x0, jnp.arange(count, dtype=jnp.float32))
    return x


# What a row tries first; its error tells how long the next step is to be.
FIRST_STEP = 0.1
# Steps that a row may try in a stretch of time.
MAX_STEPS = 1_000
# A step is so much shorter than the error would allow, and no more than so much shorter or longer than the last one;
# after one that was refused, not longer at all.
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
# Dormand and Prince's table: times of the stages after the first, the weights of all slopes that each starts from (the
# last one is the result), and those of the error.
STAGE_TIMES = np.append(RK45.C[1:], 1.0).astype(np.float32)
STAGES = np.vstack([np.pad(RK45.A[1:], ((0, 0), (0, 2))), np.pad(RK45.B, (0, 1))]).astype(np.float32)
ERROR = RK45.E.astype(np.float32)


class _Walk(NamedTuple):
    """Where every row is, and the next step that it would take."""

    tried: Array  # ()
    x: Float[Array, "B W"]
    t: Float[Array, " B"]
    h: Float[Array, " B"]
    refused: Bool[Array, " B"]  # The step before.
    slope: Float[Array, "B W"]


def solve_adaptive(
    field: Field, x0: Float[Array, "B W"], *, tolerance: float, start: float = 0.0, end: float = 1.0
) -> Float[Array, "B W"]:
    """x at ``end`` from x0 at ``start`` by Dormand-Prince 5(4), each row in steps of its own.

    A step is taken if its estimated error is at most ``tolerance (1 + |x|)``, in the mean square over a row's columns;
    else a shorter one is tried (Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I", section II.4).
    All rows are evaluated until the last has arrived, after ``MAX_STEPS`` tries at most: no step is shorter than the
    time left divided by the tries left, and one as short as that is taken whatever its error. So a row too hard for the
    tolerance is solved as well as that many steps can. A row ends as NaN where the field is not finite.

    A row's steps hang on its own values alone, to the last bit: what is rounded otherwise, as some batch sizes are,
    ends elsewhere within the tolerance.
    """

    def try_step(walk: _Walk) -> _Walk:
        left = end - walk.t
        least = left / (MAX_STEPS - walk.tried)
        h = jnp.clip(walk.h, least, left)
        x, slope, error = dopri5_step(field, walk.x, walk.t, h, walk.slope)
        error = _relative_error(error, walk.x, x, tolerance)
        taken = (error <= 1) | (h <= least)
        lost = ~jnp.isfinite(walk.slope).all(axis=-1)
        x, taken = jnp.where(lost[:, None], jnp.nan, x), taken | lost
        t = jnp.where((h < left) & ~lost, walk.t + h, end)
        factor = jnp.clip(SAFETY * error ** (-1 / 5), SHRINK, jnp.where(walk.refused, 1.0, GROW))
        return _Walk(
            tried=walk.tried + 1,
            x=jnp.where(taken[:, None], x, walk.x),
            t=jnp.where(taken, t, walk.t),
            h=h * factor,
            refused=~taken,
            slope=jnp.where(taken[:, None], slope, walk.slope),
        )

    t, h = (jnp.full(len(x0), value, jnp.float32) for value in (start, FIRST_STEP))
    none = jnp.zeros(len(x0), bool)
    walk = _Walk(tried=jnp.zeros((), jnp.int32), x=x0, t=t, h=h, refused=none, slope=field(x0, t))
    return jax.lax.while_loop(lambda walk: (walk.t < end).any(), try_step, walk).x


def dopri5_step(
    field: Field, x: Float[Array, "B W"], t: Float[Array, " B"], h: Float[Array, " B"], slope: Float[Array, "B W"]
) -> tuple[Float[Array, "B W"], Float[Array, "B W"], Float[Array, "B W"]]:
    """Six evaluations, fifth order (Dormand and Prince, J. Comput. Appl. Math. 6, 1980).

    Args:
      slope: field(x, t), which is the last evaluation of the step before.

    Returns:
      x after the step, the slope there, and how far a fourth-order step comes from it.
    """

    def body(slopes: Array, stage: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        number, time, weights = stage
        start = x + h[:, None] * _weighted(weights, slopes)
        return slopes.at[number].set(field(start, t + time * h)), start

    slopes = jnp.zeros((len(ERROR), *slope.shape), slope.dtype).at[0].set(slope)
    # As a loop, for the field to be compiled once.
    stages = jnp.arange(1, len(ERROR)), jnp.asarray(STAGE_TIMES), jnp.asarray(STAGES)
    slopes, starts = jax.lax.scan(body, slopes, stages)
    return starts[-1], slopes[-1], h[:, None] * _weighted(jnp.asarray(ERROR), slopes)


def _weighted(weights: Float[Array, " N"], slopes: Float[Array, "N B W"]) -> Float[Array, "B W"]:
    # No matrix product: TPUs round those.
    return (weights[:, None, None] * slopes).sum(axis=0)


def _relative_error(
    error: Float[Array, "B W"], before: Float[Array, "B W"], after: Float[Array, "B W"], tolerance: float
) -> Float[Array, " B"]:
    """Of every row, 1 where it is just tolerable."""
    tolerable = tolerance * (1 + jnp.maximum(jnp.abs(before), jnp.abs(after)))
    root_mean_square = jnp.sqrt(jnp.square(error / tolerable).mean(axis=-1))
    # A step to where the field is not finite was too long.
    return jnp.where(jnp.isnan(root_mean_square), jnp.inf, root_mean_square)
