"""Refinement against scores with a known minimum, on a clock that only scoring moves."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.audio.metrics import mss_spectrograms, spectrogram_distance
from data_pipeline.params.groups import Panel
from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.choice import instrument
from data_pipeline.synths.subtractive import Subtractive
from synthjax.inference import refine as refine_module
from synthjax.inference.refine import CHILDREN, FINALISTS, REPEATS, Budget, Refined, Search, search_within
from tests.helpers import REPOSITORY

SPEC = load_spec("subtractive")
GROUPS = [SPEC.slices[parameter.name] for parameter in SPEC.parameters if isinstance(parameter, Categorical)]
CATEGORICAL = np.zeros(SPEC.width, bool)
for columns in GROUPS:
    CATEGORICAL[columns] = True
RENDER_SECONDS = 0.05


class Bench:
    """Scores rows with a function of one row, each ``RENDER_SECONDS`` of its own clock."""

    def __init__(self, function: Callable[[NDArray], float]) -> None:
        self.function = function
        self.now = 100.0
        self.batches: list[NDArray] = []
        self.interrupt_at: int | None = None

    def __call__(self, rows: NDArray, limit: float) -> NDArray:
        if len(self.batches) == self.interrupt_at:
            raise KeyboardInterrupt
        self.batches.append(rows.copy())
        self.now += RENDER_SECONDS * len(rows)
        return np.array([self.function(row) for row in rows])

    def refine(self, *rows: NDArray, seconds: float = 40.0, exact: bool = True, **arguments: Any) -> Refined:
        budget = arguments.pop("budget", Budget(seconds))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(refine_module, "monotonic", lambda: self.now)
            return search_within(self.search(*rows, exact=exact, **arguments), budget)

    def search(self, *rows: NDArray, exact: bool = True, **arguments: Any) -> Search:
        return Search(rows, self, exact=exact, **{"spec": SPEC, "panel": Panel(), **arguments})


def sample(index: int) -> NDArray[np.float64]:
    return np.float64(SPEC.sample(5, [index], [0])[0])


def near(row: NDArray, noise: float = 0.15) -> NDArray:
    moved = np.random.default_rng(0).normal(row, noise)
    return np.where(CATEGORICAL, row, np.clip(moved, 0.0, 1.0))


def distance_from(target: NDArray) -> Callable[[NDArray], float]:
    return lambda row: float(np.linalg.norm(row - target))


TARGET = sample(0)
START = near(TARGET)


@pytest.mark.parametrize("exact", [True, False])
def test_search_comes_much_closer_to_the_target(exact: bool) -> None:
    bench = Bench(distance_from(TARGET))
    refined = bench.refine(START, seconds=80.0, exact=exact)
    assert refined.start_score == pytest.approx(np.linalg.norm(START - TARGET))
    assert refined.score == pytest.approx(np.linalg.norm(refined.row - TARGET))
    assert refined.score < 0.3 * refined.start_score
    assert refined.evaluations == sum(map(len, bench.batches))
    assert not refined.interrupted


@settings(max_examples=15, deadline=None)
@given(index=st.integers(0, 10**6), frequency=st.floats(0.1, 100.0), seconds=st.floats(0.0, 4.0), exact=st.booleans())
def test_result_is_never_worse_than_the_start(index: int, frequency: float, seconds: float, exact: bool) -> None:
    weights = np.random.default_rng(index).normal(size=SPEC.width) * frequency
    bench = Bench(lambda row: float(np.sin(row @ weights)))
    start = sample(index)
    refined = bench.refine(start, seconds=seconds, exact=exact)
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

    refined = Bench(flattering).refine(START, exact=False)
    np.testing.assert_array_equal(refined.row, START)


def test_scores_reported_are_means_of_fresh_renders() -> None:
    noise = np.random.default_rng(1)
    bench = Bench(lambda row: float(np.linalg.norm(row - TARGET) + noise.normal(0.0, 0.2)))
    refined = bench.refine(START, exact=False)
    assert len(bench.batches[0]) == REPEATS
    finalists = bench.batches[-1].reshape(FINALISTS, REPEATS, SPEC.width)
    assert (finalists == finalists[:, :1]).all()
    assert any((refined.row == finalist[0]).all() for finalist in finalists)
    # The lowest of hundreds of scores lies well under what its row deserves.
    assert refined.score == pytest.approx(np.linalg.norm(refined.row - TARGET), abs=0.3)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("budget", [Budget(seconds=7.0), Budget(evaluations=100), Budget(7.0, 100)])
def test_a_budget_is_used_and_not_overrun(budget: Budget, exact: bool) -> None:
    bench = Bench(distance_from(TARGET))
    refined = bench.refine(START, near(TARGET, 0.3), budget=budget, exact=exact)
    most = min(budget.evaluations, budget.seconds / RENDER_SECONDS)
    assert most - CHILDREN < refined.evaluations <= most


@pytest.mark.parametrize("exact", [True, False])
def test_too_small_a_budget_gives_the_start_and_its_score(exact: bool) -> None:
    bench = Bench(distance_from(TARGET))
    refined = bench.refine(START, seconds=0.0, exact=exact)
    np.testing.assert_array_equal(refined.row, START)
    assert refined.score == refined.start_score == pytest.approx(bench.function(START))


@pytest.mark.parametrize("exact", [True, False])
def test_a_search_that_is_kept_goes_on_as_if_it_had_not_stopped(exact: bool, tmp_path: Path) -> None:
    candidates = [START, near(TARGET, 0.3)]
    whole = Bench(distance_from(TARGET)).refine(*candidates, budget=Budget(evaluations=400), exact=exact)
    bench = Bench(distance_from(TARGET))
    first = bench.search(*candidates, exact=exact)
    first.start()
    for _ in range(4):
        first.advance()
    np.savez(tmp_path / "search.npz", **first.state())
    second = bench.search(*candidates, exact=exact)
    with np.load(tmp_path / "search.npz") as state:
        second.restore(state)
    assert (second.score, second.evaluations) == (first.score, first.evaluations)
    found = search_within(second, Budget(evaluations=400))
    np.testing.assert_array_equal(found.row, whole.row)
    assert (found.score, found.start_score, found.evaluations) == (whole.score, whole.start_score, whole.evaluations)


def test_rows_stay_in_the_box() -> None:
    bench = Bench(lambda row: -float(np.abs(row - 0.5)[~CATEGORICAL].sum()))  # The corners are best.
    start = np.where(CATEGORICAL, START, np.linspace(-0.2, 1.3, SPEC.width))
    refined = bench.refine(start)
    rows = np.concatenate(bench.batches)
    assert rows.min() == 0.0
    assert rows.max() == 1.0
    for columns in GROUPS:
        np.testing.assert_array_equal(np.sort(rows[:, columns]), [[0.0, 0.0, 1.0]] * len(rows))
    assert refined.score < refined.start_score
    SPEC.decode(refined.row)


def test_a_wrong_category_is_found() -> None:
    start = TARGET.copy()
    start[GROUPS[0]] = np.roll(start[GROUPS[0]], 1)
    tones = 0.01 * np.arange(SPEC.width)  # No two categories sound alike.
    refined = Bench(lambda row: distance_from(TARGET)(row) + float(tones @ row)).refine(start)
    np.testing.assert_array_equal(refined.row[GROUPS[0]], TARGET[GROUPS[0]])


def test_modules_of_several_candidates_are_joined() -> None:
    """Each candidate has one operator of the target. Only exchanges can join them within 1,200 renders."""
    spec, panel = load_spec("dexed"), instrument("dexed").panel
    target, *others = np.float64(spec.sample(5, range(5), [0] * 5))
    names = panel.modules(spec)
    for number, other in enumerate(others, 1):
        for name in names[f"Operator {number}"]:
            other[spec.slices[name]] = target[spec.slices[name]]

    def misses(row: NDArray) -> float:
        """The number of the four operators that differ from the target's, and a little for every column that does."""
        wrong = np.abs(row - target) > 1e-6
        operators = [any(wrong[spec.slices[name]].any() for name in names[f"Operator {k}"]) for k in range(1, 5)]
        return sum(operators) + 1e-4 * float(np.linalg.norm(row - target))

    refined = Bench(misses).refine(*others, spec=spec, panel=panel, budget=Budget(evaluations=1200))
    assert refined.start_score > 3.0
    assert refined.score < 1.0


def test_values_that_are_not_heard_are_changed_less_often() -> None:
    bench = Bench(lambda row: float(abs(row[0] - TARGET[0])))
    bench.refine(START, seconds=60.0)
    changed = (np.concatenate(bench.batches[-20:]) != START).mean(axis=0)
    assert changed[0] > 2 * np.median(changed)


NOTE_NAMES = {parameter.name for parameter in SPEC.note_params}
SYNTH_NAMES = {parameter.name for parameter in SPEC.synth_params}


@pytest.mark.parametrize(
    "locked",
    [{"pitch"}, NOTE_NAMES, SYNTH_NAMES, {*NOTE_NAMES, *sorted(SYNTH_NAMES)[::2]}],
    ids=["pitch", "note", "all but the note", "note and half"],
)
def test_locked_parameters_are_not_changed_and_the_others_are(locked: set[str]) -> None:
    columns = np.zeros(SPEC.width, bool)
    for name in locked:
        columns[SPEC.slices[name]] = True
    starts = [np.where(columns, START, near(sample(index))) for index in range(4)]
    bench = Bench(distance_from(TARGET))
    refined = bench.refine(*starts, locked=locked, panel=instrument("subtractive").panel)
    assert refined.score < refined.start_score
    scored = np.concatenate(bench.batches)
    np.testing.assert_array_equal(scored[:, columns], np.broadcast_to(START[columns], (len(scored), columns.sum())))
    assert (scored[1:, ~columns] != scored[0, ~columns]).any(axis=0).all()


def test_same_seed_gives_the_same_row() -> None:
    results = [Bench(distance_from(TARGET)).refine(START, seconds=5.0, seed=seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(results[0].row, results[1].row)
    assert (results[0].row != results[2].row).any()


def test_arguments_are_left_as_they_were() -> None:
    rows = START.copy(), sample(1)
    Bench(distance_from(TARGET)).refine(*rows)
    np.testing.assert_array_equal(rows, (START, sample(1)))


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
    whole.refine(START, exact=False)
    bench = Bench(distance_from(TARGET))
    bench.interrupt_at = len(whole.batches) - 1
    refined = bench.refine(START, exact=False)
    assert refined.interrupted
    assert refined.score < 0.7 * refined.start_score


def test_after_an_interruption_one_lucky_score_is_not_enough() -> None:
    noise = itertools.cycle([0.0, 2.0, 1.0, 1.0])  # The start: 1 on average, at best 0.
    bench = Bench(lambda row: next(noise) + (row != START).any() * 0.5)
    bench.interrupt_at = 5
    refined = bench.refine(START, exact=False)
    assert refined.start_score == 1.0
    np.testing.assert_array_equal(refined.row, START)


def test_interruption_before_the_start_is_scored_is_passed_on() -> None:
    bench = Bench(distance_from(TARGET))
    bench.interrupt_at = 0
    with pytest.raises(KeyboardInterrupt):
        bench.refine(START)


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
