"""Whoever costs workers is found, and refused."""

from __future__ import annotations

import pytest

from data_pipeline.row_renderer import Batch
from data_pipeline.worker_messages import DRIFT, Failed
from data_pipeline.worker_pool import Rejection
from tests.data_pipeline.worker_play import (
    DIES,
    Actor,
    Part,
    Stage,
    attempts,
    diligent,
    indices,
    restarts,
    stopping_at,
    two_by_two,
)


@pytest.mark.parametrize(
    ("end", "reason", "detail"),
    [
        ((DIES,), "crash", "killed by signal 11: last words"),
        ((), "hang", "no news within the time limit: last words"),
    ],
)
def test_patch_that_costs_three_workers_is_refused_for_good(stage: Stage, end: Part, reason: str, detail: str) -> None:
    outcomes = stage.run(stopping_at((2, 0), *end), two_by_two(3))
    assert indices(outcomes) == list(range(6))
    assert restarts(outcomes) == 3
    assert [rejection for outcome in outcomes for rejection in outcome.rejections] == [Rejection(2, 0, reason, detail)]
    tried = [batch for batch in stage.assigned if 2 in batch.indices]
    assert [sorted(batch.forbidden) for batch in tried] == [[], [], [], [(2, 0)]]
    assert not any(batch.verify_each for batch in tried)


def test_rejection_comes_with_the_outcome_of_its_batch_or_before(stage: Stage) -> None:
    """The run writes it down before it commits rows that stand on it."""
    outcomes = stage.run(stopping_at((2, 0), DIES), two_by_two(3), workers=2)
    said = next(number for number, outcome in enumerate(outcomes) if outcome.rejections)
    rendered = next(number for number, outcome in enumerate(outcomes) if outcome.batch.rows[0].index == 2)
    assert said <= rendered


def test_forbidden_attempts_of_earlier_runs_are_kept(stage: Stage) -> None:
    stage.run(stopping_at((0, 1), DIES), [Batch((0, 1), frozenset({(0, 0)}))])
    assert [sorted(batch.forbidden) for batch in stage.assigned] == [[(0, 0)]] * 3 + [[(0, 0), (0, 1)]]


def test_two_killers_in_one_batch(stage: Stage) -> None:
    def play(worker: Actor, batch: Batch | None) -> Part:
        return next(
            (part for killer in ((0, 0), (1, 0)) if DIES in (part := stopping_at(killer, DIES)(worker, batch))),
            diligent(worker, batch),
        )

    outcomes = stage.run(play, two_by_two(2))
    assert indices(outcomes) == [0, 1, 2, 3]
    assert restarts(outcomes) == 6
    rejections = [rejection for outcome in outcomes for rejection in outcome.rejections]
    assert [(rejection.index, rejection.attempt) for rejection in rejections] == [(0, 0), (1, 0)]


@pytest.mark.parametrize("culprit", [0, 1])
def test_drift_is_searched_before_anybody_is_blamed(stage: Stage, culprit: int) -> None:
    """It shows at the end of a batch: only when each render is verified is the last one the culprit."""
    drift = Failed(DRIFT, "tone is 0.1")

    def play(worker: Actor, batch: Batch | None) -> Part:
        if batch and (culprit, 0) not in batch.forbidden and culprit in batch.indices:
            made = attempts(batch)
            return [*(made[: culprit + 1] if batch.verify_each else made), drift]
        return diligent(worker, batch)

    outcomes = stage.run(play, two_by_two(2))
    (rejection,) = (rejection for outcome in outcomes for rejection in outcome.rejections)
    assert rejection == Rejection(culprit, 0, DRIFT, "tone is 0.1: last words")
    assert [batch.verify_each for batch in stage.assigned if 0 in batch.indices] == [False, True, True, True, True]
    assert restarts(outcomes) == 4
