"""A search for a patch that sounds nearer to a target: the renderers and the target of a ``Search``."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.coarse_features import CoarseFeatures
from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.synths.choice import instrument
from synthjax.inference.candidates import REFINED, Candidate, Prediction, given, order
from synthjax.inference.refine import Budget, Refined, Search, search_within
from synthjax.inference.scoring import ScoreOf, Target, stored

if TYPE_CHECKING:
    from synthjax.inference.predictor import Predictor

# A running search is kept, and its best patch is given, at most this often.
SECONDS_BETWEEN = 3.0


class Refinement:
    """A ``Search`` from the candidates of a prediction, while the context lasts.

    with Refinement(predictor, sound, prediction) as refinement:
        better, interrupted = refinement.within(budget)
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
        self._every = (*prediction.candidates, *prediction.spare)
        # The base patches of the candidates. Beyond the columns of the spec, a row has the number of its own.
        bases = dict.fromkeys(candidate.base for candidate in self._every)
        self._bases = sorted(bases, key=lambda base: base.content if base else b"")

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

    def within(
        self,
        budget: Budget,
        *,
        keep: Path | None = None,
        on_better: Callable[[Prediction], object] | None = None,
    ) -> tuple[Prediction, bool]:
        """Searches until the budget is used up. Returns the prediction, and whether Ctrl-C ended the search.

        Args:
          keep: a file from which the same search goes on, if it is there. It is written every few seconds, and removed
            when the budget is used up.
          on_better: is called with the prediction when the search has found a better patch, at most every few seconds.

        Raises UserError where the file cannot be written.
        """
        if keep:
            self._restore(keep)
        told, since = math.inf, monotonic()
        complete: dict[str, Any] | None = None

        def watch() -> None:
            nonlocal told, since, complete
            complete = self.search.state()
            if monotonic() - since < SECONDS_BETWEEN:
                return
            found = self.search.so_far()
            if on_better and found.score < min(told, found.start_score):
                told = found.score
                on_better(self.prediction(found))
            if keep:
                self._save(keep, complete)
            since = monotonic()

        found = search_within(self.search, budget, watch)
        if keep and complete and found.interrupted:
            self._save(keep, complete)  # The generation that was interrupted is done again.
        elif keep and not found.interrupted:
            keep.unlink(missing_ok=True)
        return self.prediction(found), found.interrupted

    def _restore(self, path: Path) -> None:
        """Goes on with the search that a file keeps, if it is this one."""
        try:
            with np.load(path) as state:
                if str(state["identity"]) == self._identity:
                    self.search.restore(state)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # There is none, or it is damaged: the search begins anew.

    def _save(self, path: Path, state: Mapping[str, Any]) -> None:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **state, identity=self._identity)

    @cached_property
    def _identity(self) -> str:
        """What the search depends on, as a hash. The candidates' order does not count: it varies where renders do."""
        rows = sorted(candidate.row.tobytes() for candidate in self._every)
        bases = [base.content for base in self._bases if base]
        synth = (self._renderer.synth_name, self._renderer.synth_version, self._renderer.synth.preset)
        about = [self._seed, sorted(self._predictor.locks.values), self._predictor.sounding, synth]
        parts = [json.dumps(about).encode(), self._sound.tobytes(), *rows, *bases]
        return hashlib.sha256(b"".join(parts)).hexdigest()

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
