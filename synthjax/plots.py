"""Pictures for TensorBoard, as uint8 pixels (rows, columns, 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 100


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _literal(name: str) -> str:
    """Keeps matplotlib from reading dollars as mathematics."""
    return name.replace("$", r"\$")


def assignment_matrix(assignment: np.ndarray, parameter_names: Sequence[str]) -> np.ndarray:
    """|A| of Param2Tok (N tokens, W columns): which parameters share a token.

    Tokens are ordered by the column that they weigh most, so that structure shows as a diagonal.
    """
    magnitude = np.abs(assignment)
    order = np.lexsort((-magnitude.max(axis=1), magnitude.argmax(axis=1)))
    figure = Figure(figsize=(14, 8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(magnitude[order], aspect="auto", interpolation="nearest", cmap="magma")
    figure.colorbar(picture, ax=axes, label="|A|")
    every = -(-len(parameter_names) // 100)
    ticks = range(0, len(parameter_names), every)
    axes.set_xticks(ticks, [_literal(parameter_names[i]) for i in ticks], rotation=90, fontsize=5)
    axes.set(ylabel="token, ordered by strongest parameter", title="Param2Tok assignment")
    return _pixels(figure)


def parameter_bars(errors: dict[str, float]) -> np.ndarray:
    """Mean squared error of every parameter, largest first, with its name."""
    names = sorted(errors, key=lambda name: errors[name])
    figure = Figure(figsize=(9, 1 + 0.13 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.barh([_literal(name) for name in names], [errors[name] for name in names])
    axes.tick_params(axis="y", labelsize=6)
    axes.margins(y=0.002)
    axes.set(xlabel="mean squared error of the columns in [0, 1]", title="Sampled rows of the validation split")
    return _pixels(figure)
