"""Transfers in several threads: they count bytes together and stop together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from data_pipeline.console import cli
from data_pipeline.console.progress import byte_bar

Result = TypeVar("Result")
# More than cores: transfers wait for the network.
THREADS = 8
# How long a thread may take to stop. One that waits for a dead network would take a minute.
GRACE_SECONDS = 2.0


class Stopped(Exception):
    """The transfer was stopped."""


class Meter:
    """Counts the bytes that the threads of a transfer move, and stops the threads."""

    def __init__(self, show: Callable[[int], object] = lambda count: None) -> None:
        self._show = show
        self._stopped = threading.Event()

    def moved(self, count: int) -> None:
        """Counts bytes. Raises Stopped after ``stop``."""
        if self._stopped.is_set():
            raise Stopped
        self._show(count)

    def pause(self, seconds: float) -> None:
        """Waits. Raises Stopped as soon as ``stop`` is called."""
        if self._stopped.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """Makes every other call of this meter raise Stopped."""
        self._stopped.set()


# Makes the meter of a transfer from its title and its number of bytes.
Meters = Callable[[str, int], AbstractContextManager[Meter]]


@contextmanager
def shown_meter(title: str, total: int) -> Iterator[Meter]:
    """Yields a meter that shows a bar on a terminal."""
    with byte_bar(title, total) as advance:
        yield Meter(advance)


def run_all(tasks: Sequence[Callable[[], Result]], meter: Meter) -> list[Result]:
    """Runs tasks in threads and returns their results in order.

    After the first error of a task, or Ctrl-C, ``meter`` stops the other tasks. The error is raised when they ended.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="transfer")
    futures = [pool.submit(task) for task in tasks]
    try:
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        meter.stop()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if wait(futures, timeout=GRACE_SECONDS).not_done:
            cli.exit_without_threads()
