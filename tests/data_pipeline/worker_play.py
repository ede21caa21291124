"""A pool of fake workers with a clock of its own, to test the supervision of workers."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.params.spec import load_spec
from data_pipeline.render import worker_pool, worker_process
from data_pipeline.render.row_renderer import Attempt, Batch, RenderSettings
from data_pipeline.render.worker_messages import Announced, Finished, Message, Ready
from data_pipeline.render.worker_pool import Loss, Outcome, Rejection, Supervision, WorkerPool
from data_pipeline.render.worker_process import START_SECONDS, WorkerProcess
from data_pipeline.shards.row_compression import EncodedRow, RenderedBatch
from data_pipeline.synths.protocol import SynthSettings

RENDER_SECONDS = 30.0
MAX_MEMORY = 1000
SETTINGS = RenderSettings(SynthSettings("none", load_spec("subtractive")), 0, -55.0, 1.0, 10)
READY = Ready("fake", "1.0")
# More than any test needs: a pool that never gives up fails its test instead of running for ever.
MOST_ACTORS = 100
DIES = "dies"  # Ends a part: the pipe closes. Without it the worker waits, or hangs.

Part = Sequence[Message | str]
Play = Callable[["Actor", Batch | None], Part]
"""The messages of a worker after its start (None) or after it has received a batch."""


class Clock:
    """A clock that moves only while the pool waits and no message arrives."""

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
    """The parent's side of a fake worker, which is a play and no process."""

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
    """Makes pools of actors.

    ``actors`` are all that were started, ``assigned`` all batches given to any, ``losses`` what was told of any.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.actors: list[Actor] = []
        self.assigned: list[Batch] = []
        self.losses: list[Loss] = []
        self.play: Play = diligent
        clock = SimpleNamespace(monotonic=self.clock)
        monkeypatch.setattr(worker_pool, "time", clock)
        monkeypatch.setattr(worker_process, "time", clock)
        monkeypatch.setattr(worker_pool, "wait", self.clock.wait)
        monkeypatch.setattr(worker_pool, "WorkerProcess", self.start)

    def start(self, settings: RenderSettings, render_seconds: float) -> Actor:
        assert (settings, render_seconds) == (SETTINGS, RENDER_SECONDS)
        assert len(self.actors) < MOST_ACTORS, "workers are replaced for ever"
        self.actors.append(Actor(self, len(self.actors)))
        return self.actors[-1]

    def run(self, play: Play, batches: Iterable[Batch], workers: int = 1) -> list[Outcome]:
        self.play = play
        with WorkerPool(SETTINGS, workers, Supervision(RENDER_SECONDS, MAX_MEMORY)) as pool:
            outcomes = list(pool.run(batches, self.losses.append))
        assert all(actor.killed for actor in self.actors)
        return outcomes

    @property
    def rejections(self) -> list[Rejection]:
        return [loss.rejection for loss in self.losses if loss.rejection]


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
    """A play of workers that end with ``ends`` whenever they make this attempt."""

    def play(worker: Actor, batch: Batch | None) -> Part:
        if batch and Announced(attempt) in attempts(batch):
            made = attempts(batch)
            return [*made[: made.index(Announced(attempt)) + 1], *ends]
        return diligent(worker, batch)

    return play


def only_first(play: Play, times: int = 1) -> Play:
    """The play for the first ``times`` workers; later workers are diligent."""
    return lambda worker, batch: (play if worker.number < times else diligent)(worker, batch)


def two_by_two(count: int) -> list[Batch]:
    return [Batch((2 * number, 2 * number + 1)) for number in range(count)]


def indices(outcomes: Iterable[Outcome]) -> list[int]:
    return sorted(row.index for outcome in outcomes for row in outcome.batch.rows)
