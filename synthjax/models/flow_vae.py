"""Variational autoencoder with two normalising flows, the paper's baseline (Le Vaillant, Dutoit, Dekeyser 2021).

    (mu, log s^2) = encode(y)                                (1)  of a standardised spectrogram y
    z_0 = mu + s eps,  eps ~ N(0, 1)                         (2)  in training; z_0 = mu otherwise
    z_K = latent_flow(z_0)                                   (3)  a Real NVP
    y^  = decode(z_K)                                        (4)  the reconstruction
    x^  = regression_flow(z_K)                               (5)  the parameter row, by another Real NVP

A Real NVP keeps the width, so that the latent space is as wide as a row. Batch normalisation holds running statistics
(``nnx.BatchStat``). A call with noise updates them; ``train_step`` carries them from step to step.

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

from synthjax.models.layers import conv, linear
from synthjax.models.norms import BatchNorm
from synthjax.models.real_nvp import RealNVP

Size = tuple[int, int]

leaky_relu = partial(jax.nn.leaky_relu, negative_slope=0.1)


class Stage(NamedTuple):
    """Odd kernel and stride over (mels, frames). Padding by half the kernel leaves ceil(size / stride)."""

    kernel: Size
    stride: Size


# The encoder's stages; the decoder runs them backwards.
STAGES = (*[Stage((3, 5), (2, 2))] * 5, Stage((3, 5), (1, 4)), Stage((5, 5), (2, 2)))


def feature_sizes(mels: int, frames: int) -> list[Size]:
    """(rows, columns) of the spectrogram and of the feature map after each of the encoder's stages."""
    sizes = [(mels, frames)]
    for stage in STAGES:
        rows, columns = (-(-size // step) for size, step in zip(sizes[-1], stage.stride, strict=True))
        sizes.append((rows, columns))
    return sizes


class ConvStage(nnx.Module):
    """h = Resize(x); LeakyReLU(h + Depthwise(LeakyReLU(Pointwise(BN h)))).

    Args:
      upsample: None: Resize is the strided convolution of ``stage``. Else it is the transposed convolution from feature
        maps of the first size to feature maps of the second.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        stage: Stage,
        *,
        upsample: tuple[Size, Size] | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        padding = [(size // 2, size // 2) for size in stage.kernel]
        if upsample is not None:
            axes = zip(padding, stage.stride, *upsample, strict=True)
            padding = [(half, half + after - 1 - (before - 1) * step) for (half, _), step, before, after in axes]
        self.resize = conv(
            inputs,
            channels,
            stage.kernel,
            stride=stage.stride,
            padding=tuple(padding),  # A list would make the module's graph unhashable.
            transposed=upsample is not None,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(channels, dtype=jnp.float32, rngs=rngs)
        self.pointwise = conv(channels, channels, (1, 1), dtype=dtype, rngs=rngs)
        self.depthwise = conv(channels, channels, stage.kernel, groups=channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B R Q C"], *, train: bool) -> Float[Array, "B R2 Q2 C2"]:
        h = self.resize(x)
        y = leaky_relu(self.pointwise(self.norm(h, use_running_average=not train)))
        return leaky_relu(h + self.depthwise(y))


class ConvEncoder(nnx.Module):
    """Eq. (1): a stage for each of ``channels``, a 1 x 1 convolution, then Linear and BN of the flattened features.

    Raises:
      ValueError: unless ``channels`` has one number for each stage.
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
            self.stages.append(ConvStage(inputs, outputs, stage, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.mix = conv(inputs, inputs, (1, 1), dtype=dtype, rngs=rngs)
        rows, columns = feature_sizes(mels, frames)[-1]
        self.out = linear(inputs * rows * columns, 2 * width, ("mlp", "embed"), dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(2 * width, dtype=jnp.float32, rngs=rngs)

    def __call__(self, mel: Float[Array, "B C M F"], *, train: bool) -> tuple[Float[Array, "B W"], Float[Array, "B W"]]:
        """The mean and the logarithm of the variance of the posterior, float32."""
        x = jnp.moveaxis(mel, 1, -1)
        for stage in self.stages:
            x = stage(x, train=train)
        features = jnp.moveaxis(leaky_relu(self.mix(x)), -1, 1)  # Flattened channel-major, as in the reference.
        normed = self.norm(self.out(features.reshape(features.shape[0], -1)), use_running_average=not train)
        mu, log_var = jnp.split(normed, 2, axis=-1)
        return mu, log_var


class ConvDecoder(nnx.Module):
    """Eq. (4): Linear to the encoder's last feature map, then its stages backwards with transposed convolutions.

    The last stage, too, ends in LeakyReLU, as in the reference: values below the mean come out a tenth as large.

    Raises:
      ValueError: unless ``channels`` has one number for each stage but the last.
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
            self.stages.append(
                ConvStage(features, stage_outputs, stage, upsample=(source, target), dtype=dtype, rngs=rngs)
            )
            features = stage_outputs

    def __call__(self, z: Float[Array, "B W"], *, train: bool) -> Float[Array, "B C M F"]:
        """A standardised spectrogram, float32."""
        x = jnp.moveaxis(self.enter(z).reshape(-1, *self.first), 1, -1)
        for stage in self.stages:
            x = stage(x, train=train)
        return jnp.moveaxis(x, -1, 1).astype(jnp.float32)


class FlowVAEOutput(NamedTuple):
    """The values that the loss needs, all float32.

    ``prediction`` is eq. (5) without an output activation: numbers on the model's scale [-1, 1], and logits for the
    categories of each one-hot group (``methods.flow_vae.predicted_rows`` turns it into a row).
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

    The PyTorch code decodes scalar pitch by truncation, ``Discrete.decode`` by rounding. To compare imported weights
    with the published figures, decode ``floor(24 x + 48)`` (x in [0, 1]): half a semitone lower on average.

    Args:
      spectrogram_shape: (C, M, F).
      width: W, columns of a row and of the latent space.
      encoder_channels: channels after each stage; the last number is also that of the decoder's first feature map.
      decoder_channels: channels after each stage but the last, which has C.
      hidden: H of both flows' networks.
      blocks: residual blocks in each network.
      latent_layers: couplings of the latent flow, an even number.
      regression_layers: couplings of the regression flow, an even number.
      dtype: dtype of activations in convolutions and networks; latents, couplings and statistics are float32.
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
          noise: eps of eq. (2). With noise this is a training step: batch normalisation uses the batch's statistics
            and updates the running ones. Without noise z_0 is the posterior's mean, and nothing is updated.
        """
        train = noise is not None
        mu, log_var = self.encoder(mel, train=train)
        z_0 = mu if noise is None else mu + jnp.exp(0.5 * log_var) * noise
        z_k, log_det = self.latent_flow(z_0, train=train)
        prediction, _ = self.regression_flow(z_k, train=train)
        reconstruction = self.decoder(z_k, train=train)
        return FlowVAEOutput(reconstruction, prediction, mu, log_var, z_0, z_k, log_det)

    def predict(self, mel: Float[Array, "B C M F"]) -> Float[Array, "B W"]:
        """The prediction alone, from the posterior's mean and with the running statistics."""
        mu, _ = self.encoder(mel, train=False)
        return self.regression_flow(self.latent_flow(mu)[0])[0]
