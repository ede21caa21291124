"""Refinement: a search for patches that sound nearer to a target, by rendering and comparing sounds.

A population of patches begins with the candidates. In every generation each child is a copy of a member with one move
(``moves``). The best of all live on. Values of a member whose changes were not heard are rarely changed again.

A synthesizer may not sound the same twice, so the lowest of many scores may be low by chance. Where renders differ, the
best members are therefore rendered again, several times each. The best of them replaces the start if its mean score is
lower than the start's.

Shapes: K candidates, W row width, P rows scored together. Rows may have further columns beyond W, such as the number of
a base patch: a child has those of its parent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.params.groups import Panel
from data_pipeline.params.spec import ParamSpec
from synthjax.inference.moves import Child, Moves, Rows

# Members that live on, and children of a generation. Both are the same for every number of workers, so that the same
# budget gives the same patch.
MEMBERS = 24
CHILDREN = 32
# Where renders differ, the mean of this many renders counts, of the start and of as many of the best members.
REPEATS = 4
FINALISTS = 3

Scores = NDArray[np.float64]
Score = Callable[[Rows, float], Scores]
"""Gives rows (P, W) their scores (P,), and takes a limit; lower is better, inf is a row that cannot be rendered.

The score of a row beyond the limit may be any number beyond the limit: such a row will not live on.
"""


@dataclass(frozen=True)
class Budget:
    """The length of a search: seconds, evaluations, or both; the first that is used up ends it.

    If a search is continued, its earlier evaluations count, its earlier seconds do not.
    """

    seconds: float = math.inf
    evaluations: float = math.inf


@dataclass(frozen=True)
class Refined:
    """The result of a search; ``row`` (W,) is the start if nothing better was found.

    ``score`` and ``start_score`` are means over renders that the search did not choose by, if renders differ.
    ``evaluations`` counts the renders. After an interruption, ``score`` is the single score of the best row.
    """

    row: Rows
    score: float
    start_score: float
    evaluations: int
    interrupted: bool


class Search:
    """A search from candidates (K, W), best first, that may be stopped, kept and continued after every generation.

    search = Search(candidates, score, ...)
    search.start()
    while wanted:
        search.advance()
        search.row, search.score
    """

    def __init__(
        self,
        candidates: ArrayLike,
        score: Score,
        *,
        spec: ParamSpec,
        panel: Panel,
        exact: bool,
        seed: int = 0,
        locked: Collection[str] = (),
    ) -> None:
        """A search that has not begun.

        Args:
          candidates: finite numbers; the first W columns are clipped to [0, 1] as in decoding.
          score: renders rows and measures them.
          spec: the spec of the rows.
          panel: the synthesizer's modules.
          exact: whether two renders of a patch are equal.
          seed: the same candidates, scores, seed and number of generations give the same row.
          locked: names of parameters that are not changed; all candidates have the same values of them. One is free.
        """
        self._candidates = np.array(candidates, np.float64)
        self._candidates[:, : spec.width] = np.clip(self._candidates[:, : spec.width], 0.0, 1.0)
        self._score, self._exact = score, exact
        self._moves = Moves(spec, panel, self._candidates, seed, locked)
        self._first = self._candidates[0]
        self._waiting: Rows | None = self._candidates[1:MEMBERS]
        self._start_scores: Scores = np.zeros(0)
        self._population = _Population.of(self._candidates[:1], np.full(1, math.inf), self._moves)
        self.evaluations = 0

    @property
    def started(self) -> bool:
        """Whether the first candidate is scored."""
        return len(self._start_scores) > 0

    def start(self) -> None:
        """Scores the first candidate."""
        repeats = 1 if self._exact else REPEATS
        self._start_scores = self._scored(np.repeat(self._candidates[:1], repeats, axis=0))
        self._population = _Population.of(self._candidates[:1], self._start_scores[:1], self._moves)

    @property
    def next_renders(self) -> int:
        """The number of renders that ``advance`` takes."""
        return len(self._waiting) if self._waiting is not None else CHILDREN

    @property
    def final_renders(self) -> int:
        """The number of renders that ``result`` takes."""
        return 0 if self._exact else FINALISTS * REPEATS

    def advance(self) -> None:
        """Scores the other candidates at the first call, then a generation of children at each."""
        if self._waiting is not None:
            if len(self._waiting):
                self._population.add(self._waiting, self._scored(self._waiting))
            self._waiting = None
            return
        children = self._population.children()
        self._population.add(children, self._scored(children, self._population.limit))

    @property
    def row(self) -> Rows:
        """The best row (W,) so far."""
        return self._population.rows[0]

    @property
    def score(self) -> float:
        """The single score of the best row; where renders differ, it may be low by chance."""
        return float(self._population.scores[0])

    def result(self) -> Refined:
        """The best row. Where renders differ, the best few are rendered again."""
        best, means = self._population.rows[:1], self._population.scores[:1]
        if not self._exact and len(self._population.rows) > 1:
            best = self._population.rows[:FINALISTS]
            means = self._scored(np.repeat(best, REPEATS, axis=0)).reshape(-1, REPEATS).mean(axis=1)
        if means.min() < self._start_score:
            return self._refined(best[means.argmin()], float(means.min()))
        return self._refined(self._first, self._start_score)

    def so_far(self) -> Refined:
        """The best row, without renders: where they differ, it scored lower than all renders of the start."""
        if self.score < self._start_scores.min():
            return self._refined(self.row, self.score)
        return self._refined(self._first, self._start_score)

    def state(self) -> dict[str, Any]:
        """All that another search with the same candidates needs to go on from here: arrays, numbers, text.

        To be called between generations. It does not change when the search goes on.
        """
        return {
            "first": self._first,
            "start_scores": self._start_scores,
            "evaluations": self.evaluations,
            "waiting": self._waiting is not None,
            "random": self._moves.random_state,
            **self._population.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from the ``state`` of a search with the same candidates, in any order, in place of ``start``."""
        names = ("rows", "scores", "quiet", "first", "start_scores", "evaluations", "waiting", "random")
        rows, scores, quiet, first, start_scores, evaluations, waiting, random = (np.array(state[one]) for one in names)
        self._first, self._start_scores, self.evaluations = first, start_scores, int(evaluations)
        self._waiting = self._waiting if waiting else None
        self._moves.random_state = str(random)
        self._population = _Population(rows, scores, quiet, self._moves)

    @property
    def _start_score(self) -> float:
        return float(self._start_scores.mean())

    def _refined(self, row: Rows, score: float) -> Refined:
        return Refined(row, score, self._start_score, self.evaluations, interrupted=False)

    def _scored(self, rows: Rows, limit: float = math.inf) -> Scores:
        scores = np.asarray(self._score(rows, limit), np.float64)
        self.evaluations += len(rows)
        return scores


def search_within(search: Search, budget: Budget, watch: Callable[[], object] = lambda: None) -> Refined:
    """Goes on with a search until the budget would be exceeded. The result never scores worse than the first candidate.

    The score's renderers should run already: the first renders set the pace. The start is always scored. ``watch`` is
    called after every generation.

    Raises:
      KeyboardInterrupt: before the start is scored. Later, an interruption ends the search, and the best row so far is
        returned.
    """
    begin, row_seconds = monotonic(), 0.0

    def timed(step: Callable[[], None]) -> float:
        """Takes a step; returns the seconds of each of its renders."""
        since, done = monotonic(), search.evaluations
        step()
        return (monotonic() - since) / max(1, search.evaluations - done)

    def has_room_for(rows: int) -> bool:
        seconds = monotonic() - begin + rows * row_seconds
        return seconds <= budget.seconds and search.evaluations + rows <= budget.evaluations

    if not search.started:
        row_seconds = timed(search.start)
    try:
        while has_room_for(search.next_renders + search.final_renders):
            row_seconds = timed(search.advance)
            watch()
        return search.result()
    except KeyboardInterrupt:
        return replace(search.so_far(), interrupted=True)


class _Population:
    """The best rows so far (at most ``MEMBERS``), best first, with their scores.

    ``quiet`` has for every member the values whose changes were not heard. Children inherit them.
    """

    def __init__(self, rows: Rows, scores: Scores, quiet: NDArray[np.bool_], moves: Moves) -> None:
        self.rows, self.scores = rows, scores
        self._quiet, self._moves = quiet, moves
        self._children: list[Child] = []

    @classmethod
    def of(cls, rows: Rows, scores: Scores, moves: Moves) -> Self:
        """Rows of which every value may be heard."""
        return cls(rows, scores, np.zeros((len(rows), moves.values), bool), moves)

    def state(self) -> dict[str, NDArray[Any]]:
        """What ``__init__`` takes, as arrays."""
        return {"rows": self.rows, "scores": self.scores, "quiet": self._quiet.copy()}

    @property
    def limit(self) -> float:
        """A child with a score beyond this does not live on."""
        return float(self.scores[-1]) if len(self.rows) == MEMBERS else math.inf

    def children(self) -> Rows:
        """A generation of children (P, W)."""
        self._children = [self._moves.child(self.rows, self._quiet) for _ in range(CHILDREN)]
        return np.stack([child.row for child in self._children])

    def add(self, rows: Rows, scores: Scores) -> None:
        """Adds scored rows. The best of all live on; rows that sound alike to the last bit count once."""
        quiet = np.zeros((len(rows), self._moves.values), bool)
        for number, child in enumerate(self._children):
            quiet[number] = self._quiet[child.parent]
            if scores[number] == self.scores[child.parent]:
                self._quiet[child.parent, child.values] = True
            else:
                quiet[number] &= ~self._moves.affected(child)
        rows, scores = np.concatenate([self.rows, rows]), np.concatenate([self.scores, scores])
        _, first = np.unique(scores, return_index=True)
        kept = first[:MEMBERS]
        self._quiet = np.concatenate([self._quiet, quiet])[kept]
        self.rows, self.scores, self._children = rows[kept], scores[kept], []
