"""The flow model: an encoder and a vector field."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Bool, Float

from synthjax.models.vector_fields import VectorField


class FlowModel(nnx.Module):
    """v(x, t | encode(sound)).

    Shapes: B batch, S shape of a sound, W row width, L layers, D conditioning width.
    """

    def __init__(self, encoder: nnx.Module, field: VectorField) -> None:
        self.encoder = encoder
        self.field = field

    def encode(self, inputs: Float[Array, "B *S"]) -> Float[Array, "B L D"] | Float[Array, "B D"]:
        """The conditioning of sounds: a row for each layer of the field, or one row for all."""
        return self.encoder(inputs)

    def velocity(
        self,
        x: Float[Array, "B W"],
        t: Float[Array, " B"],
        z: Float[Array, "B L D"] | Float[Array, "B D"],
        dropped: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B W"]:
        """The velocity, float32; examples marked in ``dropped`` are unconditional."""
        return self.field(x, t, z, dropped)

    def penalty(self) -> Float[Array, ""]:
        """The penalty on the parameter projection, unweighted."""
        return self.field.penalty()
