"""CNN encoder of the k-osc task: the magnitude spectrum of a signal to one conditioning row.

Shapes: B batch, S samples of the signal, F frequency bins (fewer after each stage), C channels, D width.
"""

from __future__ import annotations

from typing import Literal, cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.layers import ResidualMLP, conv, gelu, linear
from synthjax.models.norms import BatchNorm, LayerNorm

NormKind = Literal["batch", "layer"]
KERNEL, DOWN_KERNEL, STRIDE = 7, 6, 3


def _norm(kind: NormKind, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> BatchNorm | LayerNorm:
    return {"batch": BatchNorm, "layer": LayerNorm}[kind](channels, dtype=dtype, rngs=rngs)


class SpectralBlock(nnx.Module):
    """skip(x) + norm(GELU(Conv_1(norm(GELU(Conv_7 x))))); the skip is a Conv_1 where the channels change.

    Layer normalisation has no second norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: NormKind, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = conv(in_channels, out_channels, (KERNEL,), dtype=dtype, rngs=rngs)
        self.norm1 = _norm(norm, out_channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(out_channels, out_channels, (1,), dtype=dtype, rngs=rngs)
        self.norm2 = _norm(norm, out_channels, dtype=dtype, rngs=rngs) if norm == "batch" else None
        changes = in_channels != out_channels
        self.skip = conv(in_channels, out_channels, (1,), dtype=dtype, rngs=rngs) if changes else None

    def __call__(self, x: Float[Array, "B F C"]) -> Float[Array, "B F Cout"]:
        y = gelu(self.conv2(self.norm1(gelu(self.conv1(x)))))
        if self.norm2 is not None:
            y = self.norm2(y)
        return y + (x if self.skip is None else self.skip(x))


class SpectralStage(nnx.Module):
    """Two blocks, then GELU(Conv(norm x)) that divides the bins by three and doubles the channels."""

    def __init__(self, in_channels: int, channels: int, *, norm: NormKind, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.block1 = SpectralBlock(in_channels, channels, norm=norm, dtype=dtype, rngs=rngs)
        self.block2 = SpectralBlock(channels, channels, norm=norm, dtype=dtype, rngs=rngs)
        self.norm = _norm(norm, channels, dtype=dtype, rngs=rngs)
        self.down = conv(channels, 2 * channels, (DOWN_KERNEL,), stride=STRIDE, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B F C"]) -> Float[Array, "B F//3 2*C"]:
        return gelu(self._downsample(self.norm(self.block2(self.block1(x)))))

    def _downsample(self, x: Float[Array, "B F C"]) -> Float[Array, "B F//3 2*C"]:
        """The convolution ``self.down`` with one bin of padding, as two matrix products.

        Its kernel spans two strides, so that each half meets whole blocks of a stride's bins. XLA's gradient of the
        strided convolution can take a fifth of a step on a CPU.
        """
        dtype = self.norm.dtype
        kernel, bias = (
            cast(nnx.Param, parameter)[...].astype(dtype) for parameter in (self.down.kernel, self.down.bias)
        )
        first, second = kernel.reshape(2, STRIDE * kernel.shape[1], kernel.shape[2])
        padded = jnp.pad(x.astype(dtype), ((0, 0), (1, 1), (0, 0)))
        count = padded.shape[1] // STRIDE
        blocks = padded[:, : STRIDE * count].reshape(x.shape[0], count, -1)
        return blocks[:, :-1] @ first + blocks[:, 1:] @ second + bias


class SpectralEncoder(nnx.Module):
    """|rfft(x)| / S through convolutional stages, a Linear over all that is left, and one residual MLP block.

    A new module's batch normalisation uses its running statistics, which are ``nnx.BatchStat`` variables. After
    ``train()`` it normalises by the batch, and moves the statistics by a tenth towards the batch's; ``train_step``
    carries them from step to step. Under jit the batch is the global one, whatever the mesh.

    Args:
      samples: S, of which all S/2 + 1 bins are used.
      dim: D.
      channels: of the first stage; every further one has twice as many.
    """

    def __init__(
        self,
        samples: int,
        *,
        dim: int,
        channels: int,
        stages: int,
        norm: NormKind,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.stages: nnx.List[SpectralStage] = nnx.List()
        inputs, bins = 1, samples // 2 + 1
        for stage in range(stages):
            width = channels * 2**stage
            self.stages.append(SpectralStage(inputs, width, norm=norm, dtype=dtype, rngs=rngs))
            inputs, bins = 2 * width, (bins + 2 - DOWN_KERNEL) // STRIDE + 1
        hidden = samples // 2
        self.flat = linear(bins * inputs, hidden, ("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.out = ResidualMLP(hidden, hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, signal: Float[Array, "B S"]) -> Float[Array, "B D"]:
        x = jnp.abs(jnp.fft.rfft(signal))[..., None] / signal.shape[-1]
        for stage in self.stages:
            x = stage(x)
        # Flattened channel-major, as in the reference.
        return self.out(self.flat(x.swapaxes(1, 2).reshape(x.shape[0], -1)))
