"""Refinement against scores with a known minimum, on a clock that only scoring moves."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.audio.metrics import mss_spectrograms, spectrogram_distance
from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.subtractive import Subtractive
from synthjax.inference import refine as refine_module
from synthjax.inference.refine import REPEATS, Refined, refine
from tests.helpers import REPOSITORY

SPEC = load_spec("subtractive")
GROUPS = [SPEC.slices[parameter.name] for parameter in SPEC.parameters if isinstance(parameter, Categorical)]
CATEGORICAL = np.zeros(SPEC.width, bool)
for columns in GROUPS:
    CATEGORICAL[columns] = True
SWAPPABLE = np.array([name.startswith("osc_") for name in SPEC.column_names])
RENDER_SECONDS = 0.05


class Bench:
    """Scores rows with a function of one row, ``workers`` at a time, each ``RENDER_SECONDS`` of its own clock."""

    def __init__(self, function: Callable[[NDArray], float], workers: int = 1) -> None:
        self.function, self.workers = function, workers
        self.now = 100.0
        self.batches: list[NDArray] = []
        self.interrupt_at: int | None = None

    def __call__(self, rows: NDArray) -> NDArray:
        if len(self.batches) == self.interrupt_at:
            raise KeyboardInterrupt
        self.batches.append(rows.copy())
        self.now += RENDER_SECONDS * -(-len(rows) // self.workers)
        return np.array([self.function(row) for row in rows])

    def refine(self, row: NDArray, seconds: float = 20.0, **arguments: Any) -> Refined:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(refine_module, "monotonic", lambda: self.now)
            return refine(row, self, spec=SPEC, seconds=seconds, workers=self.workers, **arguments)

    @property
    def generations(self) -> list[NDArray]:
        """Without the start's scores at the beginning and the finalists' at the end."""
        return self.batches[1:-1]


def sample(index: int) -> NDArray[np.float64]:
    return np.float64(SPEC.sample(5, [index], [0])[0])


def near(row: NDArray, noise: float = 0.15) -> NDArray:
    moved = np.random.default_rng(0).normal(row, noise)
    return np.where(CATEGORICAL, row, np.clip(moved, 0.0, 1.0))


def distance_from(target: NDArray) -> Callable[[NDArray], float]:
    return lambda row: float(np.linalg.norm(row - target))


TARGET = sample(0)
START = near(TARGET)


def test_search_comes_much_closer_to_the_target() -> None:
    bench = Bench(distance_from(TARGET))
    refined = bench.refine(START, seconds=60.0)
    assert refined.start_score == pytest.approx(np.linalg.norm(START - TARGET))
    assert refined.score == pytest.approx(np.linalg.norm(refined.row - TARGET))
    assert refined.score < 0.3 * refined.start_score
    assert not refined.interrupted


@settings(max_examples=15, deadline=None)
@given(index=st.integers(0, 10**6), frequency=st.floats(0.1, 100.0), seconds=st.floats(0.0, 4.0))
def test_result_is_never_worse_than_the_start(index: int, frequency: float, seconds: float) -> None:
    weights = np.random.default_rng(index).normal(size=SPEC.width) * frequency
    bench = Bench(lambda row: float(np.sin(row @ weights)))
    start = sample(index)
    refined = bench.refine(start, seconds)
    assert refined.score <= refined.start_score == pytest.approx(bench.function(start))
    assert refined.score == pytest.approx(bench.function(refined.row))


@pytest.mark.parametrize("function", [distance_from(START), lambda row: 3.0], ids=["optimum", "flat"])
def test_start_is_returned_where_nothing_is_better(function: Callable[[NDArray], float]) -> None:
    refined = Bench(function).refine(START)
    np.testing.assert_array_equal(refined.row, START)
    assert refined.score == refined.start_score


def test_luck_does_not_replace_the_start() -> None:
    """Every other row sounds worse than the start, but its first render happens to score better."""
    heard = set()

    def flattering(row: NDArray) -> float:
        lucky = row.tobytes() not in heard
        heard.add(row.tobytes())
        return 0.0 if (row == START).all() else 1.0 - 2.0 * lucky

    refined = Bench(flattering).refine(START)
    np.testing.assert_array_equal(refined.row, START)


def test_scores_reported_are_means_of_fresh_renders() -> None:
    noise = np.random.default_rng(1)
    bench = Bench(lambda row: float(np.linalg.norm(row - TARGET) + noise.normal(0.0, 0.2)))
    refined = bench.refine(START)
    assert len(bench.batches[0]) == REPEATS
    finalists = bench.batches[-1].reshape(-1, REPEATS, SPEC.width)
    assert (finalists == finalists[:, :1]).all()
    assert any((refined.row == finalist[0]).all() for finalist in finalists)
    # The lowest of hundreds of scores lies well under what its row deserves.
    assert refined.score == pytest.approx(np.linalg.norm(refined.row - TARGET), abs=0.3)


@pytest.mark.parametrize("workers", [1, 2, 3, 16, 1000])
def test_generations_keep_all_workers_busy(workers: int) -> None:
    bench = Bench(distance_from(TARGET), workers)
    refined = bench.refine(START, seconds=4.0)
    assert bench.generations
    for rows in bench.generations:
        assert len(rows) % workers == 0 or len(rows) < workers
    assert refined.score < refined.start_score


def test_thousands_of_workers_do_not_break_the_strategy() -> None:
    """It would learn from so many rows at once that variances became negative."""
    refined = Bench(distance_from(TARGET), workers=5000).refine(START, seconds=4.0)
    assert refined.score < 0.1 * refined.start_score


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("seconds", [2.0, 3.3, 10.0])
def test_time_is_used_and_not_overrun(seconds: float, workers: int) -> None:
    bench = Bench(distance_from(TARGET), workers)
    bench.refine(START, seconds)
    used = bench.now - 100.0
    assert used <= seconds
    assert used + RENDER_SECONDS * np.ceil(len(bench.batches[1]) / workers) > seconds


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_too_little_time_gives_the_start_and_its_score(seconds: float) -> None:
    bench = Bench(distance_from(TARGET))
    refined = bench.refine(START, seconds)
    assert len(bench.batches) == 1
    np.testing.assert_array_equal(refined.row, START)
    assert refined.score == refined.start_score == pytest.approx(np.linalg.norm(START - TARGET))


def test_a_slow_generation_is_the_last_where_another_would_not_fit() -> None:
    bench = Bench(distance_from(TARGET))

    def distance(row: NDArray) -> float:
        bench.now += 0.5 if len(bench.batches) == 4 else 0.0
        return distance_from(TARGET)(row)

    bench.function = distance
    bench.refine(START, seconds=20.0)
    assert len(bench.batches) == 5  # The start, three generations, the finalists.


def test_rows_stay_in_the_box() -> None:
    bench = Bench(lambda row: -float(np.abs(row - 0.5)[~CATEGORICAL].sum()))  # The corners are best.
    start = np.where(CATEGORICAL, START, np.linspace(-0.2, 1.3, SPEC.width))
    refined = bench.refine(start)
    rows = np.concatenate(bench.generations)
    assert rows.min() == 0.0
    assert rows.max() == 1.0
    for columns in GROUPS:
        np.testing.assert_array_equal(np.sort(rows[:, columns]), [[0.0, 0.0, 1.0]] * len(rows))
    assert refined.score < refined.start_score
    SPEC.decode(refined.row)


def with_category(row: NDArray, columns: slice, category: int) -> NDArray:
    changed = row.copy()
    changed[columns] = np.eye(3)[category]
    return changed


@pytest.mark.parametrize("doubted", [False, True])
def test_wrong_category_is_found(doubted: bool) -> None:
    """Without candidates by mutation alone; sooner where half of them have the right one."""
    right = START[GROUPS[0]].argmax()
    start = with_category(START, GROUPS[0], (right + 1) % 3)
    candidates = np.stack([start, START] * 4) if doubted else None
    bench = Bench(distance_from(TARGET))
    refined = bench.refine(start, seconds=4.0 if doubted else 30.0, candidates=candidates)
    assert refined.row[GROUPS[0]].argmax() == right
    assert refined.score < refined.start_score


def test_first_generation_draws_categories_as_start_and_candidates_have_them() -> None:
    start = with_category(START, GROUPS[0], 0)
    candidates = np.stack([start, start, with_category(start, GROUPS[0], 2), with_category(start, GROUPS[0], 2)])
    drawn = []
    for seed in range(20):
        bench = Bench(distance_from(TARGET), workers=1000)
        bench.refine(start, seconds=0.2, candidates=candidates, seed=seed)
        drawn.append(bench.generations[0])
    shares = np.concatenate(drawn)[:, GROUPS[0]].mean(axis=0)
    assert shares == pytest.approx([0.725, 0.032, 0.242], abs=0.03)
    for group in GROUPS[1:]:  # Nobody doubts these, but they are tried now and then.
        assert 0.03 < (np.concatenate(drawn)[:, group] != start[group]).any(axis=1).mean() < 0.1


def first_generation(candidates: NDArray | None) -> NDArray:
    """Its standard deviations in all columns but the categories'."""
    bench = Bench(distance_from(TARGET), workers=1000)
    bench.refine(np.full(SPEC.width, 0.5), seconds=0.2, candidates=candidates)
    return bench.generations[0].std(axis=0)[~CATEGORICAL]


def test_search_looks_farther_where_candidates_differ() -> None:
    spread = np.zeros(SPEC.width)
    spread[~SWAPPABLE] = np.linspace(0.0, 0.4, np.count_nonzero(~SWAPPABLE))
    candidates = 0.5 + np.array([[-1.0], [1.0]]) * spread
    expected = np.maximum(0.5 * spread, 0.02)[~CATEGORICAL]
    np.testing.assert_allclose(first_generation(candidates), expected, rtol=0.25)


def test_spread_of_candidates_ends_where_columns_do() -> None:
    inside, outside = np.array([[[0.0], [1.0]], [[-2.0], [3.0]]]) * np.ones(SPEC.width)
    np.testing.assert_array_equal(first_generation(outside), first_generation(inside))


@pytest.mark.parametrize("candidates", [None, np.full((1, SPEC.width), 0.9)])
def test_search_looks_equally_far_everywhere_without_candidates(candidates: NDArray | None) -> None:
    np.testing.assert_allclose(first_generation(candidates), 0.1, rtol=0.25)


def test_candidates_that_only_swap_interchangeable_parts_do_not_differ() -> None:
    candidates = START[SPEC.column_permutations()]
    bench = Bench(distance_from(TARGET), workers=1000)
    bench.refine(START, seconds=0.2, candidates=candidates)
    moved = bench.generations[0] - START
    assert np.abs(moved[:, ~CATEGORICAL]).max() < 0.1
    assert (moved[:, CATEGORICAL] != 0.0).any(axis=1).mean() < 0.4


def test_same_seed_gives_the_same_row() -> None:
    results = [Bench(distance_from(TARGET)).refine(START, seconds=5.0, seed=seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(results[0].row, results[1].row)
    assert (results[0].row != results[2].row).any()


def test_arguments_are_left_as_they_were() -> None:
    start, candidates = START.copy(), np.stack([TARGET, START])
    Bench(distance_from(TARGET)).refine(start, candidates=candidates)
    np.testing.assert_array_equal(start, START)
    np.testing.assert_array_equal(candidates, [TARGET, START])


def test_rows_that_cannot_be_rendered_are_avoided() -> None:
    bench = Bench(lambda row: np.inf if row[-3] > START[-3] else np.linalg.norm(row - TARGET))
    refined = bench.refine(START)
    assert refined.score < 0.7 * refined.start_score
    assert refined.row[-3] <= START[-3]


def test_start_that_cannot_be_rendered_is_replaced() -> None:
    bench = Bench(lambda row: np.inf if (row == START).all() else np.linalg.norm(row - TARGET))
    refined = bench.refine(START)
    assert refined.start_score == np.inf
    assert np.isfinite(refined.score)


def test_nothing_renders() -> None:
    with np.errstate(all="raise"):
        refined = Bench(lambda row: np.inf).refine(START)
    np.testing.assert_array_equal(refined.row, START)
    assert refined.score == np.inf


def test_interruption_returns_the_best_so_far() -> None:
    bench = Bench(distance_from(TARGET))
    bench.interrupt_at = 20
    refined = bench.refine(START, seconds=1e6)
    scores = [bench.function(row) for row in np.concatenate(bench.batches)]
    assert refined.interrupted
    assert len(bench.batches) == 20
    assert refined.score == pytest.approx(min(scores))
    assert bench.function(refined.row) == pytest.approx(min(scores))


def test_interruption_of_the_final_scores_returns_the_best_so_far() -> None:
    whole = Bench(distance_from(TARGET))
    whole.refine(START)
    bench = Bench(distance_from(TARGET))
    bench.interrupt_at = len(whole.batches) - 1
    refined = bench.refine(START)
    assert refined.interrupted
    assert refined.score < 0.7 * refined.start_score


def test_after_an_interruption_one_lucky_score_is_not_enough() -> None:
    noise = itertools.cycle([0.0, 2.0, 1.0, 1.0])  # The start: 1 on average, at best 0.
    bench = Bench(lambda row: next(noise) + (row != START).any() * 0.5)
    bench.interrupt_at = 5
    refined = bench.refine(START)
    assert refined.start_score == 1.0
    np.testing.assert_array_equal(refined.row, START)


def test_interruption_before_the_start_is_scored_is_passed_on() -> None:
    bench = Bench(distance_from(TARGET))
    bench.interrupt_at = 0
    with pytest.raises(KeyboardInterrupt):
        bench.refine(START)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    module = importlib.util.spec_from_file_location("refine_without_cmaes", refine_module.__file__)
    assert module is not None
    assert module.loader is not None
    with pytest.raises(UserError, match=r"pip install 'synthjax\[refine\]'"):
        module.loader.exec_module(importlib.util.module_from_spec(module))


def test_it_imports_no_accelerator_stage() -> None:
    code = "import sys, synthjax.inference.refine; sys.exit(bool({'jax', 'flax', 'pedalboard'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_a_sound_of_the_built_in_synthesizer_is_approached() -> None:
    synth = Subtractive()

    def spectrograms(row: NDArray) -> Any:
        return mss_spectrograms(synth.render(SPEC.decode(row)))

    target = spectrograms(TARGET)
    bench = Bench(lambda row: spectrogram_distance(target, spectrograms(row)))
    refined = bench.refine(START, seconds=5.0)
    assert refined.score < 0.9 * refined.start_score
