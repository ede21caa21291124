"""Data sets as files, and a stage for render workers."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.shards.splits import write_splits
from tests.data_pipeline.worker_play import Stage
from tests.helpers import make_rows, write


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """``set/shards`` with shards 0, 1, 2 and 10 of two rows each."""
    folder = tmp_path / "set" / "shards"
    folder.mkdir(parents=True)
    for number in (0, 1, 2, 10):
        write(folder / f"shard-{number}.h5", make_rows(number))
    return folder


@pytest.fixture
def data_set(shards: Path) -> Path:
    """``set/splits`` with train.h5 of shards 0, 1 and 2 and test.h5 of shard 10."""
    target = shards.parent / "splits"
    write_splits(shards, target, {"train": [0, 1, 2], "test": [10]})
    return target


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """On which the workers of every pool are actors."""
    return Stage(monkeypatch)


@pytest.fixture
def at_the_limit_of_open_files(tmp_path: Path) -> Iterator[None]:
    """No further file can be opened; ``a.wav`` and ``a.h5`` are there."""
    for name in ("a.wav", "a.h5"):
        (tmp_path / name).write_bytes(b"nothing")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        taken.append(os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
