"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator

import pytest

from synthjax.training.interrupts import StopRequest

TERM, INT, USR1, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP


@pytest.fixture(autouse=True)
def restored() -> Generator[None, None, None]:
    before = {number: signal.getsignal(number) for number in (TERM, INT, USR1, HUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# Each sequence is sent to a process of its own: a signal that is not caught ends it.
STOPS = """
import os, signal, sys
from synthjax.training.interrupts import StopRequest
with StopRequest() as stop:
    assert not stop.due(0)
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
    assert stop.due(1)
    print("saved")
for number in map(int, sys.argv[1:]):
    if number != signal.SIGINT:
        os.kill(os.getpid(), number)
sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(
    ("signals", "code"),
    [((TERM, TERM, TERM), 0), ((INT, TERM), 130), ((USR1, TERM), 0), ((HUP, TERM, HUP), 0)],
)
def test_signals_that_come_again_do_not_lose_the_save(signals: tuple[int, ...], code: int) -> None:
    command = [sys.executable, "-c", STOPS, *(str(int(number)) for number in signals)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (code, "saved\n"), result.stderr


@pytest.mark.parametrize("first", [TERM, INT])
def test_ctrl_c_after_a_request_ends_at_once(first: int) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        assert stop.due(0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), INT)


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    signal.signal(HUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), HUP)
        assert not stop.due(0)


def test_a_run_that_was_not_asked_to_stop_leaves_the_signals_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (TERM, INT, USR1, HUP)]
    with StopRequest():
        assert signal.getsignal(TERM) != before[0]
    assert [signal.getsignal(number) for number in (TERM, INT, USR1, HUP)] == before
