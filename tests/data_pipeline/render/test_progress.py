"""The progress of a rendering run, on a terminal and in a log."""

from __future__ import annotations

import io
import re
import sys
import threading
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import pytest

from data_pipeline.render import progress as render_progress
from data_pipeline.render.progress import LOG_SECONDS, RenderProgress
from data_pipeline.render.worker_pool import Loss


class Clock:
    """A clock that moves only when a test sets ``now``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(render_progress, "time", SimpleNamespace(monotonic=clock))
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_line_shows_rows_rate_time_left_refused_and_restarts(clock: Clock) -> None:
    progress = RenderProgress(total=100, done=20)
    clock.now += 10
    progress.update(16, Counter(quiet=9, clipped=1))
    for reason, detail in (("crash", "signal 11"), ("memory", "3000 MiB"), ("crash", "signal 6")):
        progress.lost(Loss(reason, detail, ""))
    progress.update(4, Counter(quiet=2))
    assert str(progress) == (
        "40/100 rows, 2.0 rows/s, 0:00:30 left; refused: 1 clipped, 11 quiet; workers restarted: 2 crash, 1 memory"
    )


def test_line_before_anything_is_known(clock: Clock) -> None:
    assert str(RenderProgress(10, 0)) == "0/10 rows, 0.0 rows/s, ? left; refused: none; workers restarted: none"


def test_time_left_of_more_than_a_day(clock: Clock) -> None:
    progress = RenderProgress(total=2_000_000, done=0)
    clock.now += 100
    progress.update(1000, Counter())
    assert "2 days, 7:31:40 left" in str(progress)


def test_rate_counts_this_run_alone(clock: Clock) -> None:
    progress = RenderProgress(total=1000, done=900)
    clock.now += 50
    progress.update(50, Counter())
    assert "950/1000 rows, 1.0 rows/s, 0:00:50 left" in str(progress)


def test_log_gets_a_line_now_and_then_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with RenderProgress(100, 0) as progress:
        assert [line.split(",")[0] for line in lines(capsys)] == ["0/100 rows"]  # The first row may take its time.
        for _ in range(13):
            clock.now += LOG_SECONDS / 4 + 0.1
            progress.update(1, Counter())
        assert [line.split(" ")[0] for line in lines(capsys)] == ["4/100", "8/100", "12/100"]
    assert [line.split(" ")[0] for line in lines(capsys)] == ["13/100"]


def test_run_with_nothing_to_do_is_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with RenderProgress(100, 100):
        clock.now += 1000
    assert lines(capsys) == []


def test_last_line_is_there_after_a_failure_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(KeyboardInterrupt), RenderProgress(100, 0) as progress:
        progress.update(3, Counter(nan=1))
        raise KeyboardInterrupt
    _, line = lines(capsys)
    assert line.startswith("3/100 rows")
    assert "1 nan" in line


def test_what_is_said_is_a_line_of_its_own(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with RenderProgress(100, 0) as progress:
        lines(capsys)
        progress.say("shard-0.h5 is complete")
    assert lines(capsys) == ["shard-0.h5 is complete"]


def test_every_loss_is_reported_and_the_log_of_the_first_for_each_reason(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = RenderProgress(100, 0)
    progress.lost(Loss("crash", "killed by signal 11: bad pointer", "bad pointer"))
    progress.lost(Loss("error", "KeyError: 'a'", "Traceback:\n  in render\nKeyError: 'a'"))
    progress.lost(Loss("error", "KeyError: 'b'", "Traceback:\n  in render\nKeyError: 'b'"))
    assert lines(capsys) == [
        "a worker was lost (crash: killed by signal 11: bad pointer)",
        "a worker was lost (error: KeyError: 'a')",
        "  | Traceback:",
        "  |   in render",
        "  | KeyError: 'a'",
        "a worker was lost (error: KeyError: 'b')",
    ]


def test_losses_go_into_the_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """While workers die, no batch is finished."""
    progress = RenderProgress(100, 0)
    clock.now += LOG_SECONDS + 0.1
    progress.lost(Loss("hang", "no news", ""))
    assert lines(capsys)[1].endswith("workers restarted: 1 hang")


def test_what_earlier_runs_refused_is_counted(clock: Clock) -> None:
    progress = RenderProgress(100, 50, Counter(quiet=7))
    progress.update(1, Counter(quiet=2, clipped=1))
    assert "refused: 1 clipped, 9 quiet" in str(progress)


def test_counters_given_are_left_alone(clock: Clock) -> None:
    refused = Counter(quiet=1)
    progress = RenderProgress(100, 0)
    progress.update(1, refused)
    progress.update(1, refused)
    assert refused == {"quiet": 1}
    assert "2 quiet" in str(progress)


def test_terminal_shows_what_is_said_and_the_last_state(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with RenderProgress(100, 0) as progress:
        clock.now += 1
        progress.update(3, Counter(quiet=2))
        progress.say("[/lib/plugin] shard-[0].h5 is complete")  # A plugin's text must not be read as Rich's mark-up.
        thread = threading.Thread(target=progress.say, args=("from another thread",))
        thread.start()
        thread.join()
        progress.update(4, Counter())
    assert "\x1b[?25h" in terminal.getvalue()  # The cursor is shown again.
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", terminal.getvalue())
    for text in ("3/100 rows", "[/lib/plugin] shard-[0].h5 is complete", "from another thread", "7/100 rows"):
        assert text in shown
    assert shown.index("0/100") < shown.index("3/100") < shown.index("is complete") < shown.rindex("7/100")
