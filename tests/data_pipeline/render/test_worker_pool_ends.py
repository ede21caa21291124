"""Failing workers that end the run, and failing workers that do not."""

from __future__ import annotations

import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.render.row_renderer import Batch
from data_pipeline.render.worker_messages import ERROR, NOTHING_ACCEPTED, UNUSABLE, Failed
from data_pipeline.render.worker_pool import MAX_FAILURES, MAX_REFUSED_IN_A_ROW, Outcome
from data_pipeline.render.worker_process import START_SECONDS
from tests.data_pipeline.worker_play import (
    DIES,
    MAX_MEMORY,
    READY,
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


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ((DIES,), "die before they render .crash: killed by signal 11: last words"),
        ((), "die before they render .hang: no news within"),
    ],
)
def test_workers_that_never_start_stop_the_run(stage: Stage, start: Part, words: str) -> None:
    began = stage.clock()
    with pytest.raises(UserError, match=words):
        stage.run(lambda worker, batch: start, two_by_two(3))
    assert len(stage.actors) == len(stage.losses) == 3
    assert (stage.clock() - began > 3 * START_SECONDS) == (start == ())


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ((Failed(ERROR, "AttributeError: no 'raw_value'"),), "error: AttributeError: no 'raw_value': last words"),
        ((DIES,), "crash: killed by signal 11: last words"),
    ],
)
@pytest.mark.parametrize("outlived", [0, 1])
def test_workers_that_die_whatever_the_patch_stop_the_run(stage: Stage, end: Part, words: str, outlived: int) -> None:
    """Workers die at their first render, or always at their second."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        return [READY] if batch is None else [*attempts(batch)[: outlived + 1], *end]

    with pytest.raises(UserError, match=f"die whatever the patch .{words}"):
        stage.run(play, two_by_two(3))
    assert len(stage.actors) == len(stage.losses) == MAX_FAILURES * MAX_REFUSED_IN_A_ROW
    assert len(stage.rejections) == MAX_REFUSED_IN_A_ROW


def test_refused_patches_with_others_rendered_in_between_do_not_stop_the_run(stage: Stage) -> None:
    """All refused patches are of one batch: a plugin may crash on a tenth of its patches."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        if batch and (fatal := [index for index in batch.indices[::2] if (index, 0) not in batch.forbidden]):
            return [*attempts(batch)[: batch.indices.index(fatal[0]) + 1], DIES]
        return diligent(worker, batch)

    (outcome,) = stage.run(play, [Batch(tuple(range(4 * MAX_REFUSED_IN_A_ROW)))])
    assert indices([outcome]) == list(range(4 * MAX_REFUSED_IN_A_ROW))
    assert len(stage.rejections) == 2 * MAX_REFUSED_IN_A_ROW


def test_start_may_fail_twice(stage: Stage) -> None:
    outcomes = stage.run(only_first(lambda worker, batch: [DIES], times=2), two_by_two(3))
    assert indices(outcomes) == list(range(6))
    assert len(stage.losses) == 2


def test_failures_to_start_are_forgotten_once_something_is_rendered(stage: Stage) -> None:
    """A long run has many failures; only three in a row end it."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        if worker.number % 3 < 2:
            return [DIES]
        return diligent(worker, batch) if batch is None else [*attempts(batch), finished(batch, MAX_MEMORY + 1)]

    outcomes = stage.run(play, two_by_two(4))
    assert indices(outcomes) == list(range(8))


def test_synthesizer_that_cannot_be_used_stops_the_run(stage: Stage) -> None:
    with pytest.raises(UserError, match=r"^no plugin at x$"):
        stage.run(lambda worker, batch: [Failed(UNUSABLE, "no plugin at x"), DIES], two_by_two(3), workers=2)
    assert len(stage.actors) == 2
    assert all(actor.killed for actor in stage.actors)


def test_batch_that_no_worker_finds_sound_in_stops_the_run(stage: Stage) -> None:
    silent = stopping_at((2, 0), Failed(NOTHING_ACCEPTED, "no patch was accepted for sample 2"), DIES)
    outcomes: list[Outcome] = []
    with pytest.raises(UserError, match="no patch was accepted for sample 2: last words: is the spec right"):
        stage.run(silent, (batch for batch in two_by_two(3)))
    assert not outcomes
    assert [batch.indices for batch in stage.assigned].count((2, 3)) == 3


def test_other_workers_may_find_sound_where_two_did_not(stage: Stage) -> None:
    silent = stopping_at((2, 0), Failed(NOTHING_ACCEPTED, "no patch was accepted for sample 2"), DIES)
    outcomes = stage.run(only_first(silent, times=2), two_by_two(3))
    assert indices(outcomes) == list(range(6))
    assert not stage.rejections
