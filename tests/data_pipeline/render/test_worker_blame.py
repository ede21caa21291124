"""A patch that costs three workers is found and refused."""

from __future__ import annotations

import pytest

from data_pipeline.render.row_renderer import Batch
from data_pipeline.render.worker_messages import DRIFT, ERROR, Failed
from data_pipeline.render.worker_pool import Loss, Outcome, Rejection, Supervision, WorkerPool
from tests.data_pipeline.worker_play import (
    DIES,
    MAX_MEMORY,
    RENDER_SECONDS,
    SETTINGS,
    Actor,
    Part,
    Stage,
    attempts,
    diligent,
    indices,
    only_first,
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
    assert len(stage.losses) == 3
    refused = Rejection(2, 0, reason, detail)
    assert stage.losses == [Loss(reason, detail, "last words", rejection) for rejection in (None, None, refused)]
    tried = [batch for batch in stage.assigned if 2 in batch.indices]
    assert [sorted(batch.forbidden) for batch in tried] == [[], [], [], [(2, 0)]]
    assert not any(batch.verify_each for batch in tried)


def test_losses_are_reported_before_the_batch_that_they_delayed(stage: Stage) -> None:
    """A run saves a rejection before it commits rows that depend on it."""
    stage.play = stopping_at((2, 0), DIES)
    told: list[Loss | Outcome] = []
    with WorkerPool(SETTINGS, 1, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
        for outcome in pool.run(two_by_two(3), told.append):
            told.append(outcome)
    rendered = [one.batch.rows[0].index if isinstance(one, Outcome) else DIES for one in told]
    assert rendered == [0, DIES, DIES, DIES, 2, 4]


def test_a_message_that_a_worker_has_sent_and_printed_is_reported_once(stage: Stage) -> None:
    """An exception's message also ends its traceback."""
    stage.run(only_first(stopping_at((0, 0), Failed(ERROR, "KeyError: last words"))), two_by_two(1))
    assert stage.losses == [Loss(ERROR, "KeyError: last words", "last words")]


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
    assert len(stage.losses) == 6
    assert [(rejection.index, rejection.attempt) for rejection in stage.rejections] == [(0, 0), (1, 0)]


@pytest.mark.parametrize("culprit", [0, 1])
def test_drift_is_searched_before_anybody_is_blamed(stage: Stage, culprit: int) -> None:
    """A drift is noticed at the end of a batch. Only if every render is verified is the last one its cause."""
    drift = Failed(DRIFT, "tone is 0.1")

    def play(worker: Actor, batch: Batch | None) -> Part:
        if batch and (culprit, 0) not in batch.forbidden and culprit in batch.indices:
            made = attempts(batch)
            return [*(made[: culprit + 1] if batch.verify_each else made), drift]
        return diligent(worker, batch)

    stage.run(play, two_by_two(2))
    assert stage.rejections == [Rejection(culprit, 0, DRIFT, "tone is 0.1: last words")]
    assert [batch.verify_each for batch in stage.assigned if 0 in batch.indices] == [False, True, True, True, True]
    assert len(stage.losses) == 4
