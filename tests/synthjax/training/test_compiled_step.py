"""Traces of a window of steps."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest

from data_pipeline.console.cli import UserError
from synthjax.runs.check_config import parse_window
from synthjax.training.compiled_step import Profiler


@pytest.mark.parametrize(("text", "window"), [("", range(0)), ("100:110", range(100, 110)), ("0:1", range(1))])
def test_windows(text: str, window: range) -> None:
    assert parse_window(text) == window


@pytest.mark.parametrize("text", ["100", "110:100", "5:5", "a:b", "-1:4", "1:2:3"])
def test_a_wrong_window_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="must be FIRST:END steps"):
        parse_window(text)


class FakeLogbook:
    """Counts how often the profiler waits for the steps under way."""

    settled = restarted = 0

    def settle(self) -> None:
        self.settled += 1

    def restart_clock(self) -> None:
        self.restarted += 1


def run(window: range, folder: Path, first: int, end: int) -> list[int]:
    """The steps before which the trace began or ended."""
    logbook = FakeLogbook()
    profiler, switched = Profiler(window, folder, logbook), []
    for step in range(first, end):
        before = logbook.settled
        profiler.before(step)
        if logbook.settled > before:
            switched.append(step)
        jnp.ones(3).sum().block_until_ready()
    profiler.close()
    assert logbook.restarted == logbook.settled
    return switched


@pytest.mark.parametrize(
    ("first", "end", "switched"), [(0, 6, [2, 4]), (3, 6, [3, 4]), (0, 3, [2]), (4, 8, []), (0, 2, [])]
)
def test_a_trace_holds_the_window_and_is_written_whenever_the_run_ends(
    tmp_path: Path, first: int, end: int, switched: list[int]
) -> None:
    assert run(range(2, 4), tmp_path, first, end) == switched
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == bool(switched)
