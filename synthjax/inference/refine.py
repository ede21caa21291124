"""Refinement: a local search around a patch, by rendering and comparing sounds (extra ``refine``).

Rows are drawn from a distribution. Each generation moves it towards the rows that sounded closest. Numbers (continuous
and discrete parameters, note times) have a normal distribution with a variance for every column, and learn by the
covariance matrix adaptation evolution strategy in its separable form (Hansen, "The CMA Evolution Strategy: A Tutorial",
arXiv:1604.00772; Ros and Hansen, "A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity", PPSN
2008). Categories have frequencies, and learn by population-based incremental learning (Baluja, CMU-CS-94-163, 1994).

A synthesizer may not sound the same twice, so the lowest of many scores may be low by chance. Therefore the search only
proposes finalists. They are rendered again, several times each. The best of them replaces the start if its mean score
is lower than the start's.

Shapes: K candidates, W row width, P rows scored together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import ParamSpec
from synthjax.metrics.parameters import swap_to_best

try:
    from cmaes import SepCMA
except ImportError as error:
    raise UserError("refinement needs cmaes: pip install 'synthjax[refine]'") from error

# The score of the start and of every finalist is the mean of this many renders.
REPEATS = 4
FINALISTS = 2

# The standard deviation of a column in the first generation: this share of the candidates', but at least MIN_STEP,
# because candidates that agree may share an error.
SPREAD_SHARE = 0.5
MIN_STEP = 0.02
# The standard deviation without candidates.
DEFAULT_STEP = 0.1

# How many categories of a row are drawn at random, on average, whatever the frequencies. No category is ever ruled out.
MUTATIONS = 0.3
# How far a generation moves the frequencies towards those of its better half, from 0 to 1.
LEARNING_RATE = 0.2

Rows = NDArray[np.float64]
Scores = NDArray[np.float64]
Score = Callable[[Rows], Scores]
"""Gives rows (P, W) their audio distances (P,); lower is better, inf is a row that cannot be rendered."""


@dataclass(frozen=True)
class Refined:
    """The result of a search; ``row`` (W,) is the start if nothing better was found.

    ``score`` and ``start_score`` are means over renders that the search did not choose by, so they can be compared.
    After an interruption, ``score`` is the single score of the best row.
    """

    row: Rows
    score: float
    start_score: float
    interrupted: bool


def refine(
    row: ArrayLike,
    score: Score,
    *,
    spec: ParamSpec,
    seconds: float,
    workers: int = 1,
    seed: int = 0,
    candidates: ArrayLike | None = None,
) -> Refined:
    """Searches around ``row`` (W,) for ``seconds``. The result never scores worse than ``row``.

    Args:
      row: the start; finite numbers, clipped to [0, 1] as in decoding.
      score: renders rows and measures them. Its renderers should run already: its first call sets the pace.
      spec: the spec of the rows.
      seconds: the time for the whole search. A generation that would take longer, at the pace of the last one, is not
        begun. The start is always scored.
      workers: the number of rows that ``score`` renders at a time; generations are multiples of it.
      seed: the same seed, scores and number of generations give the same row.
      candidates: rows (K, W) for the same sound, such as samples of a posterior. Where they differ, the search looks
        farther and tries other categories. Their interchangeable parts may be in any order.

    Raises:
      KeyboardInterrupt: before the start is scored. Later, an interruption ends the search, and the best row so far is
        returned.
    """
    start = np.array(row, np.float64)
    others = start[None] if candidates is None else np.array(candidates, np.float64)
    search = _Search(start, swap_to_best(others, start[None], spec), spec, workers, seed)
    scorer = _Scorer(score, seconds, workers)
    start_scores = scorer(np.tile(start, (REPEATS, 1)))
    start_score = float(start_scores.mean())
    best, best_score, interrupted = start, start_score, False
    try:
        while scorer.has_time_for(search.population, FINALISTS * REPEATS) and not search.converged:
            rows = search.ask()
            search.tell(rows, scorer(rows))
        if search.generations:
            finalists = search.finalists()
            means = scorer(np.repeat(finalists, REPEATS, axis=0)).reshape(FINALISTS, REPEATS).mean(axis=1)
            if means.min() < start_score:
                best, best_score = finalists[means.argmin()], float(means.min())
    except KeyboardInterrupt:
        interrupted = True
        # A single score may be low by chance: it must be lower than every score of the start.
        if search.best_score < start_scores.min():
            best, best_score = search.best_row, search.best_score
    return Refined(best, best_score, start_score, interrupted)


class _Scorer:
    """Calls ``score`` and measures the time that it takes."""

    def __init__(self, score: Score, seconds: float, workers: int) -> None:
        self._score = score
        self._workers = workers
        self._begin = monotonic()
        self._seconds = seconds
        self._round_seconds = 0.0

    def __call__(self, rows: Rows) -> Scores:
        begin = monotonic()
        scores = np.asarray(self._score(rows), np.float64)
        self._round_seconds = (monotonic() - begin) / self._rounds(len(rows))
        return scores

    def has_time_for(self, *batches: int) -> bool:
        """Whether there is time for batches of so many rows, at the pace of the last one."""
        needed = sum(map(self._rounds, batches)) * self._round_seconds
        return monotonic() - self._begin + needed <= self._seconds

    def _rounds(self, rows: int) -> int:
        return math.ceil(rows / self._workers)


class _Search:
    """The distribution of rows, and the best row that was drawn from it."""

    def __init__(self, start: Rows, candidates: Rows, spec: ParamSpec, workers: int, seed: int) -> None:
        self._start = start
        self._categories = _Categories(start, candidates, spec, seed)
        self._numbers = np.setdiff1d(np.arange(spec.width), self._categories.columns)
        self._steps = _first_steps(np.clip(candidates[:, self._numbers], 0.0, 1.0))
        self.population = _population(len(self._numbers), workers)
        self.generations = 0
        self.best_row, self.best_score = start, math.inf
        # The library starts with one variance for all columns, so each column is scaled by its first step.
        self._strategy = SepCMA(
            mean=np.clip(start[self._numbers], 0.0, 1.0) / self._steps,
            sigma=1.0,
            bounds=np.outer(1.0 / self._steps, [0.0, 1.0]),
            # Columns outside [0, 1] are clipped, not drawn again: with hundreds of columns, some always are outside.
            n_max_resampling=0,
            seed=seed,
            population_size=self.population,
        )

    @property
    def converged(self) -> bool:
        """Whether further generations would change nothing."""
        return self._strategy.should_stop()

    def ask(self) -> Rows:
        """Draws a generation (P, W)."""
        rows = np.tile(self._start, (self.population, 1))
        rows[:, self._numbers] = self._unscaled(np.stack([self._strategy.ask() for _ in rows]))
        self._categories.draw(rows)
        return rows

    def tell(self, rows: Rows, scores: Scores) -> None:
        """Moves the distribution towards the rows that scored best."""
        order = scores.argsort(kind="stable")
        if scores[order[0]] < self.best_score:
            self.best_row, self.best_score = rows[order[0]], float(scores[order[0]])
        # Only the order of scores matters, but the library subtracts them, so inf is replaced.
        finite = np.minimum(scores, np.finfo(np.float64).max)
        self._strategy.tell(list(zip(rows[:, self._numbers] / self._steps, finite, strict=True)))
        self._categories.tell(rows[order[: self.population // 2]])
        self.generations += 1

    def finalists(self) -> Rows:
        """Rows (FINALISTS, W): the row that scored best, and the mean of the distribution."""
        middle = self._start.copy()
        middle[self._numbers] = self._unscaled(self._strategy.mean)
        self._categories.set_likeliest(middle)
        return np.stack([self.best_row, middle])

    def _unscaled(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        # A rounding error may lead out of [0, 1].
        return np.clip(numbers * self._steps, 0.0, 1.0)


class _Categories:
    """The frequencies of the categories in every one-hot group; ``columns`` are the columns of all groups."""

    def __init__(self, start: Rows, candidates: Rows, spec: ParamSpec, seed: int) -> None:
        chosen = [parameter for parameter in spec.parameters if isinstance(parameter, Categorical)]
        self._groups = [spec.slices[parameter.name] for parameter in chosen]
        self.columns = np.concatenate([np.arange(0), *(np.arange(g.start, g.stop) for g in self._groups)])
        self._rng = np.random.default_rng(seed)
        # The start and the candidates have half the weight each.
        self._frequencies = [
            self._mutating(0.5 * _one_hot(start[group]) + 0.5 * _one_hot(candidates[:, group]).mean(axis=0))
            for group in self._groups
        ]

    def draw(self, rows: Rows) -> None:
        """Sets the groups of rows (P, W)."""
        for group, frequencies in zip(self._groups, self._frequencies, strict=True):
            drawn = self._rng.choice(len(frequencies), size=len(rows), p=frequencies)
            rows[:, group] = np.eye(len(frequencies))[drawn]

    def tell(self, better: Rows) -> None:
        """Moves the frequencies towards those of the better rows (P / 2, W), best first."""
        # The weights of the evolution strategy.
        weights = np.log(len(better) + 1) - np.log(np.arange(len(better)) + 1)
        for i, group in enumerate(self._groups):
            among_better = weights @ better[:, group] / weights.sum()
            moved = (1.0 - LEARNING_RATE) * self._frequencies[i] + LEARNING_RATE * among_better
            self._frequencies[i] = self._mutating(moved)

    def set_likeliest(self, row: Rows) -> None:
        """Sets the groups of a row (W,)."""
        for group, frequencies in zip(self._groups, self._frequencies, strict=True):
            row[group] = _one_hot(frequencies)

    def _mutating(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        """The frequencies of a group, raised where a category would hardly be drawn any more."""
        raised = np.maximum(frequencies, MUTATIONS / len(self._groups) / len(frequencies))
        return raised / raised.sum()


def _one_hot(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sets the largest of the last axis to 1 (the first of equal ones, as in decoding) and the others to 0."""
    return np.eye(columns.shape[-1])[columns.argmax(axis=-1)]


def _first_steps(candidates: Rows) -> NDArray[np.float64]:
    """The standard deviations of columns in the first generation, for candidates (K, columns)."""
    if len(candidates) < 2:
        return np.full(candidates.shape[1], DEFAULT_STEP)
    return np.maximum(SPREAD_SHARE * candidates.std(axis=0), MIN_STEP)


def _population(columns: int, workers: int) -> int:
    """The number of rows in a generation: Hansen's default, rounded up to keep all workers busy.

    With many more rows than columns the variances would become negative, so four times the columns is the limit.
    """
    usual = 4 + math.floor(3 * math.log(columns))
    return max(usual, min(math.ceil(usual / workers) * workers, 4 * columns))
