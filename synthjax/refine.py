"""Refinement: a local search around a patch, by rendering and listening (extra ``refine``).

Rows are drawn from a distribution that each generation moves towards those that sounded closest. Numbers (continuous
and discrete parameters, note times) are normal, with a variance for every column, and learn by the covariance matrix
adaptation evolution strategy in its separable form (Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772;
Ros and Hansen, "A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity", PPSN 2008). Categories
have frequencies, and learn by population-based incremental learning (Baluja, CMU-CS-94-163, 1994).

A synthesizer need not sound the same twice, and the lowest of many such scores is as much a lucky one as a good one.
So the search only nominates: its finalists are scored afresh, several times each, and the best of them replaces the
start where its mean score is lower than the start's.

Shapes: W width of a row, P rows scored together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.cli import UserError
from data_pipeline.param_kinds import Categorical
from data_pipeline.param_spec import ParamSpec
from synthjax.param_metrics import swap_to_best

try:
    from cmaes import SepCMA
except ImportError as error:
    raise UserError("refinement needs cmaes: pip install 'synthjax[refine]'") from error

# The start and every finalist are judged by the mean of this many renders.
REPEATS = 4
FINALISTS = 2

# Standard deviations of a column in the first generation: so much of the candidates', but no less than the limit, for
# candidates that agree may share an error.
SPREAD_SHARE = 0.5
MIN_STEP = 0.02
# Without candidates.
DEFAULT_STEP = 0.1

# How many categories of a row are drawn at random, on average, whatever the frequencies: none is ever ruled out.
MUTATIONS = 0.3
# How far a generation moves the frequencies towards those of its better half.
LEARNING_RATE = 0.2

Rows = NDArray[np.float64]
Scores = NDArray[np.float64]
Score = Callable[[Rows], Scores]
"""Rows (P, W) to their audio distances (P,): lower is better, inf for a row that cannot be rendered."""


@dataclass(frozen=True)
class Refined:
    """What a search found; ``row`` (W,) is the start where that was nothing better.

    ``score`` and ``start_score`` are means over renders that the search did not choose by, so that they compare.
    After an interruption ``score`` is the only one that the search has of its best row. ``evaluations`` counts all
    rows that were scored.
    """

    row: Rows
    score: float
    start_score: float
    evaluations: int
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
    progress: Callable[[float, float], None] | None = None,
) -> Refined:
    """Searches around ``row`` (W,) for ``seconds``; what it returns scores no worse.

    Args:
      row: the start; columns are meant to lie in [0, 1], but as in decoding any real numbers will do.
      score: renders and judges rows; it should not have to start its renderers in its first call, which sets the pace.
      spec: the meaning of columns.
      seconds: the time for everything. What would take longer, at the pace of what was scored last, is not begun; only
        the start is scored in any case.
      workers: how many rows ``score`` renders at a time; generations are multiples of it.
      seed: the same seed, scores and number of generations give the same row.
      candidates: rows (K, W) for the same sound, such as samples of a posterior. Where they differ, the search looks
        farther and tries other categories. Their interchangeable parts may be in any order.
      progress: called after each generation with the seconds since the beginning and the lowest score yet.

    Raises:
      ValueError: for a row or candidates of a wrong shape or not finite, and for scores of a wrong shape or NaN.
      KeyboardInterrupt: before the start is scored; later it ends the search, which returns what it has.
    """
    start = _finite("row", row, 1, spec)
    others = start[None] if candidates is None else _finite("candidates", candidates, 2, spec)
    search = _Search(start, swap_to_best(others, start[None], spec), spec, workers, seed)
    scorer = _Scorer(score, seconds, workers)
    start_scores = scorer(np.tile(start, (REPEATS, 1)))
    start_score = float(start_scores.mean())
    best, best_score, interrupted = start, start_score, False
    try:
        while scorer.has_time_for(search.population, FINALISTS * REPEATS) and not search.converged:
            rows = search.ask()
            search.tell(rows, scorer(rows))
            if progress is not None:
                progress(scorer.elapsed, min(search.best_score, start_score))
        if search.generations:
            finalists = search.finalists()
            means = scorer(np.repeat(finalists, REPEATS, axis=0)).reshape(FINALISTS, REPEATS).mean(axis=1)
            if means.min() < start_score:
                best, best_score = finalists[means.argmin()], float(means.min())
    except KeyboardInterrupt:
        interrupted = True
        # One score is weak evidence: it must beat the luckiest of the start's.
        if search.best_score < start_scores.min():
            best, best_score = search.best_row, search.best_score
    return Refined(best, best_score, start_score, scorer.evaluations, interrupted)


class _Scorer:
    """Calls ``score``, refuses what is no score, and keeps the time."""

    def __init__(self, score: Score, seconds: float, workers: int) -> None:
        self._score = score
        self._workers = workers
        self._begin = monotonic()
        self._seconds = seconds
        self._round_seconds = 0.0
        self.evaluations = 0

    def __call__(self, rows: Rows) -> Scores:
        begin = monotonic()
        scores = np.asarray(self._score(rows), np.float64)
        if scores.shape != (len(rows),) or np.isnan(scores).any():
            raise ValueError(f"{len(rows)} rows need as many scores, none of them NaN, not {scores}")
        self._round_seconds = (monotonic() - begin) / self._rounds(len(rows))
        self.evaluations += len(rows)
        return scores

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return monotonic() - self._begin

    def has_time_for(self, *batches: int) -> bool:
        """Whether batches of so many rows would be done in time, at the pace of the last one."""
        return self.elapsed + sum(map(self._rounds, batches)) * self._round_seconds <= self._seconds

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
        # The library starts with one variance for all columns: it sees each in units of its first step.
        self._strategy = SepCMA(
            mean=np.clip(start[self._numbers], 0.0, 1.0) / self._steps,
            sigma=1.0,
            bounds=np.outer(1.0 / self._steps, [0.0, 1.0]),
            # Draws that leave the box are clipped; of hundreds of columns, some always do.
            n_max_resampling=0,
            seed=seed,
            population_size=self.population,
        )

    @property
    def converged(self) -> bool:
        """Whether more generations would change nothing."""
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
        # Only their order counts, but the library subtracts scores to see whether they still change.
        finite = np.minimum(scores, np.finfo(np.float64).max)
        self._strategy.tell(list(zip(rows[:, self._numbers] / self._steps, finite, strict=True)))
        self._categories.tell(rows[order[: self.population // 2]])
        self.generations += 1

    def finalists(self) -> Rows:
        """(FINALISTS, W): the row that scored best, and the middle of the distribution, which owes less to luck."""
        middle = self._start.copy()
        middle[self._numbers] = self._unscaled(self._strategy.mean)
        self._categories.set_likeliest(middle)
        return np.stack([self.best_row, middle])

    def _unscaled(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        # Multiplying what was divided may leave the box by a rounding error.
        return np.clip(numbers * self._steps, 0.0, 1.0)


class _Categories:
    """Frequencies of the categories of every one-hot group; ``columns`` are those of all groups."""

    def __init__(self, start: Rows, candidates: Rows, spec: ParamSpec, seed: int) -> None:
        chosen = [parameter for parameter in spec.parameters if isinstance(parameter, Categorical)]
        self._groups = [spec.slices[parameter.name] for parameter in chosen]
        self.columns = np.concatenate([np.arange(0), *(np.arange(g.start, g.stop) for g in self._groups)])
        self._rng = np.random.default_rng(seed)
        # One half for the start, the other for the candidates.
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
        """Moves the frequencies towards those of the better rows (P / 2, W), the best of which comes first."""
        # As the strategy weighs them.
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
        """Frequencies (K,) none of which is too low to be drawn now and then."""
        raised = np.maximum(frequencies, MUTATIONS / len(self._groups) / len(frequencies))
        return raised / raised.sum()


def _one_hot(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns (..., K) to 1 for the largest, the first of equals as in decoding, and 0 for the others."""
    return np.eye(columns.shape[-1])[columns.argmax(axis=-1)]


def _first_steps(candidates: Rows) -> NDArray[np.float64]:
    """Standard deviations of columns in the first generation, from those of candidates (K, columns)."""
    if len(candidates) < 2:
        return np.full(candidates.shape[1], DEFAULT_STEP)
    return np.maximum(SPREAD_SHARE * candidates.std(axis=0), MIN_STEP)


def _population(columns: int, workers: int) -> int:
    """Rows a generation: Hansen's default, rounded up to keep all workers busy.

    A strategy of more than a few times as many rows as columns would learn too fast to keep its variances positive.
    """
    usual = 4 + math.floor(3 * math.log(columns))
    return max(usual, min(math.ceil(usual / workers) * workers, 4 * columns))


def _finite(name: str, rows: ArrayLike, dimensions: int, spec: ParamSpec) -> Rows:
    """Rows (W,) or (K, W), as 1 or 2 dimensions say."""
    values = np.array(rows, np.float64)
    if values.ndim != dimensions or values.shape[-1] != spec.width or not values.size or not np.isfinite(values).all():
        shape = ("K, " if dimensions == 2 else "") + f"{spec.width}"
        raise ValueError(f"{name} must be ({shape}) finite numbers for {spec.name}; the shape is {values.shape}")
    return values
