"""Supervised render workers: whatever one of them does, the batches get rendered.

A worker that crashes, hangs, drifts, raises or grows too large costs the batch it had, which another renders again. A
patch that has cost three workers is refused for good. Where one patch after another is, the run ends: it is not they.
Every loss is told when it happens: batches, and with them the end of a run, may be long in coming.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
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


class HopelessError(UserError):
    """Workers die whatever the patch: those refused last are not to blame."""


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
class Loss:
    """A worker that is gone: the reason, what is known, and the end of what it and its plugin printed.

    ``rejection`` is the patch that is refused from now on, where it has cost its third worker.
    """

    reason: str
    detail: str
    log: str
    rejection: Rejection | None = None


@dataclass(frozen=True)
class Outcome(Generic[RenderedT]):
    """A rendered batch, and by which synthesizer."""

    batch: RenderedT
    synth_name: str
    synth_version: str


def _ignore(loss: Loss) -> None:
    """For whoever wants batches alone."""


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
        self._on_loss: Callable[[Loss], None] = _ignore
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

    def run(self, batches: Iterable[BatchT], on_loss: Callable[[Loss], None] = _ignore) -> Iterator[Outcome[RenderedT]]:
        """Renders all batches and yields each as it is done, in any order. May be called again after the end.

        ``on_loss`` hears of every worker that is lost, before the batch that it had is rendered, or the run ends.
        After a call that was not listened to till its end, batches that workers had by then are yielded by the next.
        Raises UserError where no worker can do the work: the synthesizer cannot be opened, workers die without
        a patch to blame or whatever the patch, or no patch makes a sound.
        """
        self._on_loss = on_loss
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
        return Outcome(message.batch, worker.ready.synth_name, worker.ready.synth_version)

    def _handle(self, worker: WorkerProcess[BatchT], message: Message) -> None:
        if isinstance(message, Finished) and message.peak_memory > self._supervision.max_memory:
            self._replace(worker, "memory", f"grew to {message.peak_memory >> 20} MiB")
        elif isinstance(message, Failed):
            if message.reason == UNUSABLE:
                raise UserError(message.detail)
            self._replace(worker, message.reason, message.detail)

    def _replace(self, worker: WorkerProcess[BatchT], reason: str, detail: str) -> None:
        """Ends a worker, blames its patch, tells of it, puts its batch back and starts another in its place."""
        log = worker.kill()
        last_line = log.rpartition("\n")[2]
        detail = detail if detail.endswith(last_line) else f"{detail}: {last_line}"
        rejection = self._blame(worker, reason, detail)
        self._on_loss(Loss(reason, detail, log, rejection))
        self._require_hope(worker, reason, detail, rejection)
        if worker.batch is not None:
            self._waiting.appendleft(self._again(worker.batch, reason))
        self._workers[self._workers.index(worker)] = self._start()

    def _note_outlived(self, attempt: Attempt) -> None:
        """A worker has gone on to the next render: good news unless others did so before they died of that one."""
        if attempt not in self._outlived:
            self._outlived.add(attempt)
            self._refused_in_a_row = 0

    def _blame(self, worker: WorkerProcess[BatchT], reason: str, detail: str) -> Rejection | None:
        """Holds the worker against its patch, if anything; a patch's third one is its last."""
        if worker.batch is None or worker.attempt is None or reason == NOTHING_ACCEPTED:
            return None
        if reason == DRIFT and not worker.batch.verify_each:  # Any of the batch's patches may be the culprit.
            return None
        self._kills[worker.attempt] += 1
        return Rejection(*worker.attempt, reason, detail) if self._kills[worker.attempt] == MAX_FAILURES else None

    def _require_hope(
        self, worker: WorkerProcess[BatchT], reason: str, detail: str, rejection: Rejection | None
    ) -> None:
        """Raises UserError where another worker would do no better."""
        if worker.batch is None and worker.ready is not None:
            return  # It had grown too large, and owes nothing.
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
        """The batch without patches refused for good; after a drift, every render is checked, to find the culprit."""
        killers = {attempt for attempt in self._kills if self._kills[attempt] >= MAX_FAILURES}
        mine = {attempt for attempt in killers if attempt[0] in batch.indices}
        return replace(batch, forbidden=batch.forbidden | mine, verify_each=batch.verify_each or reason == DRIFT)
