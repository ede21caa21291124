"""Finds the files that hold the rows of a dataset.

A split holds virtual datasets, whose rows lie in shards. If HDF5 does not find a shard, it returns fill values (zeros)
without an error. So this project does not read through virtual datasets: their mappings are followed, by HDF5's own
rules, to plain datasets, and everything that prevents this is reported as a fault.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
    reason,
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
    path: Path, names: Sequence[str], *, optional: Collection[str] = (), allow_external: bool = False
) -> tuple[dict[str, list[Segment]], list[str]]:
    """Follows datasets to the plain datasets that hold their rows.

    Returns the segments of each dataset, in row order, and a line for each fault. Without faults the segments cover all
    rows. Of ``optional`` names, those that the file lacks are left out. Raises UserError if the file itself cannot be
    opened.
    """
    with open_hdf5(path) as file:
        tracer = _Tracer(path, file, allow_external)
        for name in names:
            if name not in optional or tracer.has(name):
                tracer.add(name)
        tracer.visit_sources()
        return tracer.segments, list(tracer.faults)


class _Tracer:
    """Follows datasets of one file to their sources.

    ``add`` notes what is wanted of which source. ``visit_sources`` then opens each source once, and closes it before
    the next one: a data set may have more shards than a process may have open files.
    """

    def __init__(self, path: Path, file: h5py.File, allow_external: bool) -> None:
        self._path = path
        self._file = file
        self._allow_external = allow_external
        self._wanted: dict[tuple[str, str], list[tuple[str, Callable[[h5py.File], Segment]]]] = {}
        # The segments of each dataset that could be traced. For others a fault is noted.
        self.segments: dict[str, list[Segment]] = {}
        # A dict: all mappings of a missing file cause the same line.
        self.faults: dict[str, None] = {}
        self._check_complete(file)

    def has(self, name: str) -> bool:
        """Whether the file has this name, be it a link whose target is missing."""
        with reporting_damage(self._path):
            return self._file.id.links.exists(name.encode())

    def add(self, name: str) -> None:
        """Traces a dataset up to its sources, which are not opened."""
        self.segments[name] = []
        with self._noting_faults(), reporting_damage(self._path):
            link = self._file.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                whole = partial(self._whole, name=os.fsdecode(link.path))
                self._want(link.filename, EXTERNAL_LINK_PREFIX, name, whole)
                return
            dataset = local_dataset(self._file, name)
            if dataset.is_virtual:
                self._add_mapped(name, dataset)
            else:
                self.segments[name].append(self._whole(self._file, name))

    def visit_sources(self) -> None:
        """Traces all datasets in their sources."""
        for (stored, prefix_variable), wanted in self._wanted.items():
            with self._noting_faults():
                path = resolve(stored, self._path, prefix_variable, allow_external=self._allow_external)
                with open_hdf5(path) as file:
                    self._check_complete(file)
                    for name, segment_in in wanted:
                        with self._noting_faults():
                            self.segments[name].append(segment_in(file))
        for segments in self.segments.values():
            segments.sort(key=lambda segment: segment.first_row)

    @contextmanager
    def _noting_faults(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.faults[str(error)] = None

    def _want(self, stored: str, prefix_variable: str, name: str, segment_in: Callable[[h5py.File], Segment]) -> None:
        self._wanted.setdefault((stored, prefix_variable), []).append((name, segment_in))

    def _add_mapped(self, name: str, dataset: h5py.Dataset) -> None:
        sources = _mappings(dataset, name)
        next_row = 0
        for source in sources:
            if source.first_row != next_row:
                raise UserError(f"{self._path}: {name} maps row {min(next_row, source.first_row)} to no or two sources")
            next_row += source.rows
        if next_row != dataset.shape[0]:
            raise UserError(f"{self._path}: {name} has {dataset.shape[0]} rows and maps {next_row}")
        for source in sources:
            in_source = partial(self._source, source=source, row_shape=dataset.shape[1:])
            self._want(source.file, VDS_PREFIX, name, in_source)

    def _source(self, file: h5py.File, source: VirtualSource, row_shape: tuple[int, ...]) -> Segment:
        dataset = self._plain(file, source.source_dataset)
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
        stored = dataset.id.get_create_plist()
        mappings = [
            VirtualSource(
                name,
                *_row_range(stored.get_virtual_vspace(index), dataset.shape),
                # HDF5 takes names for printf formats: a percent sign is stored doubled.
                file=_file_name(stored, index).replace("%%", "%"),
                source_dataset=stored.get_virtual_dsetname(index).replace("%%", "%"),
                source_first_row=_first_row(stored.get_virtual_srcspace(index)),
            )
            for index in range(stored.get_virtual_count())
        ]
    except HDF5_ERRORS as error:
        damage = f"{name} does not map whole rows to whole rows"
        raise UserError(f"{dataset.file.filename}: {reason(error, damage)}") from error
    return sorted(mappings, key=lambda source: source.first_row)


def _file_name(stored: h5py.h5p.PropDCID, index: int) -> str:
    """The name of a mapping's file, as this system's functions take it. h5py always decodes it as UTF-8."""
    try:
        return os.fsdecode(stored.get_virtual_filename(index).encode())
    except UnicodeDecodeError as error:  # The error holds HDF5's bytes.
        return os.fsdecode(error.object)


def _first_row(space: h5py.h5s.SpaceID) -> int:
    return 0 if _selects_all(space) else _row_range(space, None)[0]


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
