"""The k-osc task, its networks and the regression baselines in NumPy float64, written from the formulas of the issue.

Parameters come as the nested dicts that ``numpy_networks.parameters`` returns.
"""

from __future__ import annotations

import numpy as np

from tests.synthjax.numpy_networks import (
    Tree,
    depth,
    feed_forward,
    field_block,
    gelu,
    layer,
    layer_norm,
    linear,
    time_encoding,
)


def phases(cycles: np.ndarray, samples: int) -> np.ndarray:
    """(..., S) phases in [0, 1) of oscillators at (...,) cycles a sample."""
    return np.mod(np.arange(samples) * np.float64(cycles)[..., None], 1.0)


def saw(phase: np.ndarray, dt: float) -> np.ndarray:
    wave = 2 * phase - 1
    wave = wave + np.where(phase < dt, (phase / dt - 1) ** 2, 0)
    return wave - np.where(phase > 1 - dt, ((phase - 1) / dt + 1) ** 2, 0)


def square(phase: np.ndarray, dt: float) -> np.ndarray:
    wave = np.where(phase > 0.5, 1.0, -1.0)
    wave = wave + np.where(phase < dt, (phase / dt - 1) ** 2, 0)
    wave = wave - np.where(phase > 1 - dt, ((phase - 1) / dt + 1) ** 2, 0)
    wave = wave - np.where((phase > 0.5) & (phase < 0.5 + dt), ((phase - 0.5) / dt - 1) ** 2, 0)
    return wave + np.where((phase > 0.5 - dt) & (phase < 0.5), ((phase - 0.5) / dt + 1) ** 2, 0)


def k_osc_signal(row: np.ndarray, cycles: np.ndarray, samples: int) -> np.ndarray:
    """One signal from one row and the cycles a sample of its oscillators, one oscillator at a time."""
    _, amplitudes, waveforms = np.split(np.clip(np.float64(row), -1, 1), 3)
    total = np.zeros(samples)
    for dt, a, w in zip(np.float64(cycles), amplitudes, waveforms, strict=True):
        phase = phases(dt, samples)
        wave = max(-w, 0) * -np.sin(2 * np.pi * phase) + (1 - abs(w)) * square(phase, dt) + max(w, 0) * saw(phase, dt)
        total += (a + 1) / 2 * wave
    return total / len(cycles)


def residual_mlp(p: Tree, x: np.ndarray) -> np.ndarray:
    skip = x @ p["skip"]["kernel"] if "skip" in p else x
    return skip + feed_forward(p["ff"], layer_norm(p["norm"], x))


def mlp_field(p: Tree, x: np.ndarray, t: np.ndarray, z: np.ndarray) -> np.ndarray:
    """v(x, t | z) for z (B, L, E)."""
    features = p["conditioning"]["up"]["kernel"].shape[0] - z.shape[-1]
    time, h = time_encoding(t, features), linear(p["embed"], x)
    for index in range(depth(p["blocks"])):
        block = layer(p["blocks"], index)
        c = feed_forward(p["conditioning"], np.concatenate([z[:, index], time], axis=-1))
        a, g, b = np.split(linear(block["modulation"], gelu(c)), 3, axis=-1)
        twice = layer_norm(block["norm"], layer_norm(block["norm"], h))
        h = h + a * feed_forward(block["ff"], g * twice + b)
    return linear(p["read"], h)


def oscillator_field(p: Tree, x: np.ndarray, t: np.ndarray, z: np.ndarray) -> np.ndarray:
    """v(x, t | z) for z (B, L, D), one token for each oscillator."""
    features = p["conditioning"]["up"]["kernel"].shape[0] - z.shape[-1]
    k = x.shape[1] // 3
    tokens = np.stack([x[:, :k], x[:, k : 2 * k], x[:, 2 * k :]], axis=-1)
    tokens, time = linear(p["projection"]["embed"], tokens), time_encoding(t, features)
    for index in range(depth(p["blocks"])):
        c = feed_forward(p["conditioning"], np.concatenate([z[:, index], time], axis=-1))
        tokens = field_block(layer(p["blocks"], index), tokens, c)
    out = linear(p["projection"]["read"], tokens)
    return np.concatenate([out[..., 0], out[..., 1], out[..., 2]], axis=1)


def convolve(p: Tree, x: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """(B, F, C) -> (B, F', C'), one output bin at a time."""
    size = p["kernel"].shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (0, 0)))
    starts = range(0, x.shape[1] - size + 1, stride)
    return np.stack([np.einsum("bsi,sio->bo", x[:, s : s + size], p["kernel"]) for s in starts], axis=1) + p["bias"]


def normalise(p: Tree, x: np.ndarray) -> np.ndarray:
    """Batch normalisation by running statistics where there are any, else LayerNorm over channels."""
    if "mean" not in p:
        return layer_norm(p, x)
    return (x - p["mean"]) / np.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def spectral_block(p: Tree, x: np.ndarray) -> np.ndarray:
    y = normalise(p["norm1"], gelu(convolve(p["conv1"], x, 1, 3)))
    y = gelu(convolve(p["conv2"], y, 1, 0))
    if "norm2" in p:
        y = normalise(p["norm2"], y)
    return y + (convolve(p["skip"], x, 1, 0) if "skip" in p else x)


def spectral_encoder(p: Tree, signal: np.ndarray) -> np.ndarray:
    """(B, S) -> (B, D); p has running statistics beside the parameters."""
    x = np.abs(np.fft.rfft(np.float64(signal)))[..., None] / signal.shape[-1]
    for index in range(len(p["stages"])):
        stage = p["stages"][index]
        x = spectral_block(stage["block2"], spectral_block(stage["block1"], x))
        x = gelu(convolve(stage["down"], normalise(stage["norm"], x), 3, 1))
    flat = np.stack([example.T.ravel() for example in x])
    return residual_mlp(p["out"], linear(p["flat"], flat))
