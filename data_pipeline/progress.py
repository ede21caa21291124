"""A progress bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 60.0


@contextmanager
def progress_bar(description: str, total: int, parts: int = 1) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(count)``. Draws on stderr; where that is no terminal, prints a line a minute and at the end.

    Work that takes each of ``total`` in several ``parts`` counts every part; what is shown are whole ones.
    """
    done = 0
    with (_bar if sys.stderr.isatty() else _lines)(description, total) as show:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            show(done / parts)  # Added up, fractions would miss the total.

        yield advance


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[float], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _lines(description: str, total: int) -> Iterator[Callable[[float], None]]:
    start = told = time.monotonic()

    def show(done: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES and done < total:
            told = now
            print(f"{description}: {int(done)} of {total} in {now - start:.0f} s", file=sys.stderr, flush=True)

    yield show
    print(f"{description}: {total} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
