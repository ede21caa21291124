"""The networks of the base flow and of the k-osc task in PyTorch, and their training: the other side of comparisons.

Layers are those that ``synthjax.models`` documents, with the same number of parameters. PyTorch is no requirement of
the project: importing this module raises ImportError where PyTorch is not installed (pip install torch).

Where other programs use the same cores, PyTorch's threads would spin while they wait, and PyTorch would seem several
times as slow as it is. So its threads sleep instead, unless OMP_WAIT_POLICY is set.
"""

from __future__ import annotations

import math
import os
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch reads it while it is imported.

import torch
from torch import nn
from torch.nn import functional

from data_pipeline.console.machine import usable_cores
from synthjax.models.encoders import padding_to_patches


class Training:
    """Adam with clipping for a network; a call makes one step for a loss and returns the loss as a number."""

    def __init__(self, config: Any, network: Any) -> None:
        self._weights, self._clip, optim = list(network.parameters()), config.optim.clip_norm, config.optim
        self.parameters = sum(weight.numel() for weight in self._weights)
        options = {"lr": optim.lr, "betas": (optim.b1, optim.b2), "eps": optim.eps, "weight_decay": optim.weight_decay}
        self._optimizer = torch.optim.Adam(self._weights, **options)

    def __call__(self, loss: Any) -> float:
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, self._clip)
        self._optimizer.step()
        return loss.item()


def prepare(seed: int) -> None:
    """Seeds PyTorch and lets it use all cores that this process may use."""
    torch.set_num_threads(usable_cores())
    torch.manual_seed(seed)


def flow_loss(encoder: Any, field: Any, settings: Any, sounds: Any, x0: Any, x1: Any) -> Any:
    """Flow matching with guidance dropout, and the penalty on the assignment."""
    t = torch.rand(len(x0), 1, device=x0.device)
    dropped = torch.rand(len(x0), 1, 1, device=x0.device) < settings.guidance_dropout
    z = torch.where(dropped, field.dropout_token, encoder(sounds))
    error = field((1.0 - t) * x0 + t * x1, t, z).float() - (x1 - x0)
    return error.square().mean() + settings.projection_penalty * field.assignment.abs().mean()


def feed_forward(inputs: int, hidden: int, outputs: int) -> Any:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class Attention(nn.Module):
    """Self-attention by PyTorch's fused kernel."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Any) -> Any:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-norm transformer layer; a modulated one is a DiT block."""

    def __init__(self, dim: int, heads: int, hidden: int, *, modulated: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.ff = nn.LayerNorm(dim), feed_forward(dim, hidden, dim)
        self.modulation = nn.Sequential(nn.GELU(), nn.Linear(dim, 6 * dim)) if modulated else None

    def forward(self, x: Any, c: Any = None) -> Any:
        """(B, N, D), and (B, D) for a modulated layer -> (B, N, D)."""
        if self.modulation is None:
            x = x + self.attention(self.norm1(x))
            return x + self.ff(self.norm2(x))
        g1, b1, a1, g2, b2, a2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + a1 * self.attention(g1 * self.norm1(x) + b1)
        return x + a2 * self.ff(g2 * self.norm2(x) + b2)


class SpectrogramEncoder(nn.Module):
    """The spectrogram transformer: one conditioning row for each of ``rows`` layers of the field."""

    def __init__(self, config: Any, rows: int, spectrogram: tuple[int, ...]) -> None:
        super().__init__()
        (channels, *plane), dim = spectrogram, config.dim
        axes = list(zip(plane, config.patch, config.stride, strict=True))
        pads = [padding_to_patches(*axis) for axis in axes]
        self.padding = (0, pads[1], 0, pads[0])
        count = [(size + pad - patch) // stride + 1 for (size, patch, stride), pad in zip(axes, pads, strict=True)]
        self.patches = nn.Conv2d(channels, dim, config.patch, config.stride)
        self.queries = nn.Parameter(1e-6 * torch.randn(rows, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(rows + math.prod(count), dim))
        self.layers = nn.ModuleList(Layer(dim, config.heads, dim, modulated=False) for _ in range(config.layers))
        self.out = nn.Linear(dim, dim)

    def forward(self, mel: Any) -> Any:
        """(B, C, M, F) -> (B, rows, D)."""
        patches = self.patches(functional.pad(mel, self.padding)).flatten(2).transpose(1, 2)
        x = torch.cat([self.queries.expand(len(mel), -1, -1), patches], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.out(x[:, : len(self.queries)])


class Residual(nn.Module):
    """net(x) plus a skip connection: the identity, or ``skip`` where the width changes."""

    def __init__(self, net: Any, skip: Any = None) -> None:
        super().__init__()
        self.net, self.skip = net, skip or nn.Identity()

    def forward(self, x: Any) -> Any:
        """Applies the block."""
        return self.net(x) + self.skip(x)


def mlp_block(inputs: int, hidden: int, outputs: int) -> Any:
    """The residual MLP block: LayerNorm and two Linears."""
    skip = None if inputs == outputs else nn.Linear(inputs, outputs, bias=False)
    return Residual(nn.Sequential(nn.LayerNorm(inputs), *feed_forward(inputs, hidden, outputs)), skip)


def _conv_block(inputs: int, width: int) -> Any:
    first = nn.Conv1d(inputs, width, 7, padding=3), nn.GELU(), nn.BatchNorm1d(width)
    net = nn.Sequential(*first, nn.Conv1d(width, width, 1), nn.GELU(), nn.BatchNorm1d(width))
    return Residual(net, None if inputs == width else nn.Conv1d(inputs, width, 1))


class SpectralEncoder(nn.Module):
    """The CNN encoder of the k-osc task: the magnitude spectrum of a signal to one conditioning row."""

    def __init__(self, config: Any, samples: int) -> None:
        super().__init__()
        stages, inputs, bins, hidden = [], 1, samples // 2 + 1, samples // 2
        for stage in range(config.stages):
            width = config.channels * 2**stage
            down = nn.Conv1d(width, 2 * width, 6, stride=3, padding=1)
            stages += [_conv_block(inputs, width), _conv_block(width, width), nn.BatchNorm1d(width), down, nn.GELU()]
            inputs, bins = 2 * width, (bins - 4) // 3 + 1
        head = nn.Linear(bins * inputs, hidden), mlp_block(hidden, hidden, config.dim)
        self.net = nn.Sequential(*stages, nn.Flatten(), *head)

    def forward(self, signal: Any) -> Any:
        """(B, S) -> (B, 1, D)."""
        return self.net(torch.fft.rfft(signal).abs()[:, None] / signal.shape[-1])[:, None]


class Field(nn.Module):
    """The transformer vector field between the two sides of Param2Tok, and the dropout token of guidance."""

    def __init__(self, config: Any, width: int, conditioning: int) -> None:
        super().__init__()
        dim, self.time_features = config.dim, config.time_features
        self.dropout_token = nn.Parameter(torch.randn(conditioning))
        self.conditioning = feed_forward(conditioning + config.time_features, dim, dim)
        self.layers = nn.ModuleList(
            Layer(dim, config.heads, config.ff_dim, modulated=True) for _ in range(config.layers)
        )
        self.up = feed_forward(dim, dim, dim)
        shared = (torch.randn(dim) / dim**0.5).repeat(width, 1)
        assignment = torch.full((config.tokens, width), (config.tokens * width) ** -0.5)
        self.assignment, self.embedding, self.unembedding = (
            nn.Parameter(start + config.init_noise * torch.randn_like(start)) for start in (assignment, shared, shared)
        )

    def forward(self, x: Any, t: Any, z: Any) -> Any:
        """(B, W), (B, 1), and (B, L, D), one row a layer, or (B, 1, D), the same row for all -> (B, W)."""
        if self.time_features > 1:
            half = self.time_features // 2
            angle = t * 10_000.0 ** (-torch.arange(half, device=x.device) / half)
            t = torch.cat([angle.cos(), angle.sin()], dim=-1)
        conditioning = self.conditioning(torch.cat([z, t[:, None].expand(-1, z.shape[1], -1)], dim=-1))
        tokens = self.assignment @ self.up(x[..., None] * self.embedding)
        for layer, c in zip(self.layers, conditioning.expand(-1, len(self.layers), -1).unbind(1), strict=True):
            tokens = layer(tokens, c)
        return ((self.assignment.T @ tokens) * self.unembedding).sum(dim=-1)
