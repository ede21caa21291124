r"""Rows from noise: dx/dt = v(x, t | z) from t = 0 to 1, with classifier-free guidance.

    v_s(x, t) = (1 - s) v(x, t | none) + s v(x, t | z)                     (1)  guidance strength s
    s(t) = s in the guidance interval, else 1                              (2)  Kynkäänniemi et al., arXiv:2404.07724

Columns of a row may be known. They do not follow the field. They follow the straight path from their noise to their
values, as rows do in training. At every evaluation the field gets them so, and its velocity moves the other columns.

    x_t[known] = (1 - t) x_0[known] + t x_1[known]                         (3)

A start is a row that is kept in part. The field begins at t = keep, with a mix of noise and start (Meng et al.,
"SDEdit", arXiv:2108.01073). Its time is stretched to [0, 1], so that solvers, steps and guidance stay as they are.

    x_keep = (1 - keep) x_0 + keep start,   t = keep + (1 - keep) tau      (4)

Shapes: B batch, K draws for each sound, W row width, L conditioning rows, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from synthjax.methods.solvers import DOPRI5, Field, solve, solve_adaptive

if TYPE_CHECKING:
    from synthjax.models import FlowModel

ALWAYS = (0.0, 1.0)


@dataclass(frozen=True)
class Sampling:
    """The settings of the sampler, as a config's ``sampling`` section and the commands' flags name them.

    Only a flow uses them; other methods have no sampler. A run's defaults are in ``configs/important.py``.

    Attributes:
      solver: one of ``solvers.SOLVERS``.
      steps: steps from t = 0 to 1 of a solver with fixed steps.
      tolerance: error of a step of ``dopri5``, absolute and relative.
      guidance: strength s of eq. (1); 1 is no guidance.
      guidance_interval: the times between which there is guidance, eq. (2); t = 0 is noise.
    """

    solver: str
    steps: int
    tolerance: float = 1e-4
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = ALWAYS

    @classmethod
    def from_config(cls, section: ml_collections.ConfigDict) -> Sampling:
        """The settings of a config's ``sampling`` section."""
        values = {field.name: section[field.name] for field in fields(cls)}
        return cls(**values | {"guidance_interval": tuple(section.guidance_interval)})

    @classmethod
    def for_validation(cls, section: ml_collections.ConfigDict) -> Sampling:
        """The settings of a config's ``validation`` section, which has no guidance interval."""
        return cls(section.solver, section.solver_steps, guidance=section.guidance)

    def about(self) -> dict[str, Any]:
        """The settings that change the sampled rows, as JSON values."""
        accuracy = "tolerance" if self.solver == DOPRI5 else "steps"
        about = {"solver": self.solver, accuracy: getattr(self, accuracy), "guidance": self.guidance}
        if self.guidance != 1.0 and self.guidance_interval != ALWAYS:
            about["guidance_interval"] = list(self.guidance_interval)
        return about

    def parts(self) -> list[Part]:
        """The parts of [0, 1], split where guidance begins and ends."""
        if self.guidance == 1.0:
            return [Part(*ALWAYS, 1.0)]
        begin, end = self.guidance_interval
        parts = [Part(0.0, begin, 1.0), Part(begin, end, self.guidance), Part(end, 1.0, 1.0)]
        return [part for part in parts if part.start < part.end]


class Given(NamedTuple):
    """What is given of the rows, on the model's scale.

    Attributes:
      known: the values (B, *K, W) of known columns, and NaN elsewhere.
      start: rows (B, *K, W) to begin with.
      keep: () how much of them is kept.
    """

    known: Float[Array, "B *K W"] | None = None
    start: Float[Array, "B *K W"] | None = None
    keep: Float[Array, ""] | float = 0.0


NOTHING = Given()


class Part(NamedTuple):
    """An interval of time with one strength of guidance."""

    start: float
    end: float
    guidance: float


def guided_field(model: FlowModel, z: Float[Array, "B L D"], strength: float) -> Field:
    """Eq. (1): both branches run as one batch of 2B. Strength 1 needs no second branch.

    The two branches of a row stand next to each other. If one half of the batch followed the other instead, rows would
    move between devices at every evaluation.
    """
    batch = z.shape[0]
    if strength == 1.0:
        return lambda x, t: model.velocity(x, jnp.broadcast_to(t, (batch,)), z)
    doubled = jnp.repeat(z, 2, axis=0)
    dropped = jnp.arange(2 * batch) % 2 == 1

    def field(x: Array, t: Array) -> Array:
        times = jnp.repeat(jnp.broadcast_to(t, (batch,)), 2)
        velocity = model.velocity(jnp.repeat(x, 2, axis=0), times, doubled, dropped).reshape(batch, 2, -1)
        conditional, unconditional = velocity[:, 0], velocity[:, 1]
        return (1.0 - strength) * unconditional + strength * conditional

    return field


def with_known(field: Field, x0: Float[Array, "B W"], known: Float[Array, "B W"]) -> Field:
    """Eq. (3): the field with known columns; NaN in ``known`` is a column that follows the field."""
    free = jnp.isnan(known)
    slope = jnp.where(free, 0.0, known) - x0

    def held(x: Array, t: Array) -> Array:
        times = jnp.broadcast_to(t, len(x0))[:, None]
        velocity = field(jnp.where(free, x, x0 + times * slope), t)
        return jnp.where(free, velocity, slope)

    return held


def after(field: Field, keep: Float[Array, ""] | float) -> Field:
    """Eq. (4): the field from t = ``keep`` on, with its time stretched to [0, 1]."""
    return lambda x, t: (1.0 - keep) * field(x, keep + (1.0 - keep) * t)


def sample_rows(
    model: FlowModel,
    mel: Float[Array, "B C M F"],
    x0: Float[Array, "B *K W"],
    sampling: Sampling,
    given: Given = NOTHING,
) -> Float[Array, "B *K W"]:
    """Rows on the model's scale [-1, 1] for standardised spectrograms and noise ``x0``.

    The encoder runs once for each sound. All draws of all sounds are solved as one batch. Known columns end within the
    solver's error of their values.
    """
    draws = math.prod(x0.shape[1:-1])
    z = jnp.repeat(model.encode(mel), draws, axis=0)
    x = noise = x0.reshape(-1, x0.shape[-1])
    if given.start is not None:
        start = given.start.reshape(noise.shape)
        if given.known is not None:
            start = jnp.where(jnp.isnan(known := given.known.reshape(noise.shape)), start, known)
        x = (1.0 - given.keep) * noise + given.keep * start
    for begin, end, guidance in sampling.parts():
        field = guided_field(model, z, guidance)
        if given.known is not None:
            field = with_known(field, noise, given.known.reshape(noise.shape))
        if given.start is not None:
            field = after(field, given.keep)
        if sampling.solver == DOPRI5:
            x = solve_adaptive(field, x, tolerance=sampling.tolerance, start=begin, end=end)
        else:
            x = solve(field, x, solver=sampling.solver, steps=sampling.steps, start=begin, end=end)
    return x.reshape(x0.shape)
