"""A search for a patch that sounds nearer to a target: the renderers and the target of a ``Search``."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.coarse_features import CoarseFeatures
from data_pipeline.console.cli import UserError
from data_pipeline.synths.choice import instrument
from synthjax.inference.candidates import REFINED, Candidate, Prediction, given, order
from synthjax.inference.refine import Refined, Search
from synthjax.inference.scoring import ScoreOf, Target, stored

if TYPE_CHECKING:
    from synthjax.inference.predictor import Predictor


class Refinement:
    """A ``Search`` from the candidates of a prediction, while the context lasts.

    with Refinement(predictor, sound, prediction) as refinement:
        found = search_within(refinement.search, budget)
        better = refinement.prediction(found)
    """

    search: Search

    def __init__(
        self, predictor: Predictor, sound: NDArray[np.floating], prediction: Prediction, *, seed: int | None = None
    ) -> None:
        """The search for a sound (2, T), with a prediction of it by ``predict`` or ``rank``.

        Raises UserError without a renderer.
        """
        if predictor.renderer is None:
            raise UserError("refinement searches by sound, which needs a renderer")
        self._predictor, self._renderer = predictor, predictor.renderer
        self._sound, self._prediction, self._seed = sound, prediction, predictor.seed(seed)
        self._played = instrument(self._renderer.synth.synth)
        self._open = ExitStack()
        # The base patches of the candidates. Beyond the columns of the spec, a row has the number of its own.
        self._every = (*prediction.candidates, *prediction.spare)
        self._bases = list(dict.fromkeys(candidate.base for candidate in self._every))

    def __enter__(self) -> Self:
        target = Target.of(self._sound, sounding=self._predictor.sounding, features=CoarseFeatures)
        self._path = self._open.enter_context(stored(target))
        self.search = Search(
            [(*candidate.row, self._bases.index(candidate.base)) for candidate in self._every],
            self._scores,
            spec=self._predictor.spec,
            panel=self._played.panel,
            exact=self._played.exact,
            seed=self._seed,
            locked=self._predictor.locks.values.keys(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def prediction(self, found: Refined) -> Prediction:
        """The prediction, with a patch that was found in front if it is better."""
        prediction = replace(self._prediction, evaluations=found.evaluations)
        if not found.score < found.start_score:
            return prediction
        origin = f"{prediction.best.origin}, refined with {found.evaluations} renders"
        refined = self._predictor.heard(self._sound, [replace(self._candidate(found.row), origin=origin)]).best
        # The search's scores are coarse, so the exact score decides. Where renders differ, the score of one render
        # depends on chance: there the search's mean scores decide.
        if refined.score is None or (self._played.exact and order(refined) >= order(prediction.best)):
            return prediction
        return replace(prediction, candidates=(refined, *prediction.candidates), chosen=REFINED)

    def _candidate(self, row: NDArray[np.floating]) -> Candidate:
        return Candidate(row[:-1].astype(np.float32), base=self._bases[int(row[-1])])

    def _scores(self, rows: NDArray[np.floating], limit: float) -> NDArray[np.float64]:
        found = np.full(len(rows), math.inf)
        asked = ((number, given(self._candidate(row), self._predictor.spec)) for number, row in enumerate(rows))
        for patch in self._renderer.render(asked, measure=ScoreOf(self._path, limit)):
            if patch.measured is not None:
                found[patch.key] = patch.measured
        return found
