"""Mean and standard deviation of the training spectrograms, and standardising by them.

    python -m data_pipeline.stats DATA_ROOT

reads DATA_ROOT/train.h5 (or the split given as a .h5 path) once, in bounded memory, and writes ``stats.npz`` beside
it. Blocks of rows are merged by Chan, Golub and LeVeque's update of Welford's algorithm (1979), in float64.

Shapes: C channels, M mels, F frames; statistics are per element (C, M, F) = (2, 128, 401), in dB.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_pipeline import cli
from data_pipeline.atomic import atomic_path
from data_pipeline.cli import UserError
from data_pipeline.progress import progress_bar
from data_pipeline.shards import MEL_SPEC, ROW_SHAPES, ShardReader

STATS_FILE = "stats.npz"
# Statistics of few rows have deviations near zero, by which an unseen row would be blown up.
MIN_STD_DB = 1.0
# Twice what float64 statistics take: numpy believes a file's header and would allocate whatever it says.
MAX_ARRAY_BYTES = 4 << 20


class MelStats(NamedTuple):
    """Mean and standard deviation (population) of each element of a spectrogram, float32 (2, 128, 401), in dB."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def standardise(mel: Any, stats: MelStats, min_std: float = MIN_STD_DB) -> Any:
    """(mel - mean) / max(std, min_std) of spectrograms (..., 2, 128, 401), NumPy's or JAX's."""
    return (mel - stats.mean) / stats.std.clip(min_std)


def compute_stats(reader: ShardReader) -> MelStats:
    """Statistics over every row of a split. Raises UserError at a row that is not finite."""
    count = 0
    mean = np.zeros(_stats_shape())
    squares = np.zeros(_stats_shape())  # Sum of squared distances from the mean.
    with progress_bar("mel statistics", len(reader)) as advance:
        for first_row, block in reader.blocks(MEL_SPEC):
            # A few rows at a time in float64: a block of an old shard is large.
            for start in range(0, len(block), 32):
                rows = block[start : start + 32].astype(np.float64)
                rows_mean = rows.mean(axis=0)
                if not np.isfinite(rows_mean).all():
                    raise UserError(
                        f"{reader.path}: rows {first_row + start} to {first_row + start + len(rows) - 1} hold mel "
                        "values that are not finite: run data_pipeline.check"
                    )
                total = count + len(rows)
                difference = rows_mean - mean
                squares += ((rows - rows_mean) ** 2).sum(axis=0) + difference**2 * (count * len(rows) / total)
                mean += difference * (len(rows) / total)
                count = total
                advance(len(rows))
    return MelStats(mean.astype(np.float32), np.sqrt(squares / count).astype(np.float32))


def save_stats(path: str | Path, stats: MelStats) -> None:
    """Writes statistics as an .npz file, whole or not at all."""
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, mean=stats.mean, std=stats.std)


def load_stats(path: str | Path) -> MelStats:
    """Reads ``stats.npz``. Raises UserError for a missing file (naming the command that makes it) or a wrong one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: python -m data_pipeline.stats {path.parent} makes it")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return MelStats(_read_array(arrays, "mean", path), _read_array(arrays, "std", path))
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(f"{path} is not a statistics file: {error}") from error


def _read_array(arrays: Any, name: str, path: Path) -> NDArray[np.float32]:
    if arrays.zip.getinfo(f"{name}.npy").file_size > MAX_ARRAY_BYTES:
        raise UserError(f"{path}: {name} is larger than statistics are")
    array = np.asarray(arrays[name])
    if array.shape != _stats_shape() or array.dtype.kind != "f":
        raise UserError(f"{path}: {name} is {array.dtype} of shape {array.shape}, not floating of {_stats_shape()}")
    if not np.isfinite(array).all() or (name == "std" and array.min() < 0):
        raise UserError(f"{path}: {name} holds values that are not possible")
    return array.astype(np.float32)


def _stats_shape() -> tuple[int, ...]:
    return tuple(size for size in ROW_SHAPES[MEL_SPEC] if size is not None)


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) != 2:
        raise UserError("usage: python -m data_pipeline.stats DATA_ROOT [--allow_external]")
    source = Path(argv[1])
    split = source if source.suffix == ".h5" else source / "train.h5"
    if not split.exists():
        raise UserError(f"{split} does not exist: python -m data_pipeline.splits makes it")
    reader = ShardReader(split, allow_external=flags.FLAGS.allow_external)
    target = split.parent / STATS_FILE
    save_stats(target, compute_stats(reader))
    print(f"{target}: mean and std of {len(reader)} rows")


if __name__ == "__main__":
    flags.DEFINE_bool("allow_external", False, "Read shards that lie outside the parent of the data set's folder.")
    cli.run(main)
