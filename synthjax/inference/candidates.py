"""The candidates of one sound: where they are from, their medoid, and how far they differ.

Shapes: K candidates, W row width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import GivenPatch
from synthjax.retrieval.presets import Base

BY_SOUND, BY_MEDOID, ONLY = "nearest in sound", "medoid of the candidates", "only candidate"
BY_INDEX, REFINED = "nearest in the library, by its stored sounds", "refined by sound"
MODEL = "model"

Rows = Float[np.ndarray, "K W"]


@dataclass(frozen=True)
class Candidate:
    """A patch that may be the answer.

    Attributes:
      row: (W,); as sampled if the model drew it: not clipped, not rounded.
      origin: where it is from: the model, or a row of the library.
      audio: the render (2, T); None without a renderer, where the patch could not be rendered, and of spare candidates.
      distances: ``Target.distances`` of the render; empty without ``audio``.
      score: ranks the candidates; lower is better, that of spare ones is coarse. None if not rendered.
      fault: why the patch could not be rendered.
      base: the preset that the row changes; None if the row says all of the patch.
      distance: that of its sound in a library to the target.
    """

    row: NDArray[np.float32]
    origin: str = MODEL
    audio: NDArray[np.float32] | None = None
    distances: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    fault: str = ""
    base: Base | None = None
    distance: float | None = None


@dataclass(frozen=True)
class Prediction:
    """The candidates of one sound, best first.

    ``chosen`` says how the first was chosen, ``evaluations`` how many renders a refinement took. ``spare`` are further
    candidates, from which refinement starts too.
    """

    spec: ParamSpec
    candidates: tuple[Candidate, ...]
    chosen: str
    evaluations: int = 0
    spare: tuple[Candidate, ...] = ()

    @property
    def best(self) -> Candidate:
        """The first candidate."""
        return self.candidates[0]

    @cached_property
    def values(self) -> dict[str, Any]:
        """The best candidate's decoded values by parameter name, including pitch and note times."""
        return self.spec.decode(self.best.row)

    @cached_property
    def spread(self) -> dict[str, float]:
        """How far the candidates differ in each parameter: see ``candidates.spread``."""
        return spread(np.stack([candidate.row for candidate in self.candidates]), self.spec)


def order(candidate: Candidate) -> float:
    """The score; infinity for a candidate that could not be rendered."""
    return math.inf if candidate.score is None else candidate.score


def given(candidate: Candidate, spec: ParamSpec) -> GivenPatch:
    """A candidate as a renderer takes it."""
    return candidate.base.with_row(candidate.row, spec) if candidate.base else candidate.row


def medoid(rows: Rows) -> int:
    """The index of the candidate nearest to all others, by mean squared distance; used where nothing is rendered.

    Unlike the mean of the candidates, it is a patch that the model holds likely.
    """
    rows = rows.clip(0.0, 1.0)
    # The candidate nearest to the mean has the least sum of squared distances.
    return int(np.square(rows - rows.mean(axis=0)).sum(axis=1).argmin())


def spread(rows: Rows, spec: ParamSpec) -> dict[str, float]:
    """How far the candidates differ in each parameter, once they are decoded.

    Of a category: the share of candidates that do not have the most frequent one. Of a number: the standard deviation
    of its column in [0, 1]. Of the note's times: the mean of the standard deviations of start and end.
    """
    found = {}
    for parameter in spec.parameters:
        columns = rows[:, spec.slices[parameter.name]]
        if isinstance(parameter, Categorical):
            chosen = Counter(parameter.decode(row) for row in columns)
            found[parameter.name] = 1.0 - chosen.most_common(1)[0][1] / len(rows)
        else:
            found[parameter.name] = float(columns.clip(0.0, 1.0).std(axis=0).mean())
    return found
