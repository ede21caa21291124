"""Converts older shards to the format in which a random row costs one small decompression.

    python -m data_pipeline.rechunk SOURCE TARGET [--spec=NAME]

SOURCE is a shard or a folder of them (shard-N.h5) and is never changed; TARGET is the same for the new ones, and may
not be SOURCE. Audio and parameters stay bit for bit, spectrograms are rounded to float16. Every shard is read back and
compared with its source before it gets its name. After Ctrl-C, a crash or a full disk the same command goes on where
it stopped; shards that are there are not made again. Attributes tell what the source tells of itself, and the spec:
--spec, else the one that the source names, else the only bundled one of its width; nothing is made up for the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_pipeline import cli
from data_pipeline.atomic import make_folder
from data_pipeline.cli import UserError
from data_pipeline.hdf5_files import HDF5_ERRORS, local_dataset, open_hdf5
from data_pipeline.param_spec import ParamSpec, bundled_spec_of_width, load_spec
from data_pipeline.partial_shard import PartialShard, check_finished, remove_log, shard_identity
from data_pipeline.progress import progress_bar
from data_pipeline.row_codec import RowEncoder
from data_pipeline.row_renderer import RenderedBatch
from data_pipeline.shards import AUDIO, MEL_SPEC, PARAM_ARRAY, ROW_SHAPES, ShardAttributes, ShardReader, stored_dtype
from data_pipeline.splits import find_shards

# Rows committed at once: what a crash costs.
BATCH_ROWS = 32
# What older shards say about themselves, in attributes of ``audio``, and our names for it.
OLD_ATTRIBUTES = {
    "sample_rate": "sample_rate",
    "channels": "channels",
    "signal_duration_seconds": "duration_seconds",
    "velocity": "velocity",
    "min_loudness": "min_loudness",
}
UNKNOWN = "unknown"


def rechunk(source: Path, target: Path, spec_name: str | None = None) -> int:
    """Converts a shard, or every shard of a folder, and verifies it. Returns the number of rows.

    Raises UserError for a source that cannot be read, a spec that does not fit, a target that is the source or holds
    something else, and where the disk takes no more; finished shards and committed rows stay.
    """
    spec = load_spec(spec_name) if spec_name else None
    pairs = _pairs(source, target)
    readers = [_open_source(path, new) for path, new in pairs]
    make_folder(pairs[0][1].parent)
    for number, (reader, (_, new)) in enumerate(zip(readers, pairs, strict=True), start=1):
        _rechunk_shard(reader, new, spec, f"{new.name} ({number} of {len(pairs)})")
    return sum(map(len, readers))


def _pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each source shard and the path of what it becomes."""
    if source.is_dir():
        return [(path, target / path.name) for path in find_shards(source).values()]
    return [(source, target / source.name if target.is_dir() else target)]


def _open_source(path: Path, target: Path) -> ShardReader:
    reader = ShardReader(path)
    if reader.source_files() != [reader.path]:
        raise UserError(f"{path}: is a split: name the shards that it maps")
    if target.exists() and target.samefile(path):
        raise UserError(f"{target} is the source itself: choose another TARGET")
    return reader


def _rechunk_shard(reader: ShardReader, target: Path, spec: ParamSpec | None, title: str) -> None:
    attributes = _attributes(reader, spec)
    identity = shard_identity(attributes, len(reader), reader.width)
    if target.exists():
        # It was verified before it got its name; parameters tell whose rows it holds.
        check_finished(target, identity)
        if difference := _first_difference(reader, ShardReader(target), (PARAM_ARRAY,), lambda rows: None):
            raise UserError(f"{target} is there already, and {difference}: choose another TARGET, or remove it")
        return
    unverified = target.with_name(f"{target.name}.unverified")
    if not unverified.exists():
        source = reader.path.stat()
        with PartialShard(unverified, {**identity, "source_file": [source.st_size, source.st_mtime_ns]}) as shard:
            _convert(reader, shard, attributes, title)
    check_finished(unverified, identity)
    with progress_bar(f"{title}: rows verified", len(reader), parts=len(ROW_SHAPES)) as advance:
        difference = _first_difference(reader, ShardReader(unverified), tuple(ROW_SHAPES), advance)
    if difference:
        unverified.unlink(missing_ok=True)
        raise UserError(f"{unverified} was written, but {difference}; it is removed: check the disk and start again")
    try:
        os.replace(unverified, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    remove_log(unverified)


def _attributes(reader: ShardReader, spec: ParamSpec | None) -> ShardAttributes:
    """What is known of a source's rows: its root attributes, else what an older shard says of its ``audio``."""
    known: dict[str, Any] = {"synth_name": UNKNOWN, "synth_version": UNKNOWN}
    with open_hdf5(reader.path) as file:
        try:
            old = dict(local_dataset(file, AUDIO).attrs)
        except HDF5_ERRORS as error:
            raise UserError(f"{reader.path}: its attributes cannot be read: {error}") from error
    known |= {ours: old[theirs] for theirs, ours in OLD_ATTRIBUTES.items() if theirs in old}
    known |= reader.attrs
    if spec is None and "spec_hash" not in known:
        spec = bundled_spec_of_width(reader.width)
    if spec is not None:
        known |= {"spec_name": spec.name, "spec_hash": spec.content_hash}
        if spec.width != reader.width:
            raise UserError(f"{reader.path}: has {reader.width} columns, spec {spec.name} has {spec.width}")
    return ShardAttributes(**{field.name: _plain(known.get(field.name)) for field in fields(ShardAttributes)})


def _plain(value: Any) -> Any:
    """A number or a text as Python's own; None for anything else."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, str | int | float) else None


def _convert(reader: ShardReader, shard: PartialShard, attributes: ShardAttributes, title: str) -> None:
    """Commits the rows that the shard lacks, in order, and finishes it."""
    missing = shard.missing
    first = len(reader) - len(missing)
    rows = zip(*(_rows(reader, name, first) for name in (AUDIO, MEL_SPEC, PARAM_ARRAY)), strict=True)
    encoder = RowEncoder()
    with progress_bar(f"{title}: rows converted", len(reader)) as advance:
        advance(first)
        for start in range(0, len(missing), BATCH_ROWS):
            batch = missing[start : start + BATCH_ROWS]
            encoded = tuple(encoder.encode(index, 0, *next(rows)) for index in batch)
            shard.commit(RenderedBatch(encoded), attributes.synth_name, attributes.synth_version)
            advance(len(batch))
        shard.finish()


def _rows(reader: ShardReader, name: str, first: int) -> Iterator[NDArray[Any]]:
    """Rows of a dataset from ``first`` on, in the type of our shards; one block of them is in memory at a time."""
    for start, block in reader.blocks(name, first):
        for row in range(max(first - start, 0), len(block)):
            # A copy, because a view of the row would keep the block alive while the next one is read.
            yield block[row].astype(stored_dtype(name))
        del block


def _first_difference(
    reader: ShardReader, written: ShardReader, names: tuple[str, ...], advance: Callable[[int], None]
) -> str | None:
    """Compares datasets of a new shard with its source's, bit for bit; says where they differ first."""
    for name in names:
        for start, block in reader.blocks(name):
            expected = block.astype(stored_dtype(name))
            found = written.read_rows(name, range(start, start + len(block)))
            differs = (_bits(found) != _bits(expected)).reshape(len(block), -1).any(axis=1)
            if differs.any():
                return f"its row {start + int(np.argmax(differs))} of {name} is not that of {reader.path}"
            advance(len(block))
    return None


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory as unsigned integers: NaN equals itself there, and -0 is not 0."""
    return array.view(f"u{array.itemsize}")


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) != 3:
        raise UserError("usage: python -m data_pipeline.rechunk SOURCE TARGET [--spec=NAME]")
    try:
        rows = rechunk(Path(argv[1]), Path(argv[2]), flags.FLAGS.spec)
    except KeyboardInterrupt:
        cli.fail("interrupted: what is converted is safe, the same command goes on", cli.INTERRUPTED)
    print(f"{argv[2]}: {rows} rows, equal to those of {argv[1]}")


if __name__ == "__main__":
    flags.DEFINE_string("spec", None, "Name or .json path of the parameter spec.")
    cli.run(main)
