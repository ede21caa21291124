"""Step times are those of the devices, although the host runs ahead."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from synthjax.training import step_clock
from synthjax.training.step_clock import AHEAD, StepClock
from tests.helpers import REPOSITORY, wait_until


class Result:
    """Of a step that is done when the test says so."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def block_until_ready(self) -> None:
        self.done.wait()


class Failed(Result):
    def block_until_ready(self) -> None:
        raise RuntimeError("the device is on fire")


class Time:
    """A clock that the test sets."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock_time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock_time = Time()
    monkeypatch.setattr(step_clock, "time", clock_time)
    monkeypatch.setattr(step_clock.jax, "block_until_ready", lambda result: result.block_until_ready())
    return clock_time


@pytest.fixture
def clock(clock_time: Time) -> Iterator[StepClock]:
    clock = StepClock()
    yield clock
    clock.close()
    clock._thread.join()


def finish(clock: StepClock, result: Result, count: int) -> None:
    """Lets a step be done, and waits until ``count`` are noted."""
    result.done.set()
    wait_until(lambda: len(clock._times) >= count)


def test_a_step_counts_from_the_end_of_the_one_before(clock: StepClock, clock_time: Time) -> None:
    results = [Result() for _ in range(3)]
    for step, result in enumerate(results, start=1):
        clock.started(step, result, waited=step / 10)
    for count, (now, result) in enumerate(zip((2.0, 2.5, 6.0), results, strict=True), start=1):
        clock_time.now = now
        finish(clock, result, count)
    times = clock.take(2)
    assert [(one.step, one.seconds, one.waited) for one in times] == [(1, 2.0, 0.1), (2, 0.5, 0.2)]
    assert [(one.step, one.seconds) for one in clock.take(9)] == [(3, 3.5)]
    assert clock.take(9) == []


def test_a_restart_waits_for_all_steps_and_forgets_the_pause(clock: StepClock, clock_time: Time) -> None:
    first, second = Result(), Result()
    clock.started(1, first, 0.0)
    restarted = threading.Thread(target=clock.restart)
    restarted.start()
    restarted.join(0.05)
    assert restarted.is_alive()
    clock_time.now = 1.0
    first.done.set()
    restarted.join()
    clock_time.now = 100.0
    clock.restart()
    clock.started(2, second, 0.0)
    clock_time.now = 103.0
    finish(clock, second, 2)
    assert [one.seconds for one in clock.take(2)] == [1.0, 3.0]


def test_the_host_runs_ahead_so_far_and_no_further(clock: StepClock) -> None:
    results = [Result() for _ in range(AHEAD + 2)]
    for step, result in enumerate(results[:-1], start=1):
        clock.started(step, result, 0.0)  # The thread has the first, the queue the others.
    last = threading.Thread(target=clock.started, args=(AHEAD + 2, results[-1], 0.0))
    last.start()
    last.join(0.05)
    assert last.is_alive()
    results[0].done.set()
    last.join()
    assert [one.step for one in clock.take(1)] == [1]  # Done, as the docstring says: AHEAD + 2 - AHEAD - 1.
    for result in results:
        result.done.set()


def test_a_failed_step_does_not_end_the_clock(clock: StepClock) -> None:
    good = Result()
    clock.started(1, Failed(), 0.0)
    clock.started(2, good, 0.0)
    finish(clock, good, 2)
    assert [one.step for one in clock.take(2)] == [1, 2]


def test_closing_does_not_wait_for_steps_that_are_never_done(clock_time: Time) -> None:
    clock, results = StepClock(), [Result() for _ in range(AHEAD + 1)]
    for step, result in enumerate(results, start=1):
        clock.started(step, result, 0.0)
    clock.close()  # It returns.
    for result in results:
        result.done.set()


# Steps of ten seconds and more: the command ends in the first of them.
ENDS_EARLY = """
import jax
import jax.numpy as jnp
from data_pipeline.console import cli
from synthjax.training.step_clock import AHEAD, StepClock

def main(argv):
    clock = StepClock()
    slow = jax.jit(lambda count, x: jax.lax.fori_loop(0, count, lambda i, x: jnp.tanh(x @ x), x))
    x = slow(1, jnp.eye(512)).block_until_ready()
    for step in range(AHEAD + 1):
        clock.started(step, slow(20_000, x), 0.0)
    clock.close()
    cli.fail("the disk is full", 1)

cli.run(main)
"""


def test_a_command_that_ends_with_steps_under_way_keeps_its_exit_code() -> None:
    result = subprocess.run([sys.executable, "-c", ENDS_EARLY], cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "error: the disk is full\n")
