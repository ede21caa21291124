"""Mean and standard deviation of the training spectrograms, and standardising by them.

Blocks of rows are merged by Chan, Golub and LeVeque's update of Welford's algorithm (1979), in float64.

Shapes: C channels, M mels, F frames; statistics are per element (C, M, F) = (2, 128, 401), in dB.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import MEL_SHAPE
from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why_unreadable
from data_pipeline.console.progress import progress_bar
from data_pipeline.shards.reader import MEL_SPEC, ShardReader

STATS_FILE = "stats.npz"
# Statistics of few rows have deviations near zero; divided by them, other rows would get huge values.
MIN_STD_DB = 1.0
# Twice the size of float64 statistics. numpy allocates as much as a file's header says.
MAX_ARRAY_BYTES = 4 << 20
# Errors of numpy for files that are no .npz, or damaged ones.
DAMAGED = (OSError, ValueError, EOFError, MemoryError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)


class MelStats(NamedTuple):
    """Mean and standard deviation (population) of each element of a spectrogram, float32 (2, 128, 401), in dB."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def standardise(mel: Any, stats: MelStats, min_std: float = MIN_STD_DB) -> Any:
    """(mel - mean) / max(std, min_std) of spectrograms (..., 2, 128, 401), NumPy's or JAX's."""
    return (mel - stats.mean) / stats.std.clip(min_std)


class RunningStats:
    """Statistics of rows that come block by block."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(MEL_SHAPE)
        self._squares = np.zeros(MEL_SHAPE)  # Sum of squared distances from the mean.

    def add(self, block: NDArray[np.floating]) -> bool:
        """Adds rows (N, 2, 128, 401). Returns False, and adds nothing, if a value is not finite."""
        rows = block.astype(np.float64)
        rows_mean = rows.mean(axis=0)
        if not np.isfinite(rows_mean).all():
            return False
        total = self.count + len(rows)
        difference = rows_mean - self._mean
        self._squares += ((rows - rows_mean) ** 2).sum(axis=0) + difference**2 * (self.count * len(rows) / total)
        self._mean += difference * (len(rows) / total)
        self.count = total
        return True

    def result(self) -> MelStats:
        """The statistics of all rows; zeros without any."""
        deviation = np.sqrt(self._squares / max(self.count, 1))
        return MelStats(self._mean.astype(np.float32), deviation.astype(np.float32))


def compute_stats(reader: ShardReader) -> MelStats:
    """Statistics over every row of a split. Raises UserError at a row that is not finite."""
    stats = RunningStats()
    with progress_bar("mel statistics", len(reader)) as advance:
        for first_row, block in reader.blocks(MEL_SPEC):
            # In float64 a few rows at a time: a block of an older shard is large.
            for start in range(0, len(block), 32):
                rows = block[start : start + 32]
                if not stats.add(rows):
                    raise UserError(
                        f"{reader.path}: rows {first_row + start} to {first_row + start + len(rows) - 1} hold mel "
                        "values that are not finite: run data_pipeline.check"
                    )
                advance(len(rows))
    return stats.result()


def save_stats(path: str | Path, stats: MelStats) -> None:
    """Writes statistics as an .npz file, whole or not at all."""
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, mean=stats.mean, std=stats.std)


def load_stats(path: str | Path) -> MelStats:
    """Reads ``stats.npz``. Raises UserError for a missing or wrong file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: python -m data_pipeline.stats {path.parent} makes it")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return MelStats(_read_array(arrays, "mean", path), _read_array(arrays, "std", path))
    except DAMAGED as error:
        raise UserError(f"{path} {why_unreadable(error, 'is not a statistics file')}") from error


def _read_array(arrays: Any, name: str, path: Path) -> NDArray[np.float32]:
    if arrays.zip.getinfo(f"{name}.npy").file_size > MAX_ARRAY_BYTES:
        raise UserError(f"{path}: {name} is larger than statistics are")
    array = np.asarray(arrays[name])
    if array.shape != MEL_SHAPE or array.dtype.kind != "f":
        raise UserError(f"{path}: {name} is {array.dtype} of shape {array.shape}, not floating of {MEL_SHAPE}")
    if not np.isfinite(array).all() or (name == "std" and array.min() < 0):
        raise UserError(f"{path}: {name} holds NaN, infinity or a negative deviation")
    return array.astype(np.float32)
