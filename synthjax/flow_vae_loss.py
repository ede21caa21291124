r"""Loss of the flow VAE (Le Vaillant, Dutoit, Dekeyser 2021), in the names of ``models.flow_vae``.

    L = R + beta(n) K + P                                                      (1)  at step n
    R = E (y^ - y)^2                                                           (2)  over all elements
    K = 0.2 E [log N(z_0; mu, s^2) - log N(z_K; 0, 1) - log |det dz_K/dz_0|]   (3)  Rezende, Mohamed 2015, eq. 15
    P = E over parameters of E (x^ - x)^2 or -log softmax(x^)_category         (4)  numbers, one-hot groups
    beta(n) from 0.1 to 0.2, linear over the first 60,000 steps                (5)

E in (3) and (4) is also the mean over the batch; (3) sums over columns. Its 0.2 comes on top of beta in the reference's
code, though it is the value that beta itself has in Le Vaillant's: the latent term in fact weighs 0.02 to 0.04.

Shapes: B batch, W row width, G groups of columns, K columns of the widest group, C channels, M mels, F frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from data_pipeline.param_spec import Categorical, ParamSpec
from synthjax.models.flow_vae import FlowVAEOutput

LATENT_WEIGHT = 0.2


@dataclass(frozen=True, eq=False)
class RowLayout:
    """What eq. (4) needs of a spec. Every number is a group of one column, every one-hot parameter one of its columns.

    ``columns`` are those of each group, filled up where ``present`` is False; ``group`` is each column's group.
    ``weight`` is each column's share in (4): a parameter counts once, however many columns it has.
    """

    columns: Int[np.ndarray, "G K"]
    present: Bool[np.ndarray, "G K"]
    group: Int[np.ndarray, " W"]
    one_hot: Bool[np.ndarray, " W"]
    weight: Float[np.ndarray, " W"]

    @classmethod
    def from_spec(cls, spec: ParamSpec) -> RowLayout:
        """The layout of a spec's rows."""
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
        """log softmax within each group; 0 for numbers."""
        normaliser = jax.nn.logsumexp(prediction[:, self.columns], axis=-1, where=self.present)
        return prediction - normaliser[:, self.group]


class FlowVAELosses(NamedTuple):
    """The terms of eq. (1), unweighted by beta."""

    reconstruction: Float[Array, ""]
    latent: Float[Array, ""]
    parameters: Float[Array, ""]

    def total(self, beta: Float[Array, ""] | float) -> Float[Array, ""]:
        """Eq. (1)."""
        return self.reconstruction + beta * self.latent + self.parameters


def beta_schedule(start: float, end: float, steps: int) -> optax.Schedule:
    """Eq. (5): step to beta, linear from ``start`` at step 0 to ``end`` at ``steps``, constant from there."""
    return optax.linear_schedule(start, end, steps)


def reconstruction_loss(reconstruction: Float[Array, "B C M F"], mel: Float[Array, "B C M F"]) -> Float[Array, ""]:
    """Eq. (2), of standardised spectrograms."""
    return jnp.square(reconstruction - mel).mean()


def latent_loss(output: FlowVAEOutput) -> Float[Array, ""]:
    """Eq. (3): a one-sample estimate of the divergence of the flow's posterior from N(0, 1), weighted.

    The constants of both normal densities cancel.
    """
    deviation = jnp.square(output.z_0 - output.mu) * jnp.exp(-output.log_var)
    density_ratio = 0.5 * (jnp.square(output.z_k) - output.log_var - deviation).sum(axis=-1)
    return LATENT_WEIGHT * (density_ratio - output.log_det).mean()


def parameter_loss(prediction: Float[Array, "B W"], rows: Float[Array, "B W"], layout: RowLayout) -> Float[Array, ""]:
    """Eq. (4).

    Args:
      rows: true rows on the model's scale, one-hot groups -1 but for 1 at the category.
    """
    cross_entropy = -0.5 * (rows + 1.0) * layout.log_softmax(prediction)
    per_column = jnp.where(layout.one_hot, cross_entropy, jnp.square(prediction - rows))
    return (per_column * layout.weight).sum(axis=-1).mean()


def flow_vae_losses(
    output: FlowVAEOutput, mel: Float[Array, "B C M F"], rows: Float[Array, "B W"], layout: RowLayout
) -> FlowVAELosses:
    """All terms for standardised spectrograms and rows on the model's scale."""
    return FlowVAELosses(
        reconstruction=reconstruction_loss(output.reconstruction, mel),
        latent=latent_loss(output),
        parameters=parameter_loss(output.prediction, rows, layout),
    )


def predicted_rows(prediction: Float[Array, "B W"], layout: RowLayout) -> Float[Array, "B W"]:
    """Rows on the model's scale: probabilities of categories take the place of their logits, numbers stay."""
    return jnp.where(layout.one_hot, 2.0 * jnp.exp(layout.log_softmax(prediction)) - 1.0, prediction)
