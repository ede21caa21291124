"""Divides shards into training, validation and test splits.

    python -m data_pipeline.splits SOURCE TARGET --train_shards=0-9 --val_shards=10 --test_shards=11,12

writes TARGET/train.h5, val.h5 and test.h5: virtual datasets that map to SOURCE/shard-N.h5 by relative POSIX paths, so
that SOURCE and TARGET can move together. No row is copied. All named splits are written or none; TARGET may be SOURCE.
Validation and test shards may be left out: those splits are then not written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
from absl import flags

from data_pipeline import cli
from data_pipeline.atomic import atomic_path
from data_pipeline.cli import UserError
from data_pipeline.counted import counted
from data_pipeline.shards import ROW_SHAPES, ShardReader
from data_pipeline.stats import STATS_FILE
from data_pipeline.virtual_sources import missing_sources

SPLITS = ("train", "val", "test")
SHARD_NAME = re.compile(r"shard-([0-9]{1,9})\.h5")
SHARED_ATTRIBUTES = ("spec_name", "spec_hash")
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

    Raises UserError, with nothing written, for shards that are missing, incomplete, in two splits or of different
    specs, widths or types.
    """
    _check_disjoint(splits)
    available = find_shards(source)
    readers = {number: _open_shard(available, number, source) for numbers in splits.values() for number in numbers}
    _check_alike(list(readers.values()))
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {target}: {error.strerror}") from error
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
    """The shards of a folder by number. Raises UserError where there are none or two have one number."""
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


def _check_disjoint(splits: Mapping[str, list[int]]) -> None:
    owners: dict[int, str] = {}
    for name, numbers in splits.items():
        for number in numbers:
            if owners.setdefault(number, name) != name:
                raise UserError(f"shard {number} is in {owners[number]} and in {name}: each shard serves one split")


def _open_shard(available: Mapping[int, Path], number: int, source: Path) -> ShardReader:
    if number not in available:
        raise UserError(f"{source}: holds no shard-{number}.h5; it has shards {_ranges(list(available))}")
    reader = ShardReader(available[number])
    if reader.source_files() != [reader.path]:
        raise UserError(f"{reader.path}: is itself a split: name the shards that it maps")
    return reader


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as parse_shards reads them: [0, 1, 2, 7] as 0-2,7."""
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
            *((f"type of {name}", reader.dtype(name), first.dtype(name)) for name in ROW_SHAPES),
        ):
            if mine != others:
                raise UserError(f"{reader.path}: {what} {mine}, but {first.path.name} has {others}")


def _write_split(path: Path, readers: list[ShardReader]) -> None:
    rows = sum(len(reader) for reader in readers)
    # Resolved, because HDF5 takes ".." from the folder the file really lies in.
    folder = path.parent.resolve()
    with h5py.File(path, "w") as file:
        for name in ROW_SHAPES:
            shape = readers[0].row_shape(name)
            layout = h5py.VirtualLayout((rows, *shape), readers[0].dtype(name))
            start = 0
            for reader in readers:
                real = reader.path.parent.resolve() / reader.path.name
                relative = Path(os.path.relpath(real, folder)).as_posix()
                # HDF5 reads source names as printf formats.
                source = h5py.VirtualSource(relative.replace("%", "%%"), name, (len(reader), *shape))
                layout[start : start + len(reader)] = source
                start += len(reader)
            # Other readers of the file get NaN, not zeros, where HDF5 finds no shard.
            file.create_virtual_dataset(name, layout, fillvalue=np.nan)
        for attribute in SHARED_ATTRIBUTES:
            if attribute in readers[0].attrs:
                file.attrs[attribute] = readers[0].attrs[attribute]


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) != 3 or flags.FLAGS.train_shards is None:
        raise UserError(
            "usage: python -m data_pipeline.splits SOURCE TARGET --train_shards=0-9 "
            "[--val_shards=10] [--test_shards=11]"
        )
    chosen = {name: flags.FLAGS[f"{name}_shards"].value for name in SPLITS}
    splits = {name: parse_shards(text) for name, text in chosen.items() if text is not None}
    source, target = Path(argv[1]), Path(argv[2])
    rows = write_splits(source, target, splits)
    for name, numbers in splits.items():
        print(f"{target / name}.h5: {rows[name]} rows from {counted(len(numbers), 'shard')} ({_ranges(numbers)})")
    if missing_sources(target / "train.h5"):
        print(f"note: {source} lies outside the parent of {target}: whatever reads the splits needs --allow_external")
    if (target / STATS_FILE).exists():
        (target / STATS_FILE).unlink()
        print(f"removed {target / STATS_FILE}: it belonged to the splits that were there before")
    print(f"next: python -m data_pipeline.stats {target}")


if __name__ == "__main__":
    for split in SPLITS:
        flags.DEFINE_string(f"{split}_shards", None, f"Shards of the {split} split, such as 0-3,7.")
        flags.DEFINE_alias(f"{split}-shards", f"{split}_shards")  # The flags' historic spelling.
    cli.run(main)
