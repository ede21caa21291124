"""Conversion of older shards to the format of ``write_shard``: commits rows, verifies the shard, then names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.console.atomic import make_folder, remove_leftover
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import ParamSpec, bundled_spec_of_width, load_spec
from data_pipeline.shards.partial_shard import PartialShard, check_finished, remove_log, shard_identity
from data_pipeline.shards.reader import (
    AUDIO,
    MEL_SPEC,
    PARAM_ARRAY,
    ShardAttributes,
    ShardReader,
    read_attributes,
    stored_dtype,
)
from data_pipeline.shards.row_compression import RenderedBatch, RowEncoder
from data_pipeline.shards.splits import find_shards, open_shard

# Rows committed together. A crash loses at most so many.
BATCH_ROWS = 32
# Attributes of ``audio`` in older shards, and the fields of ShardAttributes that hold them now.
OLD_ATTRIBUTES = {
    "sample_rate": "sample_rate",
    "channels": "channels",
    "signal_duration_seconds": "duration_seconds",
    "velocity": "velocity",
    "min_loudness": "min_loudness",
}
UNKNOWN = "unknown"


def rechunk(source: Path, target: Path, spec_name: str | None = None) -> int:
    """Converts a shard, or every shard of a folder, and verifies the new ones. Returns the number of rows.

    Raises UserError for a source that cannot be read, a spec that does not fit, a target that is the source or holds
    other rows, and for a full disk. Finished shards and committed rows stay.
    """
    spec = load_spec(spec_name) if spec_name else None
    pairs = _pairs(source, target)
    readers = [_open_source(path, new) for path, new in pairs]
    make_folder(pairs[0][1].parent)
    for number, (reader, (_, new)) in enumerate(zip(readers, pairs, strict=True), start=1):
        _rechunk_shard(reader, new, spec, f"{new.name} ({number} of {len(pairs)})")
    return sum(map(len, readers))


def _pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each source shard with the path of its new shard."""
    if source.is_dir():
        return [(path, target / path.name) for path in find_shards(source).values()]
    return [(source, target / source.name if target.is_dir() else target)]


def _open_source(path: Path, target: Path) -> ShardReader:
    reader = open_shard(path)
    if target.exists() and target.samefile(path):
        raise UserError(f"{target} is the source itself: choose another TARGET")
    return reader


def _rechunk_shard(reader: ShardReader, target: Path, spec: ParamSpec | None, title: str) -> None:
    attributes = _attributes(reader, spec)
    identity = shard_identity(attributes, len(reader), reader.width, store_audio=AUDIO in reader.names)
    if target.exists():
        # A shard is verified before it gets its name. Its parameters identify its rows.
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
    with progress_bar(f"{title}: rows verified", len(reader), parts=len(reader.names)) as advance:
        difference = _first_difference(reader, ShardReader(unverified), reader.names, advance)
    if difference:
        remove_leftover(unverified)
        raise UserError(f"{unverified} was written, but {difference}; it is removed: check the disk and start again")
    try:
        os.replace(unverified, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {why(error)}") from error
    remove_log(unverified)


def _attributes(reader: ShardReader, spec: ParamSpec | None) -> ShardAttributes:
    """The attributes of a source: those of its root, else those of ``audio``, where older shards have them."""
    known: dict[str, Any] = {"synth_name": UNKNOWN, "synth_version": UNKNOWN}
    old = read_attributes(reader.path, AUDIO) if AUDIO in reader.names else {}
    known |= {ours: old[theirs] for theirs, ours in OLD_ATTRIBUTES.items() if theirs in old}
    known |= reader.attrs
    if spec is None and "spec_hash" not in known:
        spec = bundled_spec_of_width(reader.width)
    if spec is not None:
        known |= {"spec_name": spec.name, "spec_hash": spec.content_hash}
        if spec.width != reader.width:
            raise UserError(f"{reader.path}: has {reader.width} columns, spec {spec.name} has {spec.width}")
    plain = {name: value for name, value in known.items() if isinstance(value, str | int | float)}
    values: dict[str, Any] = {field.name: plain.get(field.name) for field in fields(ShardAttributes)}
    return ShardAttributes(**values)


def _convert(reader: ShardReader, shard: PartialShard, attributes: ShardAttributes, title: str) -> None:
    """Commits the missing rows in order and finishes the shard."""
    missing = shard.missing
    first = len(reader) - len(missing)
    audio = _rows(reader, AUDIO, first) if AUDIO in reader.names else repeat(None, len(missing))
    rows = zip(audio, *(_rows(reader, name, first) for name in (MEL_SPEC, PARAM_ARRAY)), strict=True)
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
    """Rows of a dataset from ``first`` on, in the type of new shards. One block is in memory at a time."""
    for _, block in reader.blocks(name, range(first, len(reader))):
        for row in block:
            # A copy: a view would keep the block in memory while the next one is read.
            yield row.astype(stored_dtype(name))
        del row, block


def _first_difference(
    reader: ShardReader, written: ShardReader, names: tuple[str, ...], advance: Callable[[int], None]
) -> str | None:
    """Compares datasets of a new shard with its source, bit for bit. Returns where they differ first, or None."""
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
    """The array's memory as unsigned integers, so that NaN equals NaN and -0 differs from 0."""
    return array.view(f"u{array.itemsize}")
