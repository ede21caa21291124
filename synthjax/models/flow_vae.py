"""Variational autoencoder with two normalising flows, the paper's baseline (Le Vaillant, Dutoit, Dekeyser 2021).

    (mu, log s^2) = encode(y)                                (1)  of a standardised spectrogram y
    z_0 = mu + s eps,  eps ~ N(0, 1)                         (2)  in training; z_0 = mu otherwise
    z_K = latent_flow(z_0)                                   (3)  a Real NVP
    y^  = decode(z_K)                                        (4)  the reconstruction
    x^  = regression_flow(z_K)                               (5)  the parameter row, by another Real NVP

A Real NVP keeps the width, so that the latent space is as wide as a row. Batch normalisation holds running statistics
(``nnx.BatchStat``), which a call with noise moves and ``train_step`` carries from step to step beside the parameters.

The reference's sizes (encoder 16, 32, 64, 64, 128, 256, 512 channels, decoder 512, 256, 128, 64, 32, 16; H = 512, 2
blocks, 6 and 16 couplings, no dropout) give the published 39.5 M parameters for Surge Simple (W = 92) and 44.3 M for
Surge Full (W = 300).

Shapes: B batch, W row width, C channels, M mels, F frames, R and Q rows and columns of a feature map, H hidden width.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.batch_norm import BatchNorm
from synthjax.models.layers import linear, uniform_fan_in
from synthjax.models.real_nvp import RealNVP

Size = tuple[int, int]

leaky_relu = partial(jax.nn.leaky_relu, negative_slope=0.1)


class Stage(NamedTuple):
    """Odd kernel and stride over (mels, frames); zeros pad by half the kernel, so that ceil(size / stride) is left."""

    kernel: Size
    stride: Size


# Of the encoder; the decoder goes through them backwards.
STAGES = (*[Stage((3, 5), (2, 2))] * 5, Stage((3, 5), (1, 4)), Stage((5, 5), (2, 2)))


def feature_sizes(mels: int, frames: int) -> list[Size]:
    """(rows, columns) of the spectrogram and after each of the encoder's stages."""
    sizes = [(mels, frames)]
    for stage in STAGES:
        rows, columns = (-(-size // step) for size, step in zip(sizes[-1], stage.stride, strict=True))
        sizes.append((rows, columns))
    return sizes


def conv(
    inputs: int,
    outputs: int,
    kernel: Size,
    *,
    stride: Size = (1, 1),
    groups: int = 1,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution over (R, Q), zero-padded by half its odd kernel, that starts as PyTorch's."""
    init = uniform_fan_in(inputs // groups * kernel[0] * kernel[1])
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size=kernel,
        strides=stride,
        padding=tuple((size // 2, size // 2) for size in kernel),
        feature_group_count=groups,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        kernel_metadata={"axes": (None, None, None, "mlp")},
        bias_metadata={"axes": ("mlp",)},
        rngs=rngs,
    )


def transposed_conv(
    inputs: int, outputs: int, stage: Stage, source: Size, target: Size, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.ConvTranspose:
    """From a feature map of size ``source`` to ``target``, undoing the sizes of a strided convolution."""
    # PyTorch takes the fan-in of its weight's second axis, which here is the output's.
    init = uniform_fan_in(outputs * stage.kernel[0] * stage.kernel[1])
    axes = zip(stage.kernel, stage.stride, source, target, strict=True)
    padding = [(size // 2, size // 2 + (after - 1) - (before - 1) * step) for size, step, before, after in axes]
    return nnx.ConvTranspose(
        inputs,
        outputs,
        kernel_size=stage.kernel,
        strides=stage.stride,
        padding=tuple(padding),  # A list would make the module's graph unhashable.
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        kernel_metadata={"axes": (None, None, None, "mlp")},
        bias_metadata={"axes": ("mlp",)},
        rngs=rngs,
    )


class ConvStage(nnx.Module):
    """h = Resize(x); LeakyReLU(h + Depthwise(LeakyReLU(Pointwise(BN h)))), Resize a strided or transposed Conv."""

    def __init__(self, resize: nnx.Conv | nnx.ConvTranspose, kernel: Size, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        channels = resize.out_features
        self.resize = resize
        self.norm = BatchNorm(channels, dtype=jnp.float32, rngs=rngs)
        self.pointwise = conv(channels, channels, (1, 1), dtype=dtype, rngs=rngs)
        self.depthwise = conv(channels, channels, kernel, groups=channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B R Q C"], *, train: bool) -> Float[Array, "B R2 Q2 C2"]:
        h = self.resize(x)
        y = leaky_relu(self.pointwise(self.norm(h, use_running_average=not train)))
        return leaky_relu(h + self.depthwise(y))


class ConvEncoder(nnx.Module):
    """Eq. (1): a stage for each of ``channels``, a 1 x 1 convolution, then Linear and BN of the flattened features.

    Raises:
      ValueError: unless ``channels`` has one number for each of ``STAGES``.
    """

    def __init__(
        self,
        spectrogram_shape: tuple[int, int, int],
        width: int,
        *,
        channels: tuple[int, ...],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        inputs, mels, frames = spectrogram_shape
        self.stages: nnx.List[ConvStage] = nnx.List()
        for stage, outputs in zip(STAGES, channels, strict=True):
            down = conv(inputs, outputs, stage.kernel, stride=stage.stride, dtype=dtype, rngs=rngs)
            self.stages.append(ConvStage(down, stage.kernel, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.mix = conv(inputs, inputs, (1, 1), dtype=dtype, rngs=rngs)
        rows, columns = feature_sizes(mels, frames)[-1]
        self.out = linear(inputs * rows * columns, 2 * width, ("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(2 * width, dtype=jnp.float32, rngs=rngs)

    def __call__(self, mel: Float[Array, "B C M F"], *, train: bool) -> tuple[Float[Array, "B W"], Float[Array, "B W"]]:
        """Mean and logarithm of the variance of the posterior, float32."""
        x = jnp.moveaxis(mel, 1, -1)
        for stage in self.stages:
            x = stage(x, train=train)
        features = jnp.moveaxis(leaky_relu(self.mix(x)), -1, 1)  # Flattened channel-major, as in the reference.
        normed = self.norm(self.out(features.reshape(features.shape[0], -1)), use_running_average=not train)
        mu, log_var = jnp.split(normed, 2, axis=-1)
        return mu, log_var


class ConvDecoder(nnx.Module):
    """Eq. (4): Linear to the encoder's last feature map, then its stages backwards with transposed convolutions.

    The last stage ends in LeakyReLU as the others do, so that values below the mean come out a tenth as large (a quirk
    of the reference).

    Raises:
      ValueError: unless ``channels`` has one number for each of ``STAGES`` but the last to run.
    """

    def __init__(
        self,
        spectrogram_shape: tuple[int, int, int],
        width: int,
        *,
        features: int,
        channels: tuple[int, ...],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        outputs, mels, frames = spectrogram_shape
        sizes = feature_sizes(mels, frames)
        self.first = (features, *sizes[-1])
        self.enter = linear(width, features * sizes[-1][0] * sizes[-1][1], ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.stages: nnx.List[ConvStage] = nnx.List()
        backwards = zip(STAGES[::-1], sizes[:0:-1], sizes[-2::-1], (*channels, outputs), strict=True)
        for stage, source, target, stage_outputs in backwards:
            up = transposed_conv(features, stage_outputs, stage, source, target, dtype=dtype, rngs=rngs)
            self.stages.append(ConvStage(up, stage.kernel, dtype=dtype, rngs=rngs))
            features = stage_outputs

    def __call__(self, z: Float[Array, "B W"], *, train: bool) -> Float[Array, "B C M F"]:
        """A standardised spectrogram, float32."""
        x = jnp.moveaxis(self.enter(z).reshape(-1, *self.first), 1, -1)
        for stage in self.stages:
            x = stage(x, train=train)
        return jnp.moveaxis(x, -1, 1).astype(jnp.float32)


class FlowVAEOutput(NamedTuple):
    """What the loss needs, all float32.

    ``prediction`` is eq. (5) without an output activation: numbers on the model's scale [-1, 1], and for each one-hot
    group the logits of its categories (``flow_vae_loss.predicted_rows`` makes a row of it).
    """

    reconstruction: Float[Array, "B C M F"]
    prediction: Float[Array, "B W"]
    mu: Float[Array, "B W"]
    log_var: Float[Array, "B W"]
    z_0: Float[Array, "B W"]
    z_k: Float[Array, "B W"]
    log_det: Float[Array, " B"]


class FlowVAE(nnx.Module):
    """Eq. (1) to (5).

    The PyTorch code reads scalar pitch back by truncation, where ``Discrete.decode`` rounds: whoever compares imported
    weights with its published figures has to decode ``floor(24 x + 48)`` (x the column in [0, 1]), half a semitone
    lower on average.

    Args:
      spectrogram_shape: (C, M, F).
      width: W, columns of a row and of the latent space.
      encoder_channels: of each stage's output, the last is also the decoder's first feature map.
      decoder_channels: of each stage's output but the last, which has C.
      hidden: H of both flows' networks.
      blocks: residual blocks in each of them.
      latent_layers: couplings of the latent flow, even.
      regression_layers: couplings of the regression flow, even.
      dtype: of activations in convolutions and networks; latents, couplings and statistics are float32.
    """

    def __init__(
        self,
        spectrogram_shape: tuple[int, int, int],
        width: int,
        *,
        encoder_channels: tuple[int, ...],
        decoder_channels: tuple[int, ...],
        hidden: int,
        blocks: int,
        latent_layers: int,
        regression_layers: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder = ConvEncoder(spectrogram_shape, width, channels=encoder_channels, dtype=dtype, rngs=rngs)
        self.decoder = ConvDecoder(
            spectrogram_shape,
            width,
            features=encoder_channels[-1],
            channels=decoder_channels,
            dtype=dtype,
            rngs=rngs,
        )
        flow = partial(RealNVP, width, hidden=hidden, blocks=blocks, dtype=dtype, rngs=rngs)
        self.latent_flow = flow(layers=latent_layers)
        self.regression_flow = flow(layers=regression_layers)

    def __call__(self, mel: Float[Array, "B C M F"], noise: Float[Array, "B W"] | None = None) -> FlowVAEOutput:
        """Reconstruction, latents and prediction of standardised spectrograms.

        Args:
          noise: eps of eq. (2), which makes this a training step: batch normalisation takes the batch's statistics
            and updates the running ones. Without it the posterior's mean is used, and nothing changes.
        """
        train = noise is not None
        mu, log_var = self.encoder(mel, train=train)
        z_0 = mu if noise is None else mu + jnp.exp(0.5 * log_var) * noise
        z_k, log_det = self.latent_flow(z_0, train=train)
        prediction, _ = self.regression_flow(z_k, train=train)
        reconstruction = self.decoder(z_k, train=train)
        return FlowVAEOutput(reconstruction, prediction, mu, log_var, z_0, z_k, log_det)

    def predict(self, mel: Float[Array, "B C M F"]) -> Float[Array, "B W"]:
        """``prediction`` alone, by the posterior's mean and the running statistics."""
        mu, _ = self.encoder(mel, train=False)
        return self.regression_flow(self.latent_flow(mu)[0])[0]
