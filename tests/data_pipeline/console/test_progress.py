"""What a progress bar counts."""

from __future__ import annotations

import io
import sys

import pytest

from data_pipeline.console.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def count_parts(items: int, parts: int) -> None:
    with progress_bar("rows checked", items, parts) as advance:
        for _ in range(items * parts):
            advance(1)


def test_a_terminal_is_shown_whole_items(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    count_parts(100, 3)
    assert "100/100" in terminal.getvalue()


def test_a_log_is_told_whole_items(capsys: pytest.CaptureFixture[str]) -> None:
    count_parts(100, 3)
    assert capsys.readouterr().err.startswith("rows checked: 100 in ")


def test_a_log_is_told_once_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an hour's work looks as if it hung."""
    now = 0.0
    monkeypatch.setattr("data_pipeline.console.progress.time.monotonic", lambda: now)
    with progress_bar("sampling", 10, parts=2) as advance:
        for _ in range(20):
            now += 25.0
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["sampling: 1 of 10 in 75 s", "sampling: 3 of 10 in 150 s"]
    assert lines[-1] == "sampling: 10 in 500.0 s"
    assert len(lines) == 7
