"""Tasks in several threads that end together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from data_pipeline import cli
from data_pipeline.meter import Meter

Result = TypeVar("Result")
# Transfers wait for networks rather than for processors.
THREADS = 8
# How long a thread may take to notice that it shall stop. One that waits for a dead network would take a minute.
GRACE_SECONDS = 2.0


def run_all(tasks: Sequence[Callable[[], Result]], meter: Meter) -> list[Result]:
    """Runs tasks in threads and returns their results in order.

    The first error of a task, or Ctrl-C, stops the others through their ``meter`` and is raised once they ended.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="transfer")
    futures = [pool.submit(task) for task in tasks]
    try:
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        meter.stop()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if wait(futures, timeout=GRACE_SECONDS).not_done:
            cli.exit_without_threads()
