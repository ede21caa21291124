"""Supervised render workers: every batch is rendered, whatever happens to a worker.

A worker that crashes, hangs, drifts, raises or grows too large is replaced, and another renders its batch again. A
patch that has cost three workers is refused for good. Where patch after patch is refused, the patches are not to blame
and the run ends. Every loss is reported when it happens, since the next batch may be long in coming.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Generic, Self

from data_pipeline.console.cli import UserError
from data_pipeline.render.worker_messages import (
    DRIFT,
    NOTHING_ACCEPTED,
    UNUSABLE,
    Announced,
    Attempt,
    BatchT,
    Failed,
    Finished,
    RenderedT,
    WorkerSettings,
)
from data_pipeline.render.worker_process import WorkerProcess

# A patch, a start or a batch may fail by chance; three failures are no chance.
MAX_FAILURES = 3
# Patches refused in a row, each after MAX_FAILURES workers, before the run ends. Where one patch in ten kills a plugin,
# a redrawn patch may kill it too; with five in a row and no render in between, the patches are not the cause.
MAX_REFUSED_IN_A_ROW = 5


class HopelessError(UserError):
    """Workers die whatever the patch: the patches refused last are not to blame."""


@dataclass(frozen=True)
class Supervision:
    """When a worker is given up: seconds that a render may take, and bytes of memory that the worker may hold."""

    render_seconds: float = 30.0
    max_memory: int = 2 << 30


@dataclass(frozen=True)
class Rejection:
    """A patch that has cost three workers, and how the last of them ended; or one that sounds before its note."""

    index: int
    attempt: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Loss:
    """A lost worker: the reason, its detail, and the end of what the worker and its plugin printed.

    ``rejection`` is the patch that is refused from now on, if this was its third worker.
    """

    reason: str
    detail: str
    log: str
    rejection: Rejection | None = None


@dataclass(frozen=True)
class Outcome(Generic[RenderedT]):
    """A rendered batch, and the synthesizer that rendered it."""

    batch: RenderedT
    synth_name: str
    synth_version: str


class WorkerPool(Generic[BatchT, RenderedT]):
    """Worker processes on this machine. Use as a context manager: leaving it ends them."""

    def __init__(self, settings: WorkerSettings[BatchT, RenderedT], workers: int, supervision: Supervision) -> None:
        self._settings = settings
        self._supervision = supervision
        self._waiting: deque[BatchT] = deque()
        self._kills: Counter[Attempt] = Counter()
        self._fruitless: Counter[tuple[int, ...]] = Counter()
        self._failures_in_a_row = self._refused_in_a_row = 0
        self._survived: set[Attempt] = set()
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

    def run(
        self, batches: Iterable[BatchT], on_loss: Callable[[Loss], None] = lambda loss: None
    ) -> Iterator[Outcome[RenderedT]]:
        """Renders all batches and yields each when it is done, in any order. May be called again after the end.

        Calls ``on_loss`` for every lost worker before its batch is rendered again. If a caller stops early, the next
        call also yields the batches that workers had then. Raises UserError where no worker can do the work: the
        synthesizer cannot be opened, workers die whatever the patch, or no patch makes a sound.
        """
        self._waiting.clear()  # Left over where a caller stopped early.
        source = iter(batches)
        while self._feed(source) or any(worker.batch for worker in self._workers):
            for worker in self._with_news():
                before = worker.attempt
                try:
                    message = worker.receive()
                except EOFError:
                    self._replace(worker, "crash", worker.exit_text(), on_loss)
                    continue
                if isinstance(message, Finished):
                    yield self._outcome(worker, message)
                    if message.peak_memory > self._supervision.max_memory:
                        self._replace(worker, "memory", f"grew to {message.peak_memory >> 20} MiB", on_loss)
                elif isinstance(message, Announced) and before and before not in self._survived:
                    # A patch was survived, so patches are no longer refused in a row. Surviving it again proves
                    # nothing: its batch is rendered again because a worker died of a later attempt.
                    self._survived.add(before)
                    self._refused_in_a_row = 0
                elif isinstance(message, Failed):
                    if message.reason == UNUSABLE:
                        raise UserError(message.detail)
                    self._replace(worker, message.reason, message.detail, on_loss)
            for worker in list(self._workers):
                # A message that waits in the pipe means that this process was busy, not the worker.
                if time.monotonic() > worker.deadline and not worker.connection.poll():
                    self._replace(worker, "hang", "no news within the time limit", on_loss)

    def _start(self) -> WorkerProcess[BatchT]:
        return WorkerProcess(self._settings, self._supervision.render_seconds)

    def _feed(self, source: Iterator[BatchT]) -> bool:
        """Gives every idle worker a batch. Returns whether any batch still waits for a worker."""
        idle = [worker for worker in self._workers if worker.idle]
        while len(self._waiting) <= len(idle) and (batch := next(source, None)):
            self._waiting.append(batch)
        for worker in idle:
            if self._waiting:
                worker.assign(self._waiting.popleft())
        return bool(self._waiting)

    def _with_news(self) -> list[WorkerProcess[BatchT]]:
        """The workers that have sent a message or died, at the latest when the next deadline has passed."""
        by_connection: dict[Connection, WorkerProcess[BatchT]] = {worker.connection: worker for worker in self._workers}
        nearest = min(worker.deadline for worker in self._workers) - time.monotonic()
        ready = wait(list(by_connection), timeout=max(0.0, min(nearest, 3600.0)))
        return [by_connection[connection] for connection in ready if isinstance(connection, Connection)]

    def _outcome(self, worker: WorkerProcess[BatchT], message: Finished[RenderedT]) -> Outcome[RenderedT]:
        assert worker.ready
        self._failures_in_a_row = self._refused_in_a_row = 0
        self._survived.clear()
        return Outcome(message.batch, worker.ready.synth_name, worker.ready.synth_version)

    def _replace(
        self, worker: WorkerProcess[BatchT], reason: str, detail: str, on_loss: Callable[[Loss], None]
    ) -> None:
        """Ends a worker, blames its patch, reports the loss, puts its batch back and starts another worker."""
        log = worker.kill()
        last_line = log.rpartition("\n")[2]
        detail = detail if detail.endswith(last_line) else f"{detail}: {last_line}"
        rejection = self._blame(worker, reason, detail)
        on_loss(Loss(reason, detail, log, rejection))
        self._require_hope(worker, reason, detail, rejection)
        if worker.batch is not None:
            self._waiting.appendleft(self._again(worker.batch, reason))
        self._workers[self._workers.index(worker)] = self._start()

    def _blame(self, worker: WorkerProcess[BatchT], reason: str, detail: str) -> Rejection | None:
        """Counts the lost worker against the patch it was rendering. Returns the rejection if it was the third."""
        if worker.batch is None or worker.attempt is None or reason == NOTHING_ACCEPTED:
            return None
        if reason == DRIFT and not worker.batch.verify_each:  # Any patch of the batch may be the cause.
            return None
        self._kills[worker.attempt] += 1
        return Rejection(*worker.attempt, reason, detail) if self._kills[worker.attempt] == MAX_FAILURES else None

    def _require_hope(
        self, worker: WorkerProcess[BatchT], reason: str, detail: str, rejection: Rejection | None
    ) -> None:
        """Raises UserError where another worker would fail too."""
        if worker.batch is None and worker.ready is not None:
            return  # It grew too large after its batch was done.
        if worker.batch is None or worker.attempt is None:
            self._failures_in_a_row += 1
            if self._failures_in_a_row == MAX_FAILURES:
                raise UserError(f"render workers die before they render ({reason}: {detail})")
        elif reason == NOTHING_ACCEPTED:
            self._fruitless[worker.batch.indices] += 1
            if self._fruitless[worker.batch.indices] == MAX_FAILURES:
                raise UserError(f"{detail}: is the spec right for this synthesizer?")
        elif rejection:
            self._refused_in_a_row += 1
            if self._refused_in_a_row == MAX_REFUSED_IN_A_ROW:
                raise HopelessError(f"render workers die whatever the patch ({reason}: {detail})")

    def _again(self, batch: BatchT, reason: str) -> BatchT:
        """The batch without refused patches. After a drift every render is checked, to find the cause."""
        killers = {attempt for attempt in self._kills if self._kills[attempt] >= MAX_FAILURES}
        mine = {attempt for attempt in killers if attempt[0] in batch.indices}
        return replace(batch, forbidden=batch.forbidden | mine, verify_each=batch.verify_each or reason == DRIFT)
