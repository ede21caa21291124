"""Solvers of dx/dt = v(x, t): with fixed steps, and an adaptive one.

Fixed steps are the same for all rows. ``dopri5`` chooses the steps of every row separately, so that a row does not
depend on the others in its batch. JAX's ``odeint`` does not fit: it extrapolates silently when it runs out of steps, it
evaluates the field beyond the last time, and with separate steps it would pass rows through the network one by one.

Shapes: B batch, W row width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Field = Callable[[Array, Array], Array]  # (x (B, W), t () or (B,)) -> velocity (B, W)


def euler_step(field: Field, x: Array, t: Array, h: float) -> Array:
    """One Euler step: one evaluation, first order."""
    return x + h * field(x, t)


def heun_step(field: Field, x: Array, t: Array, h: float) -> Array:
    """One Heun step: two evaluations, second order."""
    first = field(x, t)
    return x + h / 2 * (first + field(x + h * first, t + h))


def rk4_step(field: Field, x: Array, t: Array, h: float) -> Array:
    """One step of the classical Runge-Kutta method: four evaluations, fourth order."""
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
    """The x at ``end``, from x0 at ``start`` in equal steps, as one ``lax.scan``.

    Args:
      solver: a key of ``FIXED_STEPS``.
      steps: number of steps from t = 0 to 1; the interval from start to end gets its share, at least one.
    """
    # The ends are rounded, not the lengths, so that the steps of adjoining intervals add up to ``steps``.
    count = max(1, round(end * steps) - round(start * steps))
    step, h = FIXED_STEPS[solver], (end - start) / count

    def body(x: Array, i: Array) -> tuple[Array, None]:
        return step(field, x, start + i * h, h), None

    x, _ = jax.lax.scan(body, x0, jnp.arange(count, dtype=jnp.float32))
    return x


# The first step that a row tries. The error of a step decides the length of the next.
FIRST_STEP = 0.1
# The most steps that a row may try from start to end.
MAX_STEPS = 1_000
# SAFETY times the length that the error allows is tried next, limited to SHRINK and GROW times the last length. After a
# refused step the next is not longer.
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


class _State(NamedTuple):
    """The state of every row, and the length of its next step."""

    tried: Array  # ()
    x: Float[Array, "B W"]
    t: Float[Array, " B"]
    h: Float[Array, " B"]
    refused: Bool[Array, " B"]  # Whether the last step was refused.
    slope: Float[Array, "B W"]


def solve_adaptive(
    field: Field, x0: Float[Array, "B W"], *, tolerance: float, start: float = 0.0, end: float = 1.0
) -> Float[Array, "B W"]:
    """The x at ``end``, from x0 at ``start`` by Dormand-Prince 5(4), each row in steps of its own.

    A step is taken if its estimated error is at most ``tolerance (1 + |x|)``, in the mean square over a row's columns;
    else a shorter step is tried (Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I", section II.4).
    All rows are evaluated until the last is done. A row tries at most ``MAX_STEPS`` steps: no step is shorter than the
    time left divided by the tries left, and a step of that length is taken whatever its error. A row that is too hard
    for the tolerance is so solved as well as ``MAX_STEPS`` steps can. A row becomes NaN where the field is not finite.

    The steps of a row depend on its own values alone. Batch sizes may round these differently; the row then ends at
    another point within the tolerance.
    """

    def try_step(state: _State) -> _State:
        left = end - state.t
        least = left / (MAX_STEPS - state.tried)
        h = jnp.clip(state.h, least, left)
        x, slope, error = dopri5_step(field, state.x, state.t, h, state.slope)
        error = _relative_error(error, state.x, x, tolerance)
        taken = (error <= 1) | (h <= least)
        lost = ~jnp.isfinite(state.slope).all(axis=-1)
        x, taken = jnp.where(lost[:, None], jnp.nan, x), taken | lost
        t = jnp.where((h < left) & ~lost, state.t + h, end)
        factor = jnp.clip(SAFETY * error ** (-1 / 5), SHRINK, jnp.where(state.refused, 1.0, GROW))
        return _State(
            tried=state.tried + 1,
            x=jnp.where(taken[:, None], x, state.x),
            t=jnp.where(taken, t, state.t),
            h=h * factor,
            refused=~taken,
            slope=jnp.where(taken[:, None], slope, state.slope),
        )

    t, h = (jnp.full(len(x0), value, jnp.float32) for value in (start, FIRST_STEP))
    none = jnp.zeros(len(x0), bool)
    state = _State(tried=jnp.zeros((), jnp.int32), x=x0, t=t, h=h, refused=none, slope=field(x0, t))
    return jax.lax.while_loop(lambda state: (state.t < end).any(), try_step, state).x


def dopri5_step(
    field: Field, x: Float[Array, "B W"], t: Float[Array, " B"], h: Float[Array, " B"], slope: Float[Array, "B W"]
) -> tuple[Float[Array, "B W"], Float[Array, "B W"], Float[Array, "B W"]]:
    """One step of six evaluations, fifth order (Dormand and Prince, J. Comput. Appl. Math. 6, 1980).

    Args:
      slope: field(x, t), the last evaluation of the step before.

    Returns:
      x after the step, the slope there, and the difference from a fourth-order step.
    """
    table = _dormand_prince()

    def body(slopes: Array, stage: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        number, time, weights = stage
        start = x + h[:, None] * _weighted(weights, slopes)
        return slopes.at[number].set(field(start, t + time * h)), start

    slopes = jnp.zeros((len(table.error), *slope.shape), slope.dtype).at[0].set(slope)
    # A loop, so that the field is compiled once.
    stages = jnp.arange(1, len(table.error)), jnp.asarray(table.times), jnp.asarray(table.stages)
    slopes, starts = jax.lax.scan(body, slopes, stages)
    return starts[-1], slopes[-1], h[:, None] * _weighted(jnp.asarray(table.error), slopes)


class _Table(NamedTuple):
    """Times of the stages after the first; weights of the slopes that each stage starts from; those of the error.

    The last stage starts at the result.
    """

    times: Float[np.ndarray, "6"]
    stages: Float[np.ndarray, "6 7"]
    error: Float[np.ndarray, "7"]


@cache
def _dormand_prince() -> _Table:
    from scipy.integrate import RK45  # Takes a third of a second, and only this solver needs it.

    stages = np.vstack([np.pad(RK45.A[1:], ((0, 0), (0, 2))), np.pad(RK45.B, (0, 1))])
    return _Table(*(part.astype(np.float32) for part in (np.append(RK45.C[1:], 1.0), stages, RK45.E)))


def _weighted(weights: Float[Array, " N"], slopes: Float[Array, "N B W"]) -> Float[Array, "B W"]:
    # Not a matrix product, which TPUs round.
    return (weights[:, None, None] * slopes).sum(axis=0)


def _relative_error(
    error: Float[Array, "B W"], before: Float[Array, "B W"], after: Float[Array, "B W"], tolerance: float
) -> Float[Array, " B"]:
    """The error of every row; 1 is the largest that the tolerance allows."""
    tolerable = tolerance * (1 + jnp.maximum(jnp.abs(before), jnp.abs(after)))
    root_mean_square = jnp.sqrt(jnp.square(error / tolerable).mean(axis=-1))
    # A step to a point where the field is not finite was too long.
    return jnp.where(jnp.isnan(root_mean_square), jnp.inf, root_mean_square)
