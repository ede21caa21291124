"""Progress of long work: a bar on a terminal, lines elsewhere. All bars of the project are made by ``make_bar``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS_BETWEEN_LINES = 60.0
ROWS = (MofNCompleteColumn(),)
TIMED_ROWS = (*ROWS, TimeElapsedColumn())
BYTES = (DownloadColumn(), TransferSpeedColumn())


def make_bar(*columns: ProgressColumn, console: Console | None = None) -> Progress:
    """A rich bar with its title, these columns and the time left; on stderr, hidden if that is no terminal."""
    console = console or Console(stderr=True)
    title, left = TextColumn("{task.description}"), TimeRemainingColumn()
    hidden = console.quiet or not console.file.isatty()
    return Progress(title, BarColumn(), *columns, left, console=console, disable=hidden)


@contextmanager
def progress_bar(description: str, total: int, parts: int = 1) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(count)``. If stderr is no terminal, prints a line a minute and one at the end.

    If every one of ``total`` items is worked on ``parts`` times, ``advance`` counts parts. The bar shows whole items.
    """
    done, start = 0, time.monotonic()
    printed = start
    with make_bar(*TIMED_ROWS) as bar:
        task = bar.add_task(description, total=total)

        def advance(count: int) -> None:
            nonlocal done, printed
            done += count
            bar.update(task, completed=done / parts)  # A sum of fractions would miss the total.
            now = time.monotonic()
            if bar.disable and now - printed >= SECONDS_BETWEEN_LINES and done < total * parts:
                printed = now
                print(f"{description}: {done // parts} of {total} in {now - start:.0f} s", file=sys.stderr, flush=True)

        yield advance
    if bar.disable:
        print(f"{description}: {total} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def byte_bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """Yields ``advance(count)`` for bytes. If stderr is no terminal, nothing is shown."""
    with make_bar(*BYTES) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def data_size(count: float) -> str:
    """A number of bytes with its unit: 12.3 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
