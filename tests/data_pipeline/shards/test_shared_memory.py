"""Rows that the processes of a machine hold together."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.shards.cached_reader import CachedReader, TooLarge
from data_pipeline.shards.reader import MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.shards.shared_memory import Alone, shared_array

# Whoever waits for another waits at most so long.
SECONDS = 60
ROWS = 24


@dataclass
class Member:
    """One of several threads or processes that meet at a barrier."""

    rank: int
    words: Any
    barrier: Any

    @property
    def count(self) -> int:
        return len(self.words)

    def exchange(self, word: int) -> Sequence[int]:
        self.words[self.rank] = word
        self.barrier.wait(SECONDS)
        told = list(self.words)
        self.barrier.wait(SECONDS)  # Else a word of the next round might be among them.
        return told


def together(work: Callable[[Member], Any], count: int) -> list[Any]:
    """What ``work`` gives each of so many threads."""
    words, barrier = [0] * count, threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, [Member(rank, words, barrier) for rank in range(count)]))


@pytest.mark.parametrize("count", [2, 3, 30])  # Of 30 some read nothing.
def test_every_row_is_put_there_once_and_is_there_for_all(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    path, written = tiny_root / "train.h5", []
    original = np.ndarray.__setitem__

    class Watched(np.ndarray):
        def __setitem__(self, rows: slice, values: np.ndarray) -> None:
            if values.ndim == 4:  # Spectrograms.
                written.extend(range(rows.start, rows.stop))
            original(self, rows, values)

    monkeypatch.setattr(
        "data_pipeline.shards.cached_reader.shared_array", lambda *arguments: shared_array(*arguments).view(Watched)
    )

    def load(member: Member) -> CachedReader:
        reader = CachedReader(ShardReader(path), [MEL_SPEC, PARAM_ARRAY])
        reader.load(member)
        return reader

    readers = together(load, count)
    assert sorted(written) == list(range(ROWS))
    expected = ShardReader(path)
    for name in (MEL_SPEC, PARAM_ARRAY):
        rows = expected.read_rows(name, np.arange(ROWS))
        for reader in readers:
            np.testing.assert_array_equal(reader.read_rows(name, np.arange(ROWS)), rows)


def test_an_array_is_one_for_all() -> None:
    one, other = together(lambda member: shared_array((3, 2), np.float16, member), 2)
    assert one.shape == other.shape == (3, 2)
    one[1, 1] = 5
    other[2, 0] = 7
    np.testing.assert_array_equal(one, [[0, 0], [0, 5], [7, 0]])
    np.testing.assert_array_equal(other, one)


def test_whoever_is_alone_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert shared_array((2, 3), np.float32, Alone()).shape == (2, 3)


class Second(Alone):
    """Of two, of which the first tells these words."""

    rank, count = 1, 2

    def __init__(self, *words: int) -> None:
        self._words = iter(words)

    def exchange(self, word: int) -> Sequence[int]:
        return [next(self._words), word]


def test_the_first_one_asks_for_the_memory_of_all(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.shards.cached_reader.available_memory", lambda: 1_000)
    reader = CachedReader(ShardReader(tiny_root / "train.h5"), [MEL_SPEC])
    with pytest.raises(TooLarge):
        reader.load(Alone())
    with pytest.raises(UserError, match="cannot share memory"):  # The second goes on, to what the first has made.
        reader.load(Second(gone_process(), 3))


def test_memory_out_of_reach_is_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot share memory \(.*No such file or directory.*\): .*cache=none"):
        shared_array((2,), np.float32, Second(gone_process(), 3))


def test_another_file_is_not_taken_for_memory(tmp_path: Path) -> None:
    """As where the number of a process means another one here."""
    file = tmp_path / "precious"
    file.write_bytes(bytes(100))
    with file.open("r+b") as opened, pytest.raises(UserError, match=r"cannot share memory .* is another file"):
        shared_array((2,), np.float32, Second(os.getpid(), opened.fileno()))


def test_memory_that_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)

    class First(Alone):
        count = 2

    with pytest.raises(UserError, match=r"cannot share memory .*not permitted"):
        shared_array((2,), np.float32, First())


def gone_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def hold(path: Path, member: Member, pipe: Connection) -> None:
    """In a process: loads, and answers what it holds as often as it is asked."""
    reader = CachedReader(ShardReader(path), [MEL_SPEC])
    reader.load(member)
    while True:
        rows = reader.read_rows(MEL_SPEC, np.arange(ROWS))
        rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
        (shared,) = re.findall(r"Pss_Shmem: +(\d+) kB", rollup)
        pipe.send((hashlib.sha256(rows.tobytes()).hexdigest(), int(shared) * 1024))
        pipe.recv()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell")
def test_processes_hold_one_copy_and_the_end_of_one_takes_nothing_from_the_others(tiny_root: Path) -> None:
    path = tiny_root / "train.h5"
    rows = ShardReader(path).read_rows(MEL_SPEC, np.arange(ROWS))
    context = multiprocessing.get_context("spawn")
    words, barrier = context.Array("q", 3), context.Barrier(3)
    started, pipes = [], []
    for rank in range(3):
        here, there = context.Pipe()
        process = context.Process(target=hold, args=(path, Member(rank, words, barrier), there), daemon=True)
        process.start()
        started.append(process)
        pipes.append(here)

    def told(of: Sequence[int]) -> list[tuple[str, int]]:
        assert all(pipes[rank].poll(SECONDS) for rank in of)
        return [pipes[rank].recv() for rank in of]

    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    try:
        first = told([0, 1, 2])
        assert [held for held, _ in first] == [digest] * 3
        for pipe in pipes:  # Shares of memory count when all have it.
            pipe.send(None)
        assert sum(shared for _, shared in told([0, 1, 2])) == pytest.approx(rows.nbytes, rel=0.1)
        started[0].kill()
        started[0].join()
        assert started[0].exitcode == -signal.SIGKILL
        for rank in (1, 2):
            pipes[rank].send(None)
        assert [held for held, _ in told([1, 2])] == [digest] * 2
    finally:
        for process in started:
            process.kill()
