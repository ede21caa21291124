"""What a progress bar counts."""

from __future__ import annotations

import io
import sys

import pytest

from data_pipeline.progress import progress_bar


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
