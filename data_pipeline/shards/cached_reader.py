"""A reader that holds datasets in memory.

Rows are read in order, so that chunks of many rows are decompressed once, not once for every row. Shards of the PyTorch
code, which have such chunks, need no rechunking to be read this way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.console.cli import UserError
from data_pipeline.console.machine import available_memory
from data_pipeline.console.progress import byte_bar, data_size
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.shared_memory import ALONE, Neighbours, shared_array

# Part of the free memory that a cache may take. The rest is for computing.
SHARE_OF_CACHE = 0.75


class TooLarge(UserError):
    """A cache does not fit into memory."""


class CachedReader:
    """A reader whose datasets ``names`` are in memory after ``load``."""

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
        """Reads the datasets into memory that all neighbours share. All call this together, and each reads a part.

        Raises:
          TooLarge: if the free memory is too small.
          UserError: if the neighbours cannot share memory.
        """
        self._held = {name: _read_all(self._reader, name, neighbours) for name in self._names}

    def read_rows(self, name: str, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[Any]:
        """Rows (len(indices), ...) of a dataset in the order of ``indices``, equal to those of ``ShardReader``."""
        held = self._held.get(name)
        return self._reader.read_rows(name, indices) if held is None else held[np.asarray(indices)]


def size_of(reader: ShardReader, name: str, rows: int | None = None) -> int:
    """Bytes of ``rows`` rows of a dataset (default: all)."""
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
    neighbours.exchange(0)  # Waits until all parts are read.
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
    """Yields an iterator of (first row, block) over a range of rows, with a bar on stderr."""
    with byte_bar(f"{name}: {title}", size_of(reader, name, len(rows))) as advance:

        def counted() -> Iterator[tuple[int, NDArray[Any]]]:
            for first, block in reader.blocks(name, rows):
                yield first, block
                advance(block.nbytes)

        yield counted()
