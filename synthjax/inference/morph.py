"""A morph: patches between two, placed so that the steps sound alike in size.

Many patches on a path from the one to the other are rendered. Numbers move along straight lines, and categories change
one after the other. Of the rendered patches those are kept whose steps have the least sum of squared MSS. A step that
is twice as large counts four times, so the steps come out as even as the path allows.

Shapes: W row width, N patches on the path, K patches kept.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data_pipeline.audio.metrics import Spectrograms, mss_spectrograms, spectrogram_distance
from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from synthjax.inference.candidates import Candidate, given

# Patches on the path for each one that is kept.
DENSITY = 6


def morph(first: Candidate, last: Candidate, count: int, renderer: PatchRenderer) -> list[Candidate]:
    """``count`` patches from the first to the last, both among them, rendered; ``count`` is at least 2.

    Raises UserError where a patch cannot be rendered.
    """
    spec = renderer.synth.spec
    patches = [between(first, last, place, spec) for place in np.linspace(0.0, 1.0, DENSITY * count)]
    asked = ((number, given(one, spec)) for number, one in enumerate(patches))
    rendered = sorted(renderer.render(asked, measure=_heard), key=lambda one: one.key)
    if lost := [one for one in rendered if one.measured is None]:
        raise UserError(f"a patch between the two cannot be rendered: {lost[0].fault}")
    steps = np.zeros((len(rendered), len(rendered)))
    for one, other in combinations(rendered, 2):
        steps[one.key, other.key] = spectrogram_distance(one.measured[1], other.measured[1])
    return [replace(patches[number], audio=rendered[number].measured[0]) for number in evenly(steps, count)]


def between(first: Candidate, last: Candidate, place: float, spec: ParamSpec) -> Candidate:
    """The patch at a place from 0, the first, to 1, the last; the base patch changes in the middle."""
    categories = [one.name for one in spec.synth_params if isinstance(one, Categorical)]
    differing = [name for name in categories if (first.row != last.row)[spec.slices[name]].any()]
    row = (1.0 - place) * first.row + place * last.row
    for number, name in enumerate(differing):
        side = last if place * len(differing) >= number + 0.5 else first
        row[spec.slices[name]] = side.row[spec.slices[name]]
    return Candidate(row.astype(np.float32), "a morph", base=(last if place >= 0.5 else first).base)


def evenly(steps: Float[np.ndarray, "N N"], count: int) -> list[int]:
    """The numbers of K patches from the first to the last of N whose steps have the least sum of squares.

    ``steps[i, j]`` is the distance from i to a later j. Found by dynamic programming.
    """
    size = len(steps)
    later = np.triu(np.ones((size, size), bool), 1)
    cost = np.where(later, np.square(steps), np.inf)
    total = np.where(np.arange(size) == 0, 0.0, np.inf)
    before: list[NDArray[np.int64]] = []
    for _ in range(count - 1):
        sums = total[:, None] + cost
        before.append(sums.argmin(axis=0))
        total = sums.min(axis=0)
    chosen = [size - 1]
    for best in reversed(before):
        chosen.append(int(best[chosen[-1]]))
    return chosen[::-1]


def _heard(audio: NDArray[np.float32]) -> tuple[NDArray[np.float32], Spectrograms]:
    """Runs in a render worker."""
    return audio, [spectrogram.astype(np.float32) for spectrogram in mss_spectrograms(audio)]
