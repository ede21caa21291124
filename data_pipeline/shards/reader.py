"""Reads and writes the HDF5 files of a data set: shards and splits.

Both hold three datasets of N rows: ``audio (N, 2, 176400)``, ``mel_spec (N, 2, 128, 401)`` and
``param_array (N, W)``. Audio may be left out. Ours are float16, float16 and float32, one row a chunk, with root
attributes (``ShardAttributes``). Older shards (float32 spectrograms, chunks chosen by h5py, no root attributes) are
read alike. A split maps its rows to shards. It is not read through HDF5's virtual datasets: see ``virtual_sources``.
"""

from __future__ import annotations

import math
import os
import resource
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import (
    AUDIO_SHAPE,
    CHANNELS,
    MEL_SHAPE,
    MIN_LOUDNESS,
    SAMPLE_RATE,
    SECONDS,
    VELOCITY,
)
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import MAX_WIDTH
from data_pipeline.shards.hdf5_files import HDF5_ERRORS, local_dataset, new_hdf5, open_hdf5, reason
from data_pipeline.shards.virtual_sources import Segment, trace

AUDIO = "audio"
MEL_SPEC = "mel_spec"
PARAM_ARRAY = "param_array"
# Row shapes. None stands for W, the width of the synthesizer's spec.
ROW_SHAPES: dict[str, tuple[int | None, ...]] = {AUDIO: AUDIO_SHAPE, MEL_SPEC: MEL_SHAPE, PARAM_ARRAY: (None,)}
# Datasets that a shard may lack: ``render_shards --store_audio=False`` leaves audio out.
OPTIONAL = (AUDIO,)
WRITER_VERSION = 1

# Size of a block of rows. A block of whole chunks, which are decompressed at once, may have the larger size.
BLOCK_BYTES = 32 << 20
MAX_BLOCK_BYTES = 160 << 20


@dataclass(frozen=True)
class ShardAttributes:
    """The root attributes of a shard. Duration in seconds, loudness in LUFS, peak relative to full scale.

    None stands for an unknown value, as of older shards; it is not written. ``prior_hash`` is the content hash of the
    mixture that rows were drawn from; None where they were drawn by the spec's own weights.
    """

    spec_name: str | None
    spec_hash: str | None
    seed: int | None
    first_sample_index: int | None
    synth_name: str
    synth_version: str
    sample_rate: float | None = float(SAMPLE_RATE)
    channels: int | None = CHANNELS
    duration_seconds: float | None = SECONDS
    velocity: int | None = VELOCITY
    min_loudness: float | None = MIN_LOUDNESS
    max_peak: float | None = math.inf
    prior_hash: str | None = None


class ShardReader:
    """Reads rows of one shard or split.

    The constructor checks everything except the rows. It raises UserError for a missing, truncated or incomplete file,
    missing datasets, wrong shapes, and for a source of a split that is missing, too short, or outside the permitted
    folders (see ``hdf5_files``; ``allow_external`` permits all folders).

    Each process opens the files on first use: readers may be pickled to, or inherited by, worker processes.
    """

    def __init__(self, path: str | Path, *, allow_external: bool = False) -> None:
        self.path = Path(path).absolute()
        self._segments, faults = trace(self.path, tuple(ROW_SHAPES), optional=OPTIONAL, allow_external=allow_external)
        if faults:
            more = f" (and {len(faults) - 1} more faults: run data_pipeline.check)" if len(faults) > 1 else ""
            raise UserError(faults[0] + more)
        self._first_rows = {
            name: [segment.first_row for segment in segments] for name, segments in self._segments.items()
        }
        self._length = self._check_shapes()
        self.attrs = read_attributes(self.path)
        self._opened: tuple[int, dict[Path, h5py.File], dict[Segment, h5py.Dataset]] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the open files, which belong to this process."""
        return {**self.__dict__, "_opened": None}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the datasets that the file has: all of ``ROW_SHAPES``, or all but ``AUDIO``."""
        return tuple(self._segments)

    @property
    def width(self) -> int:
        """W, the number of columns of ``param_array``."""
        return self.row_shape(PARAM_ARRAY)[0]

    def dtype(self, name: str) -> np.dtype:
        """The type of a dataset's rows when read: float16, or float32 for any other type on disk."""
        return _read_dtype(self._segments_of(name)[0])

    def row_shape(self, name: str) -> tuple[int, ...]:
        """The shape of one row of a dataset."""
        return self._segments_of(name)[0].row_shape

    def read(self, name: str, index: int) -> NDArray[Any]:
        """One row of a dataset. Raises IndexError beyond the data, UserError where the file cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.path}")
        segment = self._segment_of(name, index)
        return self._read(segment, index, index + 1)[0]

    def read_rows(self, name: str, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[Any]:
        """Rows (len(indices), ...) in the order of ``indices``; fastest if they are sorted.

        Consecutive rows are read as one slice, others one by one: h5py's fancy indexing takes fifty times as long.
        """
        rows = np.empty((len(indices), *self.row_shape(name)), self.dtype(name))
        position = 0
        while position < len(indices):
            start = int(indices[position])
            if not 0 <= start < len(self):
                raise IndexError(f"row {start} of {len(self)} in {self.path}")
            segment = self._segment_of(name, start)
            stop = start + 1
            while (
                position + stop - start < len(indices)
                and indices[position + stop - start] == stop
                and stop < segment.first_row + segment.rows
            ):
                stop += 1
            rows[position : position + stop - start] = self._read(segment, start, stop)
            position += stop - start
        return rows

    def blocks(self, name: str, rows: range | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Consecutive rows (default: all) as (first row, block). Memory is bounded; no chunk is decompressed twice."""
        wanted = range(len(self)) if rows is None else rows
        for segment in self._segments_of(name):
            size = _block_rows(segment)
            end = segment.first_row + segment.rows
            for block in range(segment.first_row, end, size):
                start, stop = max(block, wanted.start), min(block + size, end, wanted.stop)
                if start < stop:
                    yield start, self._read(segment, start, stop)

    def source_of(self, name: str, index: int) -> tuple[Path, int]:
        """The shard that holds a row, and the row's number in it."""
        segment = self._segment_of(name, index)
        return segment.path, segment.source_first_row + index - segment.first_row

    def source_files(self) -> list[Path]:
        """The files that hold the rows; for a shard, the shard itself."""
        return sorted({segment.path for segments in self._segments.values() for segment in segments})

    def _segments_of(self, name: str) -> list[Segment]:
        if name in OPTIONAL and name not in self._segments:
            raise UserError(
                f"{self.path}: has no {name}, it was left out by --store_audio=False: render the shards again without "
                "that flag, into another folder"
            )
        return self._segments[name]

    def _segment_of(self, name: str, index: int) -> Segment:
        return self._segments_of(name)[bisect_right(self._first_rows[name], index) - 1]

    def _read(self, segment: Segment, start: int, stop: int) -> NDArray[Any]:
        offset = segment.source_first_row - segment.first_row
        try:
            rows_read = self._dataset(segment)[start + offset : stop + offset]
            return cast(NDArray[Any], rows_read.astype(_read_dtype(segment), copy=False))
        except HDF5_ERRORS as error:
            rows = f"row {start + offset}" if stop == start + 1 else f"rows {start + offset} to {stop + offset - 1}"
            raise UserError(f"{segment.path}: {rows} of {segment.dataset} {reason(error, 'cannot be read')}") from error

    def _dataset(self, segment: Segment) -> h5py.Dataset:
        if self._opened is None or self._opened[0] != os.getpid():
            # A forked process must close inherited files before it opens its own: else HDF5 returns the parent's file.
            self._opened = None
            self._opened = (os.getpid(), {}, {})
        _, files, datasets = self._opened
        if segment not in datasets:
            if segment.path not in files:
                if len(files) >= _most_open_files():
                    files.clear()
                    datasets.clear()
                files[segment.path] = open_hdf5(segment.path)
            datasets[segment] = cast(h5py.Dataset, files[segment.path][segment.dataset])
        return datasets[segment]

    def _check_shapes(self) -> int:
        lengths = set()
        for name, segments in self._segments.items():
            expected = ROW_SHAPES[name]
            if not segments:
                raise UserError(f"{self.path}: {name} has no rows")
            for segment in segments:
                if not _fits(segment.row_shape, expected) or not _is_readable(segment.dtype):
                    wanted = ", ".join("W" if size is None else str(size) for size in expected)
                    raise UserError(
                        f"{segment.path}: a row of {name} is {segment.dtype} of shape {segment.row_shape}, "
                        f"not float16, float32 or float64 of shape ({wanted})"
                    )
            if len({(segment.row_shape, _read_dtype(segment)) for segment in segments}) > 1:
                raise UserError(f"{self.path}: {name} mixes shards of different widths or types: run splits again")
            lengths.add(sum(segment.rows for segment in segments))
        if len(lengths) > 1 or lengths == {0}:
            raise UserError(f"{self.path}: its datasets have {sorted(lengths)} rows; they must have equally many")
        return lengths.pop()


def write_shard(
    path: str | Path,
    audio: NDArray[np.floating],
    mel_spec: NDArray[np.floating],
    param_array: NDArray[np.floating],
    attributes: ShardAttributes,
) -> None:
    """Writes audio (N, 2, 176400), mel_spec (N, 2, 128, 401) and param_array (N, W) as one shard, whole or not at all.

    Raises ValueError for wrong shapes, UserError if the file cannot be written.
    """
    arrays = {AUDIO: audio, MEL_SPEC: mel_spec, PARAM_ARRAY: param_array}
    for name, array in arrays.items():
        if not len(array) == len(audio) > 0 or not _fits(array.shape[1:], ROW_SHAPES[name]):
            raise ValueError(f"{name} of shape {array.shape} does not fit a shard of {len(audio)} rows")
    with new_hdf5(Path(path)) as file:
        for name, array in arrays.items():
            create_dataset(file, name, len(array), array.shape[1:])[:] = array
        seal(file, attributes)


def seal(file: h5py.File, attributes: ShardAttributes) -> None:
    """Writes the root attributes of a shard, after all its rows."""
    known = {name: value for name, value in asdict(attributes).items() if value is not None}
    file.attrs.update({**known, "writer_version": WRITER_VERSION, "complete": True})


def create_dataset(file: h5py.File, name: str, rows: int, row_shape: tuple[int, ...]) -> h5py.Dataset:
    """Creates an empty dataset of a shard.

    A chunk holds one row, so that reading a random row decompresses little. Parameters are too small to compress.
    """
    shape, dtype = (rows, *row_shape), stored_dtype(name)
    if name == PARAM_ARRAY:
        return file.create_dataset(name, shape, dtype)
    compression = hdf5plugin.Blosc2(cname="lz4", filters=hdf5plugin.Blosc2.BITSHUFFLE)
    return file.create_dataset(name, shape, dtype, chunks=(1, *row_shape), compression=compression)


def stored_dtype(name: str) -> type[np.floating]:
    """The type in which ``write_shard`` stores a dataset."""
    return np.float32 if name == PARAM_ARRAY else np.float16


def row_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The shape of one row of every dataset of a shard of W = ``width`` columns."""
    return {name: tuple(size or width for size in shape) for name, shape in ROW_SHAPES.items()}


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        0 < size <= MAX_WIDTH if want is None else size == want for size, want in zip(shape, expected, strict=True)
    )


def _is_readable(dtype: np.dtype) -> bool:
    """Whether numbers on disk are of two, four or eight bytes, in any byte order. JAX takes no longer ones."""
    return dtype.kind == "f" and dtype.itemsize in (2, 4, 8)


def _read_dtype(segment: Segment) -> np.dtype:
    """The type of rows when read, in this machine's byte order: JAX takes no other, and computes in float32."""
    return np.dtype(np.float16 if segment.dtype.itemsize == 2 else np.float32)


def _most_open_files() -> int:
    """Half of the process's limit of open files: the other half is for all else, and for another reader."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft // 2) if soft != resource.RLIM_INFINITY else sys.maxsize


def _block_rows(segment: Segment) -> int:
    row_bytes = int(np.prod(segment.row_shape)) * segment.dtype.itemsize
    rows = max(1, BLOCK_BYTES // row_bytes)
    whole_chunks = -(-rows // segment.chunk_rows) * segment.chunk_rows
    return whole_chunks if whole_chunks * row_bytes <= MAX_BLOCK_BYTES else rows


def read_attributes(path: Path, dataset: str | None = None) -> dict[str, Any]:
    """The attributes of a file's root, or of a dataset in it, as Python values. Raises UserError."""
    with open_hdf5(path) as file:
        try:
            found = (local_dataset(file, dataset) if dataset else file).attrs.items()
            return {name: value.item() if isinstance(value, np.generic) else value for name, value in found}
        except HDF5_ERRORS as error:
            raise UserError(f"{path}: its attributes {reason(error, 'cannot be read')}") from error
