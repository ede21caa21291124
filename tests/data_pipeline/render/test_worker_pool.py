"""Supervision of fake workers: every batch is rendered once, whatever happens to a worker."""

from __future__ import annotations

from multiprocessing.connection import Connection

import pytest

from data_pipeline.render import worker_pool
from data_pipeline.render.row_renderer import Batch
from data_pipeline.render.worker_messages import DRIFT, NOTHING_ACCEPTED, Announced, Failed
from data_pipeline.render.worker_pool import Loss, Outcome, Supervision, WorkerPool
from tests.data_pipeline.worker_play import (
    DIES,
    MAX_MEMORY,
    READY,
    RENDER_SECONDS,
    SETTINGS,
    Actor,
    Part,
    Stage,
    attempts,
    diligent,
    finished,
    indices,
    only_first,
    stopping_at,
    two_by_two,
)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_batch_is_rendered_once(stage: Stage, workers: int) -> None:
    outcomes = stage.run(diligent, two_by_two(7), workers)
    assert indices(outcomes) == list(range(14))
    assert len(outcomes) == len(stage.assigned) == 7
    assert outcomes[0] == Outcome(finished(Batch((0, 1))).batch, "fake", "1.0")
    assert not stage.losses
    assert len(stage.actors) == workers


def test_nothing_to_do_needs_no_worker(stage: Stage) -> None:
    assert stage.run(diligent, [], workers=0) == []


def test_batches_are_taken_as_they_are_needed(stage: Stage) -> None:
    """A data set has many batches: they are not all held in memory."""
    source = iter(two_by_two(50))
    with WorkerPool(SETTINGS, 2, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
        outcomes = pool.run(source)
        next(outcomes)
        assert len(list(source)) >= 50 - 4  # Two with the workers, two waiting.


def test_pool_renders_again_after_a_run(stage: Stage) -> None:
    """Ray's processes call ``run`` with one batch at a time."""
    with WorkerPool(SETTINGS, 1, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
        for batch in two_by_two(3):
            assert indices(pool.run([batch])) == list(batch.indices)
    assert len(stage.actors) == 1


def test_run_that_was_not_listened_to_leaves_nothing_waiting(stage: Stage) -> None:
    with WorkerPool(SETTINGS, 1, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
        abandoned = pool.run(two_by_two(10))
        next(abandoned)
        assert indices(pool.run([Batch((100, 101))])) == [100, 101]


@pytest.mark.parametrize("end", [(DIES,), (), (Failed(DRIFT, "tone is 0.1"),), (Failed(NOTHING_ACCEPTED, "none"),)])
def test_failure_of_a_moment_costs_one_worker(stage: Stage, end: Part) -> None:
    """The fault is a crash, a hang, a drift, or a plugin that no longer makes any sound."""
    outcomes = stage.run(only_first(stopping_at((1, 0), *end)), two_by_two(4), workers=2)
    assert indices(outcomes) == list(range(8))
    assert len(stage.losses) == 1
    assert not stage.rejections
    assert [batch.indices for batch in stage.assigned].count((0, 1)) == 2


def test_worker_is_given_its_time_for_every_attempt(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for a render, not for the batch as a whole."""
    stage.play = lambda worker, batch: [READY] if batch is None else attempts(batch)[:1]
    news = iter([None, Announced((1, 0)), None, finished(Batch((0, 1)))])

    def wait(connections: list[Connection], timeout: float) -> list[Connection]:
        (actor,) = stage.actors
        if not actor.connection.poll():
            if (message := next(news)) is None:
                stage.clock.now += RENDER_SECONDS - 1
                return []
            actor._theirs.send(message)
        return connections

    monkeypatch.setattr(worker_pool, "wait", wait)
    with WorkerPool(SETTINGS, 1, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
        (outcome,) = pool.run([Batch((0, 1))], stage.losses.append)
    assert indices([outcome]) == [0, 1]
    assert not stage.losses


def test_workers_are_not_blamed_while_nobody_listens(stage: Stage) -> None:
    """Committing to a slow disk may take longer than a render's limit; messages wait in the pipes meanwhile."""

    def out_of_step(worker: Actor, batch: Batch | None) -> Part:
        return [READY] if batch is None else [*attempts(batch) * (worker.number + 1), finished(batch)]

    stage.play = out_of_step
    outcomes = []
    with WorkerPool(SETTINGS, 3, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
        for outcome in pool.run(two_by_two(9), stage.losses.append):
            outcomes.append(outcome)
            stage.clock.now += 2 * RENDER_SECONDS
    assert indices(outcomes) == list(range(18))
    assert not stage.losses


def test_worker_that_has_grown_is_replaced_and_keeps_its_rows(stage: Stage) -> None:
    def growing(worker: Actor, batch: Batch | None) -> Part:
        return [READY] if batch is None else [*attempts(batch), finished(batch, MAX_MEMORY + (batch.indices[0] == 2))]

    outcomes = stage.run(growing, two_by_two(3))
    assert indices(outcomes) == list(range(6))
    assert len(stage.assigned) == 3
    assert stage.losses == [Loss("memory", "grew to 0 MiB: last words", "last words")]


def test_worker_that_dies_idle_is_replaced_without_blame(stage: Stage) -> None:
    """A plugin's own thread may crash after the last render."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        part = diligent(worker, batch)
        return [*part, DIES] if batch else part

    outcomes = stage.run(play, two_by_two(5))
    assert indices(outcomes) == list(range(10))
    assert not stage.rejections


def test_pool_that_cannot_start_all_its_workers_ends_those_it_has(stage: Stage) -> None:
    def play(worker: Actor, batch: Batch | None) -> Part:
        if worker.number == 2:
            raise OSError("no more processes")
        return diligent(worker, batch)

    with pytest.raises(OSError, match="no more processes"):
        stage.run(play, two_by_two(3), workers=4)
    assert [actor.killed for actor in stage.actors] == [True, True]
