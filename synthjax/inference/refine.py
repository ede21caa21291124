"""Refinement: a search for patches that sound nearer to a target, by rendering and comparing sounds.

A population of patches begins with the candidates. In every generation each child is a copy of a member with one move:
a few values are changed, a module such as an operator is taken from another member or candidate, or the note is moved.
The best of all live on. Values of a member whose changes were not heard are rarely changed again.

A synthesizer may not sound the same twice, so the lowest of many scores may be low by chance. Where renders differ, the
best members are therefore rendered again, several times each. The best of them replaces the start if its mean score is
lower than the start's.

Shapes: K candidates, W row width, P rows scored together. Rows may have further columns beyond W, such as the number of
a base patch: a child has those of its parent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from time import monotonic

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.params.groups import Panel
from data_pipeline.params.kinds import Categorical, Discrete, NoteDuration, Parameter
from data_pipeline.params.mixture import Modules
from data_pipeline.params.spec import ParamSpec

# Members that live on, and children of a generation. Both are the same for every number of workers, so that the same
# budget gives the same patch.
MEMBERS = 24
CHILDREN = 32
# Where renders differ, the mean of this many renders counts, of the start and of as many of the best members.
REPEATS = 4
FINALISTS = 3

# The probabilities of the moves; the rest move the note.
VALUE, MODULE = 0.6, 0.33
# After each changed value a further one is changed with this probability; there are at most MOST_VALUES.
FURTHER, MOST_VALUES = 0.4, 6
# A value that was not heard is chosen this many times as often as others.
QUIET = 0.02
# A value is drawn anew with this probability, else it moves by up to a step, as a part of its range.
ANEW = 0.4
STEP = 0.1
# A module comes from another place, such as operator 5 in the place of operator 3, with this probability.
OTHER_PLACE = 0.25
# The note's pitch moves by one of these numbers of semitones, its times by up to this part of the whole time.
SEMITONES = (-12, -1, 1, 12)
TIME_STEP = 0.02

Rows = NDArray[np.float64]
Scores = NDArray[np.float64]
Score = Callable[[Rows, float], Scores]
"""Gives rows (P, W) their scores (P,), and takes a limit; lower is better, inf is a row that cannot be rendered.

The score of a row beyond the limit may be any number beyond the limit: such a row will not live on.
"""


@dataclass(frozen=True)
class Budget:
    """The length of a search: seconds, evaluations, or both; the first that is used up ends it."""

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


def refine(
    candidates: ArrayLike,
    score: Score,
    *,
    spec: ParamSpec,
    panel: Panel,
    budget: Budget,
    exact: bool,
    seed: int = 0,
    locked: Collection[str] = (),
) -> Refined:
    """Searches from candidates (K, W), best first. The result never scores worse than the first one.

    Args:
      candidates: finite numbers; the first W columns are clipped to [0, 1] as in decoding.
      score: renders rows and measures them. Its renderers should run already: its first call sets the pace.
      spec: the spec of the rows.
      panel: the synthesizer's modules.
      budget: the search ends before a generation that would exceed it. The start is always scored.
      exact: whether two renders of a patch are equal.
      seed: the same candidates, scores, seed and number of generations give the same row.
      locked: names of parameters that are not changed; all candidates have the same values of them. One is free.

    Raises:
      KeyboardInterrupt: before the start is scored. Later, an interruption ends the search, and the best row so far is
        returned.
    """
    every = np.array(candidates, np.float64)
    every[:, : spec.width] = np.clip(every[:, : spec.width], 0.0, 1.0)
    rows = every[:MEMBERS]
    repeats = 1 if exact else REPEATS
    scorer = _Scorer(score, budget)
    start_scores = scorer(np.repeat(rows[:1], repeats, axis=0))
    start_score = float(start_scores.mean())
    best, best_score, interrupted = rows[0], start_score, False
    population = _Population(rows[:1], start_scores[:1], _Moves(spec, panel, every, seed, locked))
    reserve = 0 if exact else FINALISTS * REPEATS
    try:
        if scorer.has_room_for(len(rows) - 1 + reserve):
            population.add(rows[1:], scorer(rows[1:]))
            while scorer.has_room_for(CHILDREN + reserve):
                population.add(children := population.children(), scorer(children, population.limit))
            finalists = population.rows[:FINALISTS] if not exact else population.rows[:1]
            means = population.scores[:1]
            if not exact:
                means = scorer(np.repeat(finalists, REPEATS, axis=0)).reshape(-1, REPEATS).mean(axis=1)
            if means.min() < start_score:
                best, best_score = finalists[means.argmin()], float(means.min())
    except KeyboardInterrupt:
        interrupted = True
        # A single score may be low by chance: it must be lower than every score of the start.
        if population.scores[0] < start_scores.min():
            best, best_score = population.rows[0], float(population.scores[0])
    return Refined(best, best_score, start_score, scorer.evaluations, interrupted)


class _Scorer:
    """Calls ``score``, counts the rows and measures the time that they take."""

    def __init__(self, score: Score, budget: Budget) -> None:
        self.evaluations = 0
        self._score, self._budget = score, budget
        self._begin = monotonic()
        self._row_seconds = 0.0

    def __call__(self, rows: Rows, limit: float = math.inf) -> Scores:
        begin = monotonic()
        scores = np.asarray(self._score(rows, limit), np.float64)
        self.evaluations += len(rows)
        self._row_seconds = (monotonic() - begin) / max(1, len(rows))
        return scores

    def has_room_for(self, rows: int) -> bool:
        """Whether the budget allows so many rows more, at the pace of the last ones."""
        seconds = monotonic() - self._begin + rows * self._row_seconds
        return seconds <= self._budget.seconds and self.evaluations + rows <= self._budget.evaluations


@dataclass(frozen=True, eq=False)
class _Child:
    """A child's row (W,), its parent's place, and the numbers of the values and of the module that were changed."""

    row: Rows
    parent: int
    values: NDArray[np.int64]
    module: int | None = None


class _Population:
    """The best rows so far (at most ``MEMBERS``), best first, with their scores.

    ``quiet`` has for every member the values whose changes were not heard. Children inherit them.
    """

    def __init__(self, rows: Rows, scores: Scores, moves: _Moves) -> None:
        self.rows, self.scores = rows, scores
        self._moves = moves
        self._quiet = np.zeros((len(rows), moves.values), bool)
        self._children: list[_Child] = []

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


class _Moves:
    """Draws children of members. Candidates (K, W) give modules, even those that no longer are members."""

    def __init__(self, spec: ParamSpec, panel: Panel, candidates: Rows, seed: int, locked: Collection[str]) -> None:
        self._rng = np.random.default_rng(seed)
        self._spec, self._candidates = spec, candidates
        self._modules = Modules.of(spec, panel)
        self._free = np.array([one.name not in locked for one in spec.synth_params])
        self._free_notes = [one for one in spec.note_params if one.name not in locked]
        self._free_columns = np.concatenate([np.full(one.width, one.name not in locked) for one in spec.synth_params])
        self._module_of = np.array([self._modules.of_column[spec.slices[one.name].start] for one in spec.synth_params])
        self.values = len(spec.synth_params)

    def child(self, members: Rows, quiet: NDArray[np.bool_]) -> _Child:
        """A child. Better members have more children."""
        rng = self._rng
        parent = int(len(members) * rng.random() ** 2)
        row = members[parent].copy()
        move = rng.random()
        if not self._free_notes:
            move *= VALUE + MODULE
        elif not self._free.any():
            move = 1.0
        if move < VALUE:
            weights = np.where(quiet[parent], QUIET, 1.0) * self._free
            count = min(int(rng.geometric(1.0 - FURTHER)), MOST_VALUES, int(self._free.sum()))
            values = rng.choice(self.values, count, replace=False, p=weights / weights.sum())
            changed = [self._changed(row, members[parent], self._spec.synth_params[value]) for value in values]
            return _Child(row, parent, values[np.array(changed)])
        nothing = np.zeros(0, np.int64)
        if move < VALUE + MODULE:
            donors = members if rng.random() < 0.5 else self._candidates
            module = int(rng.integers(len(self._modules.fitting)))
            self._exchange(row, donors[rng.integers(len(donors))], module)
            return _Child(row, parent, nothing, module)
        self._change(row, self._free_notes[rng.integers(len(self._free_notes))])
        return _Child(row, parent, nothing)

    def affected(self, child: _Child) -> NDArray[np.bool_]:
        """The values that a heard change may have made audible: those of the same module."""
        if child.module is not None:
            return self._module_of == child.module
        if len(child.values) == 1:
            return self._module_of == self._module_of[child.values[0]]
        return np.zeros(self.values, bool)

    def _changed(self, row: Rows, before: Rows, parameter: Parameter) -> bool:
        """Changes a value, and says whether it differs: a step at the end of a range may not move it."""
        self._change(row, parameter)
        columns = self._spec.slices[parameter.name]
        return bool((row[columns] != before[columns]).any())

    def _change(self, row: Rows, parameter: Parameter) -> None:
        rng, columns = self._rng, row[self._spec.slices[parameter.name]]
        match parameter:
            case Categorical():
                other = (columns.argmax() + rng.integers(1, max(2, len(columns)))) % len(columns)
                columns[:] = np.eye(len(columns))[other]
            case NoteDuration():
                columns += rng.uniform(-TIME_STEP, TIME_STEP, len(columns))
            case Discrete() if parameter in self._spec.note_params:
                columns += rng.choice(SEMITONES) / (parameter.max - parameter.min)
            case _ if rng.random() < ANEW:
                columns[:] = parameter.sample(rng.random((1, parameter.draws)))[0]
            case Discrete():
                span = parameter.max - parameter.min
                largest = max(1, round(STEP * span))
                step = rng.integers(1, largest + 1) * rng.choice((-1, 1))
                columns[:] = (np.rint(columns * span) + step) / span
            case _:
                columns += rng.uniform(-STEP, STEP)
        np.clip(columns, 0.0, 1.0, out=columns)

    def _exchange(self, row: Rows, donor: Rows, module: int) -> None:
        """Takes a module from a donor."""
        rng, modules = self._rng, self._modules
        choice = rng.integers(modules.fitting[module]) if rng.random() < OTHER_PLACE else 0
        own = np.flatnonzero((modules.of_column == module) & self._free_columns)
        row[own] = donor[modules.sources[choice, own]]
