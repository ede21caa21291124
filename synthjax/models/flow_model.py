"""Encoder and vector field as one model."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Bool, Float

from synthjax.models.mlp_field import MLPField
from synthjax.models.vector_fields import TransformerField


class FlowModel(nnx.Module):
    """v(x, t | encode(sound)).

    Shapes: B batch, S shape of a sound, W row width, L layers, D conditioning width.
    """

    def __init__(self, encoder: nnx.Module, field: TransformerField | MLPField) -> None:
        self.encoder = encoder
        self.field = field

    def encode(self, inputs: Float[Array, "B *S"]) -> Float[Array, "B L D"] | Float[Array, "B D"]:
        """Conditioning of sounds: a row for each layer of the field, or one for all."""
        return self.encoder(inputs)

    def velocity(
        self,
        x: Float[Array, "B W"],
        t: Float[Array, " B"],
        z: Float[Array, "B L D"] | Float[Array, "B D"],
        dropped: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B W"]:
        """The vector field in float32; ``dropped`` examples are unconditional."""
        return self.field(x, t, z, dropped)

    def penalty(self) -> Float[Array, ""]:
        """Unweighted penalty on the parameter projection."""
        return self.field.penalty()
