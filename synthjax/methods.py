"""How each kind of model is trained, how held-out examples judge it, and how it answers.

Shapes: B batch, K draws for each sound, W row width, N validation losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from data_pipeline.cli import UserError
from synthjax import flow
from synthjax.flow_vae_loss import RowLayout, beta_schedule, flow_vae_losses, parameter_loss, predicted_rows
from synthjax.models import FlowModel
from synthjax.models.flow_vae import FlowVAE
from synthjax.regression_losses import LOSSES
from synthjax.sampling import Sampling, sample_rows
from synthjax.tasks import Examples, SpectrogramTask, Task

Metrics = dict[str, Array]  # Scalars.


class Method(Protocol):
    """One kind of model. All but ``names`` is called inside jitted functions, with a model of the trace's own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the N validation losses."""
        ...

    def draw(self, key: Array, shape: tuple[int, int]) -> Any:
        """All that is random in the loss of rows of that shape (B, W), but for the noise: arrays that lead with B."""
        ...

    def loss(self, model: Any, examples: Examples, draws: Any, step: Array) -> tuple[Array, Metrics]:
        """What training minimises in step ``step``, and figures about it, ``loss`` the first of them.

        All are means over the examples, or do not depend on them.
        """
        ...

    def errors(self, make_model: Callable[[], Any], examples: Examples) -> Float[Array, "N B"]:
        """Validation losses of every example, the same whenever they are asked for."""
        ...

    def rows(
        self, model: Any, inputs: Float[Array, "B *S"], x0: Float[Array, "B *K W"], sampling: Sampling
    ) -> Float[Array, "B *K W"]:
        """Answers on the model's scale, one for each noise row; all the same where the model draws nothing."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """Conditional flow matching (``synthjax.flow``), validated at fixed times."""

    guidance_dropout: float
    projection_penalty: float
    times: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One a time."""
        return tuple(f"loss_t{t:g}" for t in self.times)

    def draw(self, key: Array, shape: tuple[int, int]) -> flow.Draws:
        """Times, and which sounds are dropped."""
        return flow.draw(key, shape[0], self.guidance_dropout)

    def loss(self, model: FlowModel, examples: Examples, draws: flow.Draws, step: Array) -> tuple[Array, Metrics]:
        """Velocity error at random times, and the penalty on the projection."""
        inputs, x0, x1 = examples
        error = flow.velocity_error(model, model.encode(inputs), x0, x1, *draws).mean()
        penalty = self.projection_penalty * model.penalty()
        return error + penalty, {"loss": error, "penalty": penalty}

    def errors(self, make_model: Callable[[], FlowModel], examples: Examples) -> Float[Array, "N B"]:
        """Velocity error at every time."""
        inputs, x0, x1 = examples
        z = make_model().encode(inputs)

        def at(t: Array) -> Array:
            # The model is made anew inside the loop: a Flax module may not cross a trace.
            return flow.velocity_error(make_model(), z, x0, x1, jnp.full(x1.shape[:1], t))

        return jax.lax.map(at, jnp.asarray(self.times))

    def rows(
        self, model: FlowModel, inputs: Float[Array, "B *S"], x0: Float[Array, "B *K W"], sampling: Sampling
    ) -> Float[Array, "B *K W"]:
        """Draws from the flow, one from each noise row."""
        return sample_rows(model, inputs, x0, sampling)


@dataclass(frozen=True)
class Regression:
    """Rows straight from sounds, by one of ``regression_losses.LOSSES``."""

    kind: str

    @property
    def names(self) -> tuple[str, ...]:
        """One loss."""
        return (f"loss_{self.kind}",)

    def draw(self, key: Array, shape: tuple[int, int]) -> tuple[()]:
        """Nothing."""
        return ()

    def loss(self, model: Any, examples: Examples, draws: tuple[()], step: Array) -> tuple[Array, Metrics]:
        """Mean over the batch."""
        error = LOSSES[self.kind](model(examples.inputs), examples.x1).mean()
        return error, {"loss": error}

    def errors(self, make_model: Callable[[], Any], examples: Examples) -> Float[Array, "N B"]:
        """The training loss itself."""
        return LOSSES[self.kind](make_model()(examples.inputs), examples.x1)[None]

    def rows(
        self, model: Any, inputs: Float[Array, "B *S"], x0: Float[Array, "B *K W"], sampling: Sampling
    ) -> Float[Array, "B *K W"]:
        """The one answer, as often as there is noise."""
        return _repeat(model(inputs), x0)


@dataclass(frozen=True)
class FlowVAEMethod:
    """The VAE with two normalising flows (``synthjax.flow_vae_loss``), validated by its loss on parameters."""

    layout: RowLayout
    beta: optax.Schedule
    names: tuple[str, ...] = ("loss_parameters",)

    def draw(self, key: Array, shape: tuple[int, int]) -> Float[Array, "B W"]:
        """Noise of the posterior."""
        return jax.random.normal(key, shape)

    def loss(
        self, model: FlowVAE, examples: Examples, draws: Float[Array, "B W"], step: Array
    ) -> tuple[Array, Metrics]:
        """Reconstruction, latent and parameter terms, the second weighted by beta of the step."""
        inputs, _, x1 = examples
        output = model(inputs, draws)
        terms = flow_vae_losses(output, inputs, x1, self.layout)
        beta = jnp.asarray(self.beta(step), jnp.float32)
        total = terms.total(beta)
        return total, {"loss": total, "beta": beta} | {f"loss_{name}": term for name, term in terms._asdict().items()}

    def errors(self, make_model: Callable[[], FlowVAE], examples: Examples) -> Float[Array, "N B"]:
        """The parameters' loss without noise."""
        prediction = make_model()(examples.inputs).prediction

        def of_one(row: Array, true: Array) -> Array:
            return parameter_loss(row[None], true[None], self.layout)

        return jax.vmap(of_one)(prediction, examples.x1)[None]

    def rows(
        self, model: FlowVAE, inputs: Float[Array, "B *S"], x0: Float[Array, "B *K W"], sampling: Sampling
    ) -> Float[Array, "B *K W"]:
        """The answer of the posterior's mean, as often as there is noise."""
        return _repeat(predicted_rows(model.predict(inputs), self.layout), x0)


def _repeat(rows: Float[Array, "B W"], x0: Float[Array, "B *K W"]) -> Float[Array, "B *K W"]:
    return jnp.broadcast_to(rows.reshape(rows.shape[0], *(1,) * (x0.ndim - 2), rows.shape[1]), x0.shape)


def make_method(config: ml_collections.ConfigDict, task: Task) -> Method:
    """The method of a config's ``model.kind``.

    Raises:
      UserError: for an unknown one, or one that the task does not fit.
    """
    kind = config.model.kind
    if kind == "flow":
        settings = config.flow
        return FlowMatching(settings.guidance_dropout, settings.projection_penalty, tuple(config.validation.times))
    if kind == "regression":
        return Regression(config.model.loss)
    if kind != "flow_vae":
        raise UserError(f"unknown model.kind {kind!r}: use flow, regression or flow_vae")
    if not isinstance(task, SpectrogramTask):
        raise UserError("model.kind=flow_vae is made for spectrograms")
    settings = config.model.beta
    return FlowVAEMethod(RowLayout.from_spec(task.spec), beta_schedule(settings.start, settings.end, settings.steps))
