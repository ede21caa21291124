"""Supervision, with workers that play a part: every batch comes out once, and whoever costs workers is found."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline import worker_pool, worker_process
from data_pipeline.cli import UserError
from data_pipeline.param_spec import load_spec
from data_pipeline.row_codec import EncodedRow
from data_pipeline.row_renderer import Attempt, Batch, RenderedBatch, RenderSettings
from data_pipeline.synths.protocol import SynthSettings
from data_pipeline.worker_messages import (
    DRIFT,
    ERROR,
    NOTHING_ACCEPTED,
    UNUSABLE,
    Announced,
    Failed,
    Finished,
    Message,
    Ready,
)
from data_pipeline.worker_pool import MAX_FAILURES, MAX_REFUSED_IN_A_ROW, Outcome, Rejection, Supervision, WorkerPool
from data_pipeline.worker_process import START_SECONDS, WorkerProcess

RENDER_SECONDS = 30.0
MAX_MEMORY = 1000
SETTINGS = RenderSettings(SynthSettings("none", load_spec("subtractive")), 0, -55.0, 1.0, 10)
READY = Ready("fake", "1.0")
DIES = "dies"  # A part's end: the pipe closes. Without it the worker waits, or hangs.

Part = Sequence[Message | str]
Play = Callable[["Actor", Batch | None], Part]
"""What a worker says when it has started (None) or been given a batch."""


class Clock:
    """Time passes only while the pool waits for news and there are none."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, connections: list[Connection], timeout: float) -> list[Connection]:
        ready = [connection for connection in connections if connection.poll()]
        if not ready:
            assert timeout < 3600, "nobody is going to say anything"
            self.now += timeout + 0.001
        return ready


class Actor(WorkerProcess):
    """The parent's side of a worker that is no process but a play."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.batch, self.attempt, self.ready = None, None, None
        self.number, self.killed = number, False
        self._stage, self._render_seconds = stage, RENDER_SECONDS
        self._log = io.BytesIO()
        self.connection, self._theirs = Pipe()
        self.deadline = stage.clock() + START_SECONDS
        self._send(None)

    def _send(self, item: Any) -> None:
        if self._theirs.closed:
            return
        if item is not None:
            self._stage.assigned.append(item)
        for line in self._stage.play(self, item):
            if line == DIES:
                self._theirs.close()
            else:
                self._theirs.send(line)

    def kill(self) -> str:
        self.killed = True
        self._theirs.close()
        self.connection.close()
        return "last words"

    def exit_text(self) -> str:
        return "killed by signal 11"


class Stage:
    """Makes pools of actors; ``actors`` are all that were started, ``assigned`` all batches given to any."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.actors: list[Actor] = []
        self.assigned: list[Batch] = []
        self.play: Play = diligent

    def start(self, settings: RenderSettings, render_seconds: float) -> Actor:
        assert (settings, render_seconds) == (SETTINGS, RENDER_SECONDS)
        self.actors.append(Actor(self, len(self.actors)))
        return self.actors[-1]

    def run(self, play: Play, batches: Iterable[Batch], workers: int = 1) -> list[Outcome]:
        self.play = play
        with WorkerPool(SETTINGS, workers, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
            outcomes = list(pool.run(batches))
        assert all(actor.killed for actor in self.actors)
        return outcomes


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    clock = SimpleNamespace(monotonic=stage.clock)
    monkeypatch.setattr(worker_pool, "time", clock)
    monkeypatch.setattr(worker_process, "time", clock)
    monkeypatch.setattr(worker_pool, "wait", stage.clock.wait)
    monkeypatch.setattr(worker_pool, "WorkerProcess", stage.start)
    return stage


def finished(batch: Batch, memory: int = 0) -> Finished:
    rows = tuple(EncodedRow(index, 0, b"", b"", b"") for index in batch.indices)
    return Finished(RenderedBatch(rows, Counter(quiet=1)), memory)


def attempts(batch: Batch) -> list[Announced]:
    """First attempts, or those after the forbidden ones."""
    forbidden = Counter(index for index, _ in batch.forbidden)
    return [Announced((index, forbidden[index])) for index in batch.indices]


def diligent(worker: Actor, batch: Batch | None) -> Part:
    return [READY] if batch is None else [*attempts(batch), finished(batch)]


def stopping_at(attempt: Attempt, *ends: Message | str) -> Play:
    """Workers that end so whenever they make this attempt."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        if batch and Announced(attempt) in attempts(batch):
            made = attempts(batch)
            return [*made[: made.index(Announced(attempt)) + 1], *ends]
        return diligent(worker, batch)

    return play


def only_first(play: Play, times: int = 1) -> Play:
    """The play for the first workers; those after them are diligent."""
    return lambda worker, batch: (play if worker.number < times else diligent)(worker, batch)


def two_by_two(count: int) -> list[Batch]:
    return [Batch((2 * number, 2 * number + 1)) for number in range(count)]


def indices(outcomes: Iterable[Outcome]) -> list[int]:
    return sorted(row.index for outcome in outcomes for row in outcome.batch.rows)


def restarts(outcomes: Iterable[Outcome]) -> int:
    return sum(len(outcome.restarts) for outcome in outcomes)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_batch_is_rendered_once(stage: Stage, workers: int) -> None:
    outcomes = stage.run(diligent, two_by_two(7), workers)
    assert indices(outcomes) == list(range(14))
    assert len(outcomes) == len(stage.assigned) == 7
    assert outcomes[0] == Outcome(finished(Batch((0, 1))).batch, "fake", "1.0", (), ())
    assert restarts(outcomes) == 0
    assert len(stage.actors) == workers


def test_nothing_to_do_needs_no_worker(stage: Stage) -> None:
    assert stage.run(diligent, [], workers=0) == []


def test_batches_are_taken_as_they_are_needed(stage: Stage) -> None:
    """A data set's batches are many: they stay in their generator."""
    source = iter(two_by_two(50))
    with WorkerPool(SETTINGS, 2, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
        outcomes = pool.run(source)
        next(outcomes)
        assert len(list(source)) >= 50 - 4  # Two at the workers, one waiting for either.


def test_pool_renders_again_after_a_run(stage: Stage) -> None:
    """As Ray's processes do, a batch at a time."""
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
    """A crash, a hang, a drift, a plugin that fell silent."""
    outcomes = stage.run(only_first(stopping_at((1, 0), *end)), two_by_two(4), workers=2)
    assert indices(outcomes) == list(range(8))
    assert restarts(outcomes) == 1
    assert not any(outcome.rejections for outcome in outcomes)
    assert [batch.indices for batch in stage.assigned].count((0, 1)) == 2


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


def test_worker_is_given_its_time_for_every_attempt(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not hurried because the batch as a whole takes longer."""
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
        (outcome,) = pool.run([Batch((0, 1))])
    assert outcome.restarts == ()


def test_workers_are_not_blamed_while_nobody_listens(stage: Stage) -> None:
    """Committing to a slow disk takes longer than a render may: their news wait in their pipes."""

    def out_of_step(worker: Actor, batch: Batch | None) -> Part:
        return [READY] if batch is None else [*attempts(batch) * (worker.number + 1), finished(batch)]

    stage.play = out_of_step
    outcomes = []
    with WorkerPool(SETTINGS, 3, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
        for outcome in pool.run(two_by_two(9)):
            outcomes.append(outcome)
            stage.clock.now += 2 * RENDER_SECONDS
    assert indices(outcomes) == list(range(18))
    assert restarts(outcomes) == 0


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
    assert len(stage.actors) == 3
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
    """At their first render, or always at their second."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        return [READY] if batch is None else [*attempts(batch)[: outlived + 1], *end]

    with pytest.raises(UserError, match=f"die whatever the patch .{words}"):
        stage.run(play, two_by_two(3))
    assert len(stage.actors) == MAX_FAILURES * MAX_REFUSED_IN_A_ROW


def test_refused_patches_with_others_rendered_in_between_do_not_stop_the_run(stage: Stage) -> None:
    """All of one batch: a plugin may dislike a tenth of its patches."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        if batch and (fatal := [index for index in batch.indices[::2] if (index, 0) not in batch.forbidden]):
            return [*attempts(batch)[: batch.indices.index(fatal[0]) + 1], DIES]
        return diligent(worker, batch)

    (outcome,) = stage.run(play, [Batch(tuple(range(4 * MAX_REFUSED_IN_A_ROW)))])
    assert len(outcome.rejections) == 2 * MAX_REFUSED_IN_A_ROW


def test_start_may_fail_twice(stage: Stage) -> None:
    outcomes = stage.run(only_first(lambda worker, batch: [DIES], times=2), two_by_two(3))
    assert indices(outcomes) == list(range(6))
    assert restarts(outcomes) == 2


def test_failures_to_start_are_forgotten_once_something_is_rendered(stage: Stage) -> None:
    """A night has many of them; three in a row are what counts."""

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
    assert not any(outcome.rejections for outcome in outcomes)


def test_worker_that_has_grown_is_replaced_and_keeps_its_rows(stage: Stage) -> None:
    def growing(worker: Actor, batch: Batch | None) -> Part:
        return [READY] if batch is None else [*attempts(batch), finished(batch, MAX_MEMORY + (batch.indices[0] == 2))]

    outcomes = stage.run(growing, two_by_two(3))
    assert indices(outcomes) == list(range(6))
    assert len(stage.assigned) == 3
    assert [len(outcome.restarts) for outcome in outcomes] == [0, 0, 1]


def test_worker_that_dies_idle_is_replaced_without_blame(stage: Stage) -> None:
    """A plugin's own thread may crash after the last render."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        part = diligent(worker, batch)
        return [*part, DIES] if batch else part

    outcomes = stage.run(play, two_by_two(5))
    assert indices(outcomes) == list(range(10))
    assert not any(outcome.rejections for outcome in outcomes)


def test_pool_that_cannot_start_all_its_workers_ends_those_it_has(stage: Stage) -> None:
    def play(worker: Actor, batch: Batch | None) -> Part:
        if worker.number == 2:
            raise OSError("no more processes")
        return diligent(worker, batch)

    with pytest.raises(OSError, match="no more processes"):
        stage.run(play, two_by_two(3), workers=4)
    assert [actor.killed for actor in stage.actors] == [True, True]
