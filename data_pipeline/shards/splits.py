"""Splits (training, validation, test): virtual datasets that map to the rows of shards. No row is copied."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from data_pipeline.console.atomic import atomic_path, make_folder
from data_pipeline.console.cli import UserError
from data_pipeline.shards.hdf5_files import written_hdf5
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.shards.virtual_sources import missing_sources

SPLITS = ("train", "val", "test")
SHARD_NAME = re.compile(r"shard-([0-9]{1,9})\.h5")
SHARED_ATTRIBUTES = ("spec_name", "spec_hash", "prior_hash")
MAX_SHARDS = 100_000


def parse_shards(text: str) -> list[int]:
    """Shard numbers in numerical order from a list of numbers and ranges, such as ``0-3,7``.

    Raises UserError for anything else, and for a number named twice.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UserError(f"{text!r} is no list of shards: write numbers and ranges, such as 0-3,7")
        if len(numbers) + last - first >= MAX_SHARDS:
            raise UserError(f"{text!r} names more than {MAX_SHARDS} shards")
        numbers += range(first, last + 1)
    if len(set(numbers)) != len(numbers):
        raise UserError(f"{text!r} names a shard twice")
    return sorted(numbers)


def write_splits(source: Path, target: Path, splits: Mapping[str, list[int]]) -> dict[str, int]:
    """Writes a split file for each name in ``splits`` (shard numbers by split) and returns their numbers of rows.

    Raises UserError, and writes nothing, if shards are missing, incomplete, in two splits or of different specs,
    priors, widths or types, and if some shards of a split have audio and others have none.
    """
    _check_disjoint(splits)
    available = find_shards(source)
    readers = {number: _open_numbered(available, number, source) for numbers in splits.values() for number in numbers}
    _check_alike(list(readers.values()))
    for numbers in splits.values():
        _check_audio([readers[number] for number in numbers])
    make_folder(target)
    for name in set(SPLITS) - splits.keys():
        if (target / f"{name}.h5").exists():
            raise UserError(f"{target / name}.h5 exists: name its shards with --{name}_shards, or remove it first")
    with ExitStack() as stack:
        for name, numbers in splits.items():
            temporary = stack.enter_context(atomic_path(target / f"{name}.h5"))
            _write_split(temporary, [readers[number] for number in numbers])
            for fault in missing_sources(temporary, allow_external=True):
                raise UserError(fault.replace(temporary.name, f"{name}.h5"))
    return {name: sum(len(readers[number]) for number in numbers) for name, numbers in splits.items()}


def find_shards(source: Path) -> dict[int, Path]:
    """The shards of a folder by number. Raises UserError if there are none, or two have the same number."""
    if not source.is_dir():
        raise UserError(f"{source}: is not a folder of shards")
    shards: dict[int, Path] = {}
    for path in sorted(source.iterdir()):
        if match := SHARD_NAME.fullmatch(path.name):
            if int(match[1]) in shards:
                raise UserError(f"{path} and {shards[int(match[1])].name} have the same number")
            shards[int(match[1])] = path
    if not shards:
        raise UserError(f"{source}: holds no shard-N.h5")
    return dict(sorted(shards.items()))


def open_shard(path: Path) -> ShardReader:
    """The reader of a shard. Raises UserError as ``ShardReader`` does, and for a split."""
    reader = ShardReader(path)
    if reader.source_files() != [reader.path]:
        raise UserError(f"{path}: is a split: name the shards that it maps")
    return reader


def _check_disjoint(splits: Mapping[str, list[int]]) -> None:
    owners: dict[int, str] = {}
    for name, numbers in splits.items():
        for number in numbers:
            if owners.setdefault(number, name) != name:
                raise UserError(f"shard {number} is in {owners[number]} and in {name}: each shard serves one split")


def _open_numbered(available: Mapping[int, Path], number: int, source: Path) -> ShardReader:
    if number not in available:
        raise UserError(f"{source}: holds no shard-{number}.h5; it has shards {shard_ranges(list(available))}")
    return open_shard(available[number])


def shard_ranges(numbers: list[int]) -> str:
    """Sorted numbers in the form that ``parse_shards`` reads: [0, 1, 2, 7] as 0-2,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _check_alike(readers: list[ShardReader]) -> None:
    first = readers[0]
    for reader in readers[1:]:
        for what, mine, others in (
            ("columns", reader.width, first.width),
            ("spec hash", reader.attrs.get("spec_hash"), first.attrs.get("spec_hash")),
            ("prior hash", reader.attrs.get("prior_hash"), first.attrs.get("prior_hash")),
            *((f"type of {name}", reader.dtype(name), first.dtype(name)) for name in (MEL_SPEC, PARAM_ARRAY)),
        ):
            if mine != others:
                raise UserError(f"{reader.path}: {what} {mine}, but {first.path.name} has {others}")


def _check_audio(readers: list[ShardReader]) -> None:
    """Raises UserError unless all shards of a split have audio of one type, or none has any."""
    first, kinds = readers[0], [str(reader.dtype(AUDIO)) if AUDIO in reader.names else "none" for reader in readers]
    for reader, kind in zip(readers, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"{reader.path}: audio {kind}, but {first.path.name} has {kinds[0]}: a split is of shards with audio "
                "of one type, or of shards without (render_shards --store_audio=False)"
            )


def _write_split(path: Path, readers: list[ShardReader]) -> None:
    rows = sum(len(reader) for reader in readers)
    # Resolved: HDF5 applies ".." to the real folder of the file, not to a link to it.
    folder = path.parent.resolve()
    with written_hdf5(path) as file:
        for name in readers[0].names:
            shape = readers[0].row_shape(name)
            layout = h5py.VirtualLayout((rows, *shape), readers[0].dtype(name))
            start = 0
            for reader in readers:
                real = reader.path.parent.resolve() / reader.path.name
                relative = Path(os.path.relpath(real, folder)).as_posix()
                # HDF5 takes source names for printf formats.
                source = h5py.VirtualSource(relative.replace("%", "%%"), name, (len(reader), *shape))
                layout[start : start + len(reader)] = source
                start += len(reader)
            # Where HDF5 finds no shard, other programs read NaN instead of zeros.
            file.create_virtual_dataset(name, layout, fillvalue=np.nan)
        for attribute in SHARED_ATTRIBUTES:
            if attribute in readers[0].attrs:
                file.attrs[attribute] = readers[0].attrs[attribute]
