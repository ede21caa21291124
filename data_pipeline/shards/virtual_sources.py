"""Finds the files that hold the rows of a dataset.

A split holds virtual datasets, whose rows lie in shards. If HDF5 does not find a shard, it returns fill values (zeros)
without an error. So this project does not read through virtual datasets: their mappings are followed, by HDF5's own
rules, to plain datasets, and everything that prevents this is reported as a fault.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from data_pipeline.console.cli import UserError
from data_pipeline.shards.hdf5_files import (
    EXTERNAL_LINK_PREFIX,
    HDF5_ERRORS,
    VDS_PREFIX,
    local_dataset,
    open_hdf5,
    reporting_damage,
    resolve,
)


@dataclass(frozen=True)
class VirtualSource:
    """A mapping of a virtual dataset: ``rows`` rows from ``first_row`` on lie in another file."""

    dataset: str
    first_row: int
    rows: int
    file: str
    source_dataset: str
    source_first_row: int


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a dataset and the plain dataset that holds them."""

    first_row: int
    rows: int
    path: Path
    dataset: str
    source_first_row: int
    row_shape: tuple[int, ...]
    dtype: np.dtype
    chunk_rows: int


def virtual_sources(path: Path) -> list[VirtualSource]:
    """The mappings of all virtual datasets at the root of a file, in row order, as stored.

    Raises UserError for a file that cannot be opened, and for mappings of other than whole, consecutive rows.
    """
    with open_hdf5(path) as file, reporting_damage(path):
        sources = []
        for name in map(str, file):
            if isinstance(file.get(name, getlink=True), h5py.HardLink):
                node = file[name]
                if isinstance(node, h5py.Dataset) and node.is_virtual:
                    sources += _mappings(node, name)
        return sources


def missing_sources(path: Path, *, allow_external: bool = False) -> list[str]:
    """A line for every source of a file that is missing, unreadable, too short, or outside the permitted folders."""
    names = dict.fromkeys(source.dataset for source in virtual_sources(path))
    return trace(path, tuple(names), allow_external=allow_external)[1]


def trace(
    path: Path, names: Sequence[str], *, allow_external: bool = False
) -> tuple[dict[str, list[Segment]], list[str]]:
    """Follows datasets to the plain datasets that hold their rows.

    Returns the segments of each dataset, in row order, and a line for each fault. Without faults the segments cover all
    rows. Raises UserError if the file itself cannot be opened.
    """
    with ExitStack() as stack:
        tracer = _Tracer(path, stack.enter_context(open_hdf5(path)), allow_external, stack)
        return {name: tracer.segments(name) for name in names}, list(tracer.faults)


class _Tracer:
    """Follows the datasets of one file. Opens each source once."""

    def __init__(self, path: Path, file: h5py.File, allow_external: bool, stack: ExitStack) -> None:
        self._path = path
        self._file = file
        self._allow_external = allow_external
        self._stack = stack
        self._sources: dict[tuple[str, str], h5py.File | UserError] = {}
        # A dict: all mappings of a missing file cause the same line.
        self.faults: dict[str, None] = {}
        self._check_complete(file)

    def segments(self, name: str) -> list[Segment]:
        """The segments of one dataset that could be traced. For others a fault is noted."""
        try:
            with reporting_damage(self._path):
                link = self._file.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    return [self._whole(self._open(link.filename, EXTERNAL_LINK_PREFIX), os.fsdecode(link.path))]
                dataset = local_dataset(self._file, name)
                if not dataset.is_virtual:
                    return [self._whole(self._file, name)]
                return self._mapped(name, dataset)
        except UserError as error:
            self.faults[str(error)] = None
            return []

    def _mapped(self, name: str, dataset: h5py.Dataset) -> list[Segment]:
        segments = []
        next_row = 0
        for source in _mappings(dataset, name):
            if source.first_row != next_row:
                raise UserError(f"{self._path}: {name} maps row {min(next_row, source.first_row)} to no or two sources")
            next_row += source.rows
            try:
                segments.append(self._source(source, dataset.shape[1:]))
            except UserError as error:
                self.faults[str(error)] = None
        if next_row != dataset.shape[0]:
            raise UserError(f"{self._path}: {name} has {dataset.shape[0]} rows and maps {next_row}")
        return segments

    def _source(self, source: VirtualSource, row_shape: tuple[int, ...]) -> Segment:
        dataset = self._plain(self._open(source.file, VDS_PREFIX), source.source_dataset)
        rows = source.source_first_row + source.rows
        if dataset.shape[:1] < (rows,) or dataset.shape[1:] != row_shape:
            raise UserError(
                f"{dataset.file.filename}: {source.source_dataset} has shape {dataset.shape}, but {self._path.name} "
                f"maps {rows} rows of shape {row_shape}: run splits again"
            )
        return _segment(dataset, source.first_row, source.rows, source.source_first_row)

    def _whole(self, file: h5py.File, name: str) -> Segment:
        dataset = self._plain(file, name)
        if dataset.ndim == 0:
            raise UserError(f"{file.filename}: {name} has no rows")
        return _segment(dataset, 0, dataset.shape[0], 0)

    def _plain(self, file: h5py.File, name: str) -> h5py.Dataset:
        dataset = local_dataset(file, name)
        with reporting_damage(Path(file.filename)):
            is_virtual, is_external = dataset.is_virtual, bool(dataset.external)
        if is_virtual:
            raise UserError(f"{file.filename}: {name} is itself virtual: run splits on the shards that it maps")
        if is_external and not self._allow_external:
            raise UserError(
                f"{file.filename}: {name} keeps its data in another file: refused without --allow_external "
                "(in training: --config.data.allow_external=True)"
            )
        return dataset

    def _open(self, stored: str, prefix_variable: str) -> h5py.File:
        key = (stored, prefix_variable)
        if key not in self._sources:
            try:
                path = resolve(stored, self._path, prefix_variable, allow_external=self._allow_external)
                file = self._stack.enter_context(open_hdf5(path))
                self._check_complete(file)
                self._sources[key] = file
            except UserError as error:
                self._sources[key] = error
        source = self._sources[key]
        if isinstance(source, UserError):
            raise source
        return source

    def _check_complete(self, file: h5py.File) -> None:
        """Notes a fault for an incomplete shard: its missing rows would be read as zeros."""
        with reporting_damage(Path(file.filename)):
            complete = bool(file.attrs.get("complete", True))
        if not complete:
            self.faults[f"{file.filename}: is incomplete: its rendering has not finished"] = None


def _segment(dataset: h5py.Dataset, first_row: int, rows: int, source_first_row: int) -> Segment:
    path = Path(dataset.file.filename)
    with reporting_damage(path):
        return Segment(
            first_row=first_row,
            rows=rows,
            path=path.absolute(),
            dataset=str(dataset.name),
            source_first_row=source_first_row,
            row_shape=dataset.shape[1:],
            dtype=dataset.dtype,
            chunk_rows=dataset.chunks[0] if dataset.chunks else 1,
        )


def _mappings(dataset: h5py.Dataset, name: str) -> list[VirtualSource]:
    try:
        mappings = [
            VirtualSource(
                name,
                *_row_range(mapping.vspace, dataset.shape),
                # HDF5 takes names for printf formats: a percent sign is stored doubled.
                file=mapping.file_name.replace("%%", "%"),
                source_dataset=mapping.dset_name.replace("%%", "%"),
                # A selection of all rows starts at row 0.
                source_first_row=0 if _selects_all(mapping.src_space) else _row_range(mapping.src_space, None)[0],
            )
            for mapping in dataset.virtual_sources()
        ]
    except HDF5_ERRORS as error:
        raise UserError(f"{dataset.file.filename}: {name} does not map whole rows to whole rows: {error}") from error
    return sorted(mappings, key=lambda source: source.first_row)


def _selects_all(space: h5py.h5s.SpaceID) -> bool:
    return space.get_select_type() == h5py.h5s.SEL_ALL


def _row_range(space: h5py.h5s.SpaceID, shape: tuple[int, ...] | None) -> tuple[int, int]:
    """First row and number of rows of a selection. Raises ValueError unless it holds whole, consecutive rows."""
    extent = shape if shape is not None else space.shape
    if _selects_all(space):
        return 0, extent[0]
    first, last = space.get_select_bounds()
    rows = last[0] - first[0] + 1
    if space.get_select_npoints() != rows * math.prod(extent[1:]):
        raise ValueError("the selection is not of whole rows")
    return first[0], rows
