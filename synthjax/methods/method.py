"""The methods: how each kind of model is trained, validated and sampled.

Shapes: B batch, K draws for each sound, W row width, N validation losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ml_collections
from jaxtyping import Array, Float

from synthjax.methods.examples import Examples, Metrics
from synthjax.methods.flow import FlowMatching
from synthjax.methods.flow_vae import FlowVAEMethod
from synthjax.methods.regression import Regression
from synthjax.methods.sampling import NOTHING, Given, Sampling
from synthjax.methods.task import Task


class Method(Protocol):
    """The method of one kind of model. Jitted functions call its functions, with a model made inside their trace."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the N validation losses."""
        ...

    @property
    def times(self) -> tuple[float, ...]:
        """The flow's times at which the validation losses are taken; () for other methods."""
        ...

    def draw(self, key: Array, shape: tuple[int, int]) -> Any:
        """The random numbers of the loss of rows (B, W), besides the noise x0: arrays that lead with the B axis."""
        ...

    def loss(self, model: Any, examples: Examples, draws: Any, step: Array) -> tuple[Array, Metrics]:
        """The loss that training minimises in step ``step``, and figures about it, the first of which is ``loss``.

        Each is a mean over the examples, or does not depend on them.
        """
        ...

    def errors(self, make_model: Callable[[], Any], examples: Examples) -> Float[Array, "N B"]:
        """Validation losses of every example, without random numbers."""
        ...

    def rows(
        self,
        model: Any,
        inputs: Float[Array, "B *S"],
        x0: Float[Array, "B *K W"],
        sampling: Sampling,
        given: Given = NOTHING,
    ) -> Float[Array, "B *K W"]:
        """Rows on the model's scale, one for each noise row; a model that draws nothing gives K equal rows.

        A flow draws the columns that are not known to fit those that are, and begins with the start; other models
        ignore what is given.
        """
        ...


# By model.kind; the keys are those of ``synthjax.models.build.KINDS``.
METHODS: dict[str, Callable[[ml_collections.ConfigDict, Task], Method]] = {
    "flow": FlowMatching.from_config,
    "regression": Regression.from_config,
    "flow_vae": FlowVAEMethod.from_config,
}


def make_method(config: ml_collections.ConfigDict, task: Task) -> Method:
    """The method of a config's ``model.kind``. Raises UserError if the task does not fit it."""
    return METHODS[config.model.kind](config, task)
