"""Spectrogram encoders: a standardised mel spectrogram (B, C, M, F) to conditioning rows (B, L, D).

Shapes: B batch, C channels, M mels, F frames, N tokens, L conditioning rows (one per vector-field layer), D width.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.kernels.remat import Remat
from synthjax.models.layers import Attention, FeedForward, conv, gelu, linear, run_layers, stack_layers
from synthjax.models.norms import LayerNorm


class EncoderBlock(nnx.Module):
    """Pre-norm transformer layer: x += MHA(LN x); x += W2 GELU(W1 LN x)."""

    def __init__(self, dim: int, heads: int, ff_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.attention = Attention(dim, heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(dim, ff_dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], first: int | None = None) -> Float[Array, "B Q D"]:
        """The results of the ``first`` tokens (Q); None: of all tokens."""
        x = x[:, :first] + self.attention(self.norm1(x), first)
        return x + self.ff(self.norm2(x))


def padding_to_patches(size: int, patch: int, stride: int) -> int:
    """The number of zeros to append to an axis so that strided patches cover all of it."""
    return -(size - patch) % stride


class SpectrogramTransformer(nnx.Module):
    """Audio spectrogram transformer (Gong, Chung, Glass 2021) with one learned query token per conditioning row.

    Zeros after the data (high mel, late time) complete the last patches. Patches are flattened mel-major. The sequence
    is queries, then patches; learned positions cover both, and only the queries pass through the last Linear.

    Args:
      patch: mels and frames of a patch; with all mels it is a piece of time (as in SSAST, Gong et al. 2022).
      stride: mels and frames from one patch to the next.
      swapped_padding: pads the mel axis by what the time axis needs, and the other way round, as the PyTorch code does
        (12 x 40 patches instead of 13 x 40); models imported from it need the same.
    """

    def __init__(
        self,
        spectrogram_shape: tuple[int, int, int],
        *,
        dim: int,
        layers: int,
        heads: int,
        queries: int,
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] = (10, 10),
        swapped_padding: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        channels, mels, frames = spectrogram_shape
        axes = list(zip((mels, frames), patch, stride, strict=True))
        padding = [padding_to_patches(*axis) for axis in axes]
        self.padding = tuple(padding[::-1] if swapped_padding else padding)
        grid = [(n + pad - size) // step + 1 for (n, size, step), pad in zip(axes, self.padding, strict=True)]
        self.queries, self.dtype = queries, dtype
        self.remat: Remat = "elementwise"
        self.tiled = stride == patch and not swapped_padding
        self.patches = conv(
            channels, dim, patch, stride=stride, padding="VALID", out_axis="embed", dtype=dtype, rngs=rngs
        )
        normal = jax.random.normal
        self.query_tokens = nnx.Param(1e-6 * normal(rngs.params(), (queries, dim)), axes=(None, "embed"))
        positions = queries + grid[0] * grid[1]
        self.positions = nnx.Param(0.02 * normal(rngs.params(), (positions, dim)), axes=(None, "embed"))
        self.blocks = stack_layers(lambda rngs: EncoderBlock(dim, heads, dim, dtype=dtype, rngs=rngs), layers, rngs)
        self.out = linear(dim, dim, ("embed", "mlp"), dtype=dtype, rngs=rngs)

    def __call__(self, mel: Float[Array, "B C M F"]) -> Float[Array, "B L D"]:
        image = jnp.pad(mel, ((0, 0), (0, 0), (0, self.padding[0]), (0, self.padding[1])))
        patches = self._tiles(image) if self.tiled else self._overlapping_patches(image)
        batch, _, _, dim = patches.shape
        queries = jnp.broadcast_to(self.query_tokens[...].astype(self.dtype), (batch, self.queries, dim))
        tokens = jnp.concatenate([queries, patches.reshape(batch, -1, dim)], axis=1)
        tokens = tokens + self.positions[...].astype(self.dtype)
        return self.out(run_layers(self.blocks, tokens, remat=self.remat, first=self.queries))

    def _overlapping_patches(self, image: Float[Array, "B C M F"]) -> Float[Array, "B R Q D"]:
        """Embedded patches in R mel rows and Q time columns."""
        return self.patches(jnp.moveaxis(image, 1, -1))

    def _tiles(self, image: Float[Array, "B C M F"]) -> Float[Array, "B R Q D"]:
        """``_overlapping_patches`` without overlap, as one matrix product: two to three times as fast on CPUs."""
        batch, channels, mels, frames = image.shape
        kernel, bias = (cast(nnx.Param, parameter)[...] for parameter in (self.patches.kernel, self.patches.bias))
        height, width, *_ = kernel.shape
        tiles = image.astype(self.dtype).reshape(batch, channels, mels // height, height, frames // width, width)
        return jnp.einsum("bcrhqw,hwcd->brqd", tiles, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class ResidualConvBlock(nnx.Module):
    """x + Conv(GELU(LN(Conv(GELU(LN x))))), 3 x 3 convolutions, LayerNorm over channels."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.conv1 = conv(channels, channels, (3, 3), dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(channels, channels, (3, 3), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B M F C"]) -> Float[Array, "B M F C"]:
        y = self.conv1(gelu(self.norm1(x)))
        return x + self.conv2(gelu(self.norm2(y)))


class ResidualCNN(nnx.Module):
    """Residual 2-D CNN: each stage halves both axes, doubles the channels and runs ``blocks`` residual blocks.

    Its features are averaged over time but not over mels, which hold the pitch; one Linear gives all L rows.
    """

    def __init__(
        self,
        spectrogram_shape: tuple[int, int, int],
        *,
        dim: int,
        channels: int,
        stages: int,
        blocks: int,
        queries: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        inputs, rows, _ = spectrogram_shape
        self.queries, self.dim = queries, dim
        self.remat: Remat = "elementwise"
        self.downs: nnx.List[nnx.Module] = nnx.List()
        self.stages: nnx.List[ResidualConvBlock] = nnx.List()
        for stage in range(stages):
            outputs = channels * 2**stage
            self.downs.append(conv(inputs, outputs, (3, 3), stride=2, dtype=dtype, rngs=rngs))
            make = partial(lambda rngs, channels: ResidualConvBlock(channels, dtype=dtype, rngs=rngs), channels=outputs)
            self.stages.append(stack_layers(make, blocks, rngs))
            inputs, rows = outputs, -(-rows // 2)
        self.norm = LayerNorm(inputs, dtype=dtype, rngs=rngs)
        self.out = linear(rows * inputs, queries * dim, ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, mel: Float[Array, "B C M F"]) -> Float[Array, "B L D"]:
        x = jnp.moveaxis(mel, 1, -1)
        for down, stage in zip(self.downs, self.stages, strict=True):
            # In a loop, XLA's CPU compiler computes the gradients of convolutions one number at a time.
            x = run_layers(stage, down(x), remat=self.remat, written_out=True)
        pooled = gelu(self.norm(x)).mean(axis=2)  # (B, rows, channels)
        return self.out(pooled.reshape(pooled.shape[0], -1)).reshape(-1, self.queries, self.dim)
