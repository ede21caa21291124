"""A progress bar on a terminal, one line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(description: str, total: int, parts: int = 1) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(count)``. Draws on stderr; where that is no terminal, prints one line when all is done.

    Work that takes each of ``total`` in several ``parts`` counts every part; what is shown are whole ones.
    """
    start = time.monotonic()
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            task = progress.add_task(description, total=total)
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress.update(task, completed=done / parts)  # Added up, fractions would miss the total.

            yield advance
        return
    yield lambda count: None
    print(f"{description}: {total} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
