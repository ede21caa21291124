"""A progress bar on a terminal, one line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(count)``. Draws on stderr; where that is no terminal, prints one line when all is done."""
    start = time.monotonic()
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            task = progress.add_task(description, total=total)
            yield lambda count: progress.advance(task, count)
        return
    yield lambda count: None
    print(f"{description}: {total} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
