"""Supervised render workers: whatever one of them does, the batches get rendered.

A worker that crashes, hangs, drifts, raises or grows too large costs the batch it had, which another renders again. A
patch that has cost three workers is refused for good. Where one patch after another is, the run ends: it is not they.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Generic, Self

from data_pipeline.batch_renderer import Attempt, BatchT, RenderedT, RendererSettings
from data_pipeline.cli import UserError
from data_pipeline.worker_messages import DRIFT, NOTHING_ACCEPTED, UNUSABLE, Announced, Failed, Finished, Message
from data_pipeline.worker_process import WorkerProcess

# A patch, a start or a batch may fail for reasons of the moment; three times is no accident.
MAX_FAILURES = 3
# Patches refused in a row, each after that many workers. Where one patch in ten kills a plugin, a redrawn one may well
# be another of them; five in a row, with no other rendered in between, are no fault of the patches.
MAX_REFUSED_IN_A_ROW = 5


@dataclass(frozen=True)
class Supervision:
    """When a worker is given up: seconds without news from a render, and bytes of memory that it may hold."""

    render_seconds: float = 30.0
    max_memory: int = 2 << 30


@dataclass(frozen=True)
class Rejection:
    """A patch that has cost three workers; ``detail`` is the last sign of life of the last of them."""

    index: int
    attempt: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Outcome(Generic[RenderedT]):
    """A rendered batch, by which synthesizer, and what happened since the outcome before.

    ``restarts`` has a line for each worker that was replaced: the reason, a colon, and what is known.
    """

    batch: RenderedT
    synth_name: str
    synth_version: str
    rejections: tuple[Rejection, ...]
    restarts: tuple[str, ...]


class WorkerPool(Generic[BatchT, RenderedT]):
    """Worker processes on this machine. Use as a context manager: leaving it ends them."""

    def __init__(self, settings: RendererSettings[BatchT, RenderedT], workers: int, supervision: Supervision) -> None:
        self._settings = settings
        self._supervision = supervision
        self._waiting: deque[BatchT] = deque()
        self._kills: Counter[Attempt] = Counter()
        self._fruitless: Counter[tuple[int, ...]] = Counter()
        self._failures_in_a_row = self._refused_in_a_row = 0
        self._outlived: set[Attempt] = set()
        self._rejections: list[Rejection] = []
        self._restarts: list[str] = []
        self._workers: list[WorkerProcess[BatchT]] = []
        try:
            for _ in range(workers):
                self._workers.append(self._start())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers at once."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def run(self, batches: Iterable[BatchT]) -> Iterator[Outcome[RenderedT]]:
        """Renders all batches and yields each as it is done, in any order. May be called again after the end.

        After a call that was not listened to till its end, batches that workers had by then are yielded by the next.
        Raises UserError where no worker can do the work: the synthesizer cannot be opened, workers die without
        a patch to blame or whatever the patch, or no patch makes a sound.
        """
        self._waiting.clear()  # What a caller has left behind who did not listen to the end.
        source = iter(batches)
        while self._feed(source) or any(worker.batch for worker in self._workers):
            for worker in self._with_news():
                before = worker.attempt
                try:
                    message = worker.receive()
                except EOFError:
                    self._replace(worker, "crash", worker.exit_text())
                    continue
                if isinstance(message, Finished):
                    yield self._outcome(worker, message)
                elif isinstance(message, Announced) and before:
                    self._note_outlived(before)
                self._handle(worker, message)
            for worker in list(self._workers):
                if time.monotonic() > worker.deadline and not worker.connection.poll():  # Else it was we who were busy.
                    self._replace(worker, "hang", "no news within the time limit")

    def _start(self) -> WorkerProcess[BatchT]:
        return WorkerProcess(self._settings, self._supervision.render_seconds)

    def _feed(self, source: Iterator[BatchT]) -> bool:
        """Gives every idle worker a batch; whether any batch still waits for a worker."""
        idle = [worker for worker in self._workers if worker.idle]
        while len(self._waiting) <= len(idle) and (batch := next(source, None)):
            self._waiting.append(batch)
        for worker in idle:
            if self._waiting:
                worker.assign(self._waiting.popleft())
        return bool(self._waiting)

    def _with_news(self) -> list[WorkerProcess[BatchT]]:
        by_connection: dict[Connection, WorkerProcess[BatchT]] = {worker.connection: worker for worker in self._workers}
        nearest = min(worker.deadline for worker in self._workers) - time.monotonic()
        ready = wait(list(by_connection), timeout=max(0.0, min(nearest, 3600.0)))
        return [by_connection[connection] for connection in ready if isinstance(connection, Connection)]

    def _outcome(self, worker: WorkerProcess[BatchT], message: Finished[RenderedT]) -> Outcome[RenderedT]:
        assert worker.ready
        self._failures_in_a_row = self._refused_in_a_row = 0
        self._outlived.clear()
        outcome = Outcome(
            message.batch,
            worker.ready.synth_name,
            worker.ready.synth_version,
            tuple(self._rejections),
            tuple(self._restarts),
        )
        self._rejections, self._restarts = [], []
        return outcome

    def _handle(self, worker: WorkerProcess[BatchT], message: Message) -> None:
        if isinstance(message, Finished) and message.peak_memory > self._supervision.max_memory:
            self._replace(worker, "memory", f"grew to {message.peak_memory >> 20} MiB")
        elif isinstance(message, Failed):
            if message.reason == UNUSABLE:
                raise UserError(message.detail)
            self._replace(worker, message.reason, message.detail)

    def _replace(self, worker: WorkerProcess[BatchT], reason: str, detail: str) -> None:
        """Ends a worker, blames its patch, puts its batch back and starts another in its place."""
        last_line = worker.kill()
        detail = f"{detail}: {last_line}" if last_line else detail
        if worker.batch is None and worker.ready is not None:
            pass  # It had grown too large, and owes nothing.
        elif worker.batch is None or worker.attempt is None:
            self._count_failure(reason, detail)
        elif reason == NOTHING_ACCEPTED:
            self._count_fruitless(worker.batch, detail)
        elif reason != DRIFT or worker.batch.verify_each:  # Else any of the batch's patches may be the culprit.
            self._blame(worker.attempt, reason, detail)
        if worker.batch is not None:
            self._waiting.appendleft(self._again(worker.batch, reason))
        self._restarts.append(f"{reason}: {detail}")
        self._workers[self._workers.index(worker)] = self._start()

    def _note_outlived(self, attempt: Attempt) -> None:
        """A worker has gone on to the next render: good news unless others did so before they died of that one."""
        if attempt not in self._outlived:
            self._outlived.add(attempt)
            self._refused_in_a_row = 0

    def _count_failure(self, reason: str, detail: str) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row == MAX_FAILURES:
            raise UserError(f"render workers die before they render ({reason}: {detail})")

    def _count_fruitless(self, batch: BatchT, detail: str) -> None:
        self._fruitless[batch.indices] += 1
        if self._fruitless[batch.indices] == MAX_FAILURES:
            raise UserError(f"{detail}: is the spec right for this synthesizer?")

    def _blame(self, attempt: Attempt, reason: str, detail: str) -> None:
        self._kills[attempt] += 1
        if self._kills[attempt] == MAX_FAILURES:
            self._rejections.append(Rejection(*attempt, reason, detail))
            self._refused_in_a_row += 1
        if self._refused_in_a_row == MAX_REFUSED_IN_A_ROW:
            raise UserError(f"render workers die whatever the patch ({reason}: {detail})")

    def _again(self, batch: BatchT, reason: str) -> BatchT:
        """The batch without patches refused for good; after a drift, every render is checked, to find the culprit."""
        killers = {attempt for attempt in self._kills if self._kills[attempt] >= MAX_FAILURES}
        mine = {attempt for attempt in killers if attempt[0] in batch.indices}
        return replace(batch, forbidden=batch.forbidden | mine, verify_each=batch.verify_each or reason == DRIFT)
