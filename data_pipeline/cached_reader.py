"""Rows that are read once, in order, and from then on copied out of memory.

A read in order decompresses chunks of many rows once or a few times, not once for every row: shards of the PyTorch
code, whose guessed chunks make single rows expensive, need no rechunking to be read this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cli import UserError
from data_pipeline.host_memory import available_memory
from data_pipeline.meter import data_size, shown_meter
from data_pipeline.shards import ShardReader
from data_pipeline.shared_memory import ALONE, Neighbours, shared_array

# Of the memory that is free: the rest is for what computes with it.
SHARE_OF_CACHE = 0.75


class TooLarge(UserError):
    """A cache does not fit into memory."""


class CachedReader:
    """A reader whose datasets ``names`` are held in memory from ``load`` on."""

    def __init__(self, reader: ShardReader, names: Sequence[str]) -> None:
        self._reader, self._names = reader, names
        self._held: dict[str, NDArray[Any]] = {}

    @property
    def path(self) -> Path:
        """The file that errors name."""
        return self._reader.path

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._reader)

    def load(self, neighbours: Neighbours = ALONE) -> None:
        """Reads what is to be held: once for all neighbours, who load together, each a part of the rows.

        Raises:
          TooLarge: where the memory that is free cannot take it.
          UserError: if neighbours cannot share it.
        """
        self._held = {name: _read_all(self._reader, name, neighbours) for name in self._names}

    def read_rows(self, name: str, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[Any]:
        """Rows (len(indices), ...) of a dataset in the order asked: as ``ShardReader`` gives them, bit for bit."""
        held = self._held.get(name)
        return self._reader.read_rows(name, indices) if held is None else held[np.asarray(indices)]


def size_of(reader: ShardReader, name: str, rows: int | None = None) -> int:
    """Bytes of ``rows`` rows of a dataset, or of all."""
    count = len(reader) if rows is None else rows
    return count * int(np.prod(reader.row_shape(name))) * reader.dtype(name).itemsize


def _read_all(reader: ShardReader, name: str, neighbours: Neighbours) -> NDArray[Any]:
    if neighbours.rank == 0:
        _check_memory(reader, name)
    rows = shared_array((len(reader), *reader.row_shape(name)), reader.dtype(name), neighbours)
    mine = (len(reader) * rank // neighbours.count for rank in (neighbours.rank, neighbours.rank + 1))
    with shown_blocks(reader, name, range(*mine), "reading into memory") as blocks:
        for first, block in blocks:
            rows[first : first + len(block)] = block
    neighbours.tell(0)  # All parts are there.
    return rows


def _check_memory(reader: ShardReader, name: str) -> None:
    needed, free = size_of(reader, name), available_memory()
    if needed > SHARE_OF_CACHE * free:
        raise TooLarge(
            f"data.cache: {name} of {reader.path} takes {data_size(needed)}, and {data_size(free)} of memory are free, "
            "of which it may take three quarters: set --config.data.cache=none"
        )


@contextmanager
def shown_blocks(
    reader: ShardReader, name: str, rows: range, title: str
) -> Iterator[Iterator[tuple[int, NDArray[Any]]]]:
    """A range of rows in order, as (first row, block), with a bar on stderr."""
    with shown_meter(f"{name}: {title}", size_of(reader, name, len(rows))) as meter:

        def metered() -> Iterator[tuple[int, NDArray[Any]]]:
            if not rows:
                return
            for first, block in reader.blocks(name, rows.start):
                start, stop = max(first, rows.start), min(first + len(block), rows.stop)
                if start < stop:
                    part = block[start - first : stop - first]
                    yield start, part
                    meter.moved(part.nbytes)
                if stop == rows.stop:
                    return

        yield metered()
