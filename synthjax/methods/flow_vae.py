r"""The method of the flow VAE (Le Vaillant, Dutoit, Dekeyser 2021), in the notation of ``models.flow_vae``.

    L = R + beta(n) K + P                                                      (1)  at step n
    R = E (y^ - y)^2                                                           (2)  over all elements
    K = 0.2 E [log N(z_0; mu, s^2) - log N(z_K; 0, 1) - log |det dz_K/dz_0|]   (3)  Rezende, Mohamed 2015, eq. 15
    P = E over parameters of E (x^ - x)^2 or -log softmax(x^)_category         (4)  numbers, one-hot groups
    beta(n) from 0.1 to 0.2, linear over the first 60,000 steps                (5)

E in (3) and (4) is also the mean over the batch; (3) sums over columns. The reference's code multiplies both 0.2 and
beta, so that the latent term weighs 0.02 to 0.04; in Le Vaillant's code 0.2 is the value of beta itself.

Shapes: B batch, K draws for each sound in ``x0``, W row width, G groups of columns, V columns of the widest group, C
channels, M mels, F frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import Categorical, ParamSpec
from synthjax.methods.examples import Examples, Metrics, repeat_for_draws
from synthjax.methods.sampling import NOTHING, Given, Sampling
from synthjax.methods.task import Task
from synthjax.models.flow_vae import FlowVAE, FlowVAEOutput

LATENT_WEIGHT = 0.2


@dataclass(frozen=True, eq=False)
class RowLayout:
    """Groups of columns for eq. (4). A number is a group of its own; the columns of a one-hot parameter are one group.

    Attributes:
      columns: the columns of each group, padded with its first column.
      present: False where ``columns`` is padded.
      group: the group of each column.
      one_hot: whether each column belongs to a one-hot parameter.
      weight: the share of each column in (4); all parameters weigh the same, however many columns they have.
    """

    columns: Int[np.ndarray, "G V"]
    present: Bool[np.ndarray, "G V"]
    group: Int[np.ndarray, " W"]
    one_hot: Bool[np.ndarray, " W"]
    weight: Float[np.ndarray, " W"]

    @classmethod
    def from_spec(cls, spec: ParamSpec) -> RowLayout:
        """The layout of the rows of a spec."""
        groups: list[range] = []
        one_hot, weight = np.zeros(spec.width, bool), np.zeros(spec.width, np.float32)
        for parameter in spec.parameters:
            place = spec.slices[parameter.name]
            columns = range(place.start, place.stop)
            categorical = isinstance(parameter, Categorical)
            groups += [columns] if categorical else [range(column, column + 1) for column in columns]
            one_hot[place] = categorical
            weight[place] = (1.0 if categorical else 1.0 / len(columns)) / len(spec.parameters)
        widest = max(map(len, groups))
        padded = np.array([[*group, *[group[0]] * (widest - len(group))] for group in groups])
        present = np.array([np.arange(widest) < len(group) for group in groups])
        of_column = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return cls(padded, present, of_column, one_hot, weight)

    def log_softmax(self, prediction: Float[Array, "B W"]) -> Float[Array, "B W"]:
        """The log softmax within each group; 0 for numbers."""
        normaliser = jax.nn.logsumexp(prediction[:, self.columns], axis=-1, where=self.present)
        return prediction - normaliser[:, self.group]


def latent_loss(output: FlowVAEOutput) -> Float[Array, ""]:
    """The loss K of eq. (3): a one-sample estimate of the divergence of the flow's posterior from N(0, 1), weighted.

    The constants of both normal densities cancel.
    """
    deviation = jnp.square(output.z_0 - output.mu) * jnp.exp(-output.log_var)
    density_ratio = 0.5 * (jnp.square(output.z_k) - output.log_var - deviation).sum(axis=-1)
    return LATENT_WEIGHT * (density_ratio - output.log_det).mean()


def parameter_loss(prediction: Float[Array, "B W"], rows: Float[Array, "B W"], layout: RowLayout) -> Float[Array, " B"]:
    """The loss P of eq. (4) for every example of a batch.

    Args:
      rows: true rows on the model's scale; a one-hot group is 1 at its category and -1 elsewhere.
    """
    cross_entropy = -0.5 * (rows + 1.0) * layout.log_softmax(prediction)
    per_column = jnp.where(layout.one_hot, cross_entropy, jnp.square(prediction - rows))
    return (per_column * layout.weight).sum(axis=-1)


def predicted_rows(prediction: Float[Array, "B W"], layout: RowLayout) -> Float[Array, "B W"]:
    """Rows on the model's scale: numbers as predicted, logits of categories turned into probabilities."""
    return jnp.where(layout.one_hot, 2.0 * jnp.exp(layout.log_softmax(prediction)) - 1.0, prediction)


@dataclass(frozen=True)
class FlowVAEMethod:
    """The method of the VAE with two normalising flows, validated by its loss on parameters.

    Attributes:
      beta: eq. (5), step to weight.
    """

    layout: RowLayout
    beta: optax.Schedule
    names: tuple[str, ...] = ("loss_parameters",)
    times: tuple[float, ...] = ()

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, task: Task) -> FlowVAEMethod:
        """The settings of a config's ``model.beta``. Raises UserError for a task without a spec."""
        if task.spec is None:
            raise UserError("model.kind=flow_vae is made for spectrograms")
        beta = config.model.beta
        return cls(RowLayout.from_spec(task.spec), optax.linear_schedule(beta.start, beta.end, beta.steps))

    def draw(self, key: Array, shape: tuple[int, int]) -> Float[Array, "B W"]:
        """The noise of the posterior."""
        return jax.random.normal(key, shape)

    def loss(
        self, model: FlowVAE, examples: Examples, draws: Float[Array, "B W"], step: Array
    ) -> tuple[Array, Metrics]:
        """The loss of eq. (1), and each of its terms without beta."""
        mel, _, x1 = examples
        output = model(mel, draws)
        beta = jnp.asarray(self.beta(step), jnp.float32)
        reconstruction = jnp.square(output.reconstruction - mel).mean()
        latent = latent_loss(output)
        parameters = parameter_loss(output.prediction, x1, self.layout).mean()
        total = reconstruction + beta * latent + parameters
        terms = {"loss_reconstruction": reconstruction, "loss_latent": latent, "loss_parameters": parameters}
        return total, {"loss": total, "beta": beta, **terms}

    def errors(self, make_model: Callable[[], FlowVAE], examples: Examples) -> Float[Array, "1 B"]:
        """The loss on parameters of every example, without noise."""
        return parameter_loss(make_model()(examples.inputs).prediction, examples.x1, self.layout)[None]

    def rows(
        self,
        model: FlowVAE,
        inputs: Float[Array, "B *S"],
        x0: Float[Array, "B *K W"],
        sampling: Sampling,
        given: Given = NOTHING,
    ) -> Float[Array, "B *K W"]:
        """The row predicted from the posterior's mean, repeated for every noise row."""
        return repeat_for_draws(predicted_rows(model.predict(inputs), self.layout), x0)
