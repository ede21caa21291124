"""Pictures for TensorBoard and reports, as uint8 pixels (rows, columns, 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 100


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _literal(name: str) -> str:
    """A name in which matplotlib does not take dollar signs for mathematics."""
    return name.replace("$", r"\$")


def _ticks(names: Sequence[str]) -> tuple[range, list[str]]:
    """Positions and labels of at most 100 names, evenly spaced: more could not be read."""
    places = range(0, len(names), -(-len(names) // 100))
    return places, [_literal(names[place]) for place in places]


def assignment_matrix(assignment: np.ndarray, parameter_names: Sequence[str]) -> np.ndarray:
    """The matrix |A| of Param2Tok (N tokens, W columns), which shows the parameters that share a token.

    Tokens are ordered by the column with their largest weight, so that structure appears as a diagonal.
    """
    magnitude = np.abs(assignment)
    order = np.lexsort((-magnitude.max(axis=1), magnitude.argmax(axis=1)))
    figure = Figure(figsize=(14, 8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(magnitude[order], aspect="auto", interpolation="nearest", cmap="magma")
    figure.colorbar(picture, ax=axes, label="|A|")
    ticks, labels = _ticks(parameter_names)
    axes.set_xticks(ticks, labels, rotation=90, fontsize=5)
    axes.set(ylabel="token, ordered by strongest parameter", title="Param2Tok assignment")
    return _pixels(figure)


def token_similarity(assignment: np.ndarray, embeddings: np.ndarray, parameter_names: Sequence[str]) -> np.ndarray:
    """Two matrices (W, W) that show which parameters Param2Tok treats as related.

    Left: the cosine between columns of |A| (N tokens, W columns). Parameters that share tokens, such as those of one
    oscillator, are blocks on the diagonal. Right: the cosine between ``embeddings`` (W, E). Parameters with the same
    role have similar embeddings, so that interchangeable oscillators are lines beside the diagonal. At the start of
    training all cosines are near 1; they separate as the model learns the symmetries.
    """
    panels = {
        "shared tokens: cosine of the columns of |A|": cosine_similarity(np.abs(assignment).T),
        "same role: cosine of the embeddings": cosine_similarity(embeddings),
    }
    ticks, labels = _ticks(parameter_names)
    figure = Figure(figsize=(18, 9.5), dpi=DPI, layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, matrix) in zip(row, panels.items(), strict=True):
        picture = axes.imshow(matrix, interpolation="nearest", vmin=-1.0, vmax=1.0, cmap="RdBu_r")
        axes.set(title=title, xlabel="the same parameters in the same order", xticks=[])
    row[0].set_yticks(ticks, labels, fontsize=5)
    figure.colorbar(picture, ax=list(row), shrink=0.8)
    return _pixels(figure)


def cosine_similarity(vectors: np.ndarray) -> np.ndarray:
    """Cosines (K, K) between K vectors (K, E); 0 for a vector of zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1.0)
    return units @ units.T


def loss_by_time(losses: Mapping[float, float]) -> np.ndarray:
    """Velocity loss against the time t on the path from noise (0) to data (1)."""
    times = sorted(losses)
    figure = Figure(figsize=(7, 4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(times, [losses[t] for t in times], marker="o")
    axes.set(xlim=(0, 1), xlabel="t", ylabel="velocity loss", title="Validation loss against time")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return _pixels(figure)


def parameter_bars(errors: dict[str, float]) -> np.ndarray:
    """Bars of the mean squared error of every parameter, the largest at the top."""
    names = sorted(errors, key=lambda name: errors[name])
    figure = Figure(figsize=(9, 1 + 0.13 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.barh([_literal(name) for name in names], [errors[name] for name in names])
    axes.tick_params(axis="y", labelsize=6)
    axes.margins(y=0.002)
    axes.set(xlabel="mean squared error of the columns in [0, 1]", title="Sampled rows of the validation split")
    return _pixels(figure)


def spectrograms(sounds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mel spectrograms (C, M, F) in dB by name, one above the other, averaged over channels, on one colour scale."""
    figure = Figure(figsize=(8, 2.4 * len(sounds)), dpi=DPI, layout="constrained")
    for axes, (name, mel) in zip(figure.subplots(len(sounds), squeeze=False)[:, 0], sounds.items(), strict=True):
        picture = axes.imshow(mel.mean(axis=0), origin="lower", aspect="auto", vmin=-80.0, vmax=0.0, cmap="magma")
        figure.colorbar(picture, ax=axes, label="dB")
        axes.set(title=_literal(name), xlabel="frame (10 ms)", ylabel="mel band")
    return _pixels(figure)
