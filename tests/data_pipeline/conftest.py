"""Data sets as files, and a stage for render workers."""

from __future__ import annotations

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
