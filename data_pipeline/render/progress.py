"""The progress of a rendering run: a live line on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import sys
import textwrap
import time
from collections import Counter
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.live import Live

from data_pipeline.render.worker_pool import Loss

LOG_SECONDS = 30.0


class RenderProgress:
    """Shows rows per second, time left, refused renders and restarts on stderr. Use as a context manager."""

    def __init__(self, total: int, done: int, refused: Counter[str] | None = None) -> None:
        """Earlier runs have made ``done`` rows of ``total``, and ``refused`` renders for these reasons."""
        self._total, self._done, self._first = total, done, done
        self._refused = Counter(refused)
        self._restarts: Counter[str] = Counter()
        self._start = self._last_line = time.monotonic()
        self._live = Live(console=Console(stderr=True), auto_refresh=False) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        if self._done < self._total:  # The first row may take minutes.
            self._show()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        if self._done > self._first and not self._live:
            self._print()

    def update(self, rows: int, refused: Counter[str]) -> None:
        """Counts a batch of new rows, and the renders that it refused by reason."""
        self._done += rows
        self._refused += refused
        self._show_if_due()

    def lost(self, loss: Loss) -> None:
        """Counts and reports a lost worker. The first one for each reason is reported with the end of its output."""
        self.say(f"a worker was lost ({loss.reason}: {loss.detail})")
        if loss.reason not in self._restarts and "\n" in loss.log:  # Its last line is in the detail.
            self.say(textwrap.indent(loss.log, "  | "))
        self._restarts[loss.reason] += 1
        self._show_if_due()

    def say(self, text: str) -> None:
        """Prints a line that stays above the live line."""
        if self._live:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def __str__(self) -> str:
        seconds = time.monotonic() - self._start
        rate = (self._done - self._first) / max(seconds, 1e-9)
        left = timedelta(seconds=round((self._total - self._done) / rate)) if rate else "?"
        return (
            f"{self._done}/{self._total} rows, {rate:.1f} rows/s, {left} left; refused: {_listed(self._refused)}; "
            f"workers restarted: {_listed(self._restarts)}"
        )

    def _show_if_due(self) -> None:
        if self._live or time.monotonic() - self._last_line > LOG_SECONDS:
            self._show()

    def _show(self) -> None:
        if self._live:
            self._live.update(str(self), refresh=True)
        else:
            self._print()

    def _print(self) -> None:
        print(self, file=sys.stderr, flush=True)
        self._last_line = time.monotonic()


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"
