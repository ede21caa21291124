"""What the threads of a transfer share: a count of bytes, shown as a bar, and a way to stop them all."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class Stopped(Exception):
    """The transfer was told to stop."""


class Meter:
    """Counts bytes; every thread that moves some reports them here, and learns here that it shall stop."""

    def __init__(self, show: Callable[[int], object] = lambda count: None) -> None:
        self._show = show
        self._stopped = threading.Event()

    def moved(self, count: int) -> None:
        """Counts bytes. Raises Stopped once the transfer was told to stop."""
        if self._stopped.is_set():
            raise Stopped
        self._show(count)

    def pause(self, seconds: float) -> None:
        """Waits. Raises Stopped, at once, when the transfer is told to stop."""
        if self._stopped.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """Makes every other call of this meter raise Stopped."""
        self._stopped.set()


# How a transfer gets a meter for so many bytes under such a title.
Meters = Callable[[str, int], AbstractContextManager[Meter]]


@contextmanager
def shown_meter(title: str, total: int) -> Iterator[Meter]:
    """A meter with a bar on stderr; where that is no terminal, without: whoever transfers says when it is done."""
    if not sys.stderr.isatty():
        yield Meter()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield Meter(lambda count: progress.advance(task, count))


def data_size(count: float) -> str:
    """A number of bytes as people read it: 12.3 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
