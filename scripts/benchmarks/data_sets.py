"""Data sets to measure the training input with, made in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from data_pipeline.audio.contract import MIN_LOUDNESS
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import load_spec
from data_pipeline.render.row_renderer import RenderSettings
from data_pipeline.render.worker_messages import Batch
from data_pipeline.shards.hdf5_files import new_hdf5
from data_pipeline.shards.mel_stats import STATS_FILE, compute_stats, save_stats
from data_pipeline.shards.reader import (
    AUDIO,
    MEL_SPEC,
    PARAM_ARRAY,
    ShardAttributes,
    ShardReader,
    create_dataset,
    row_shapes,
    seal,
)
from data_pipeline.shards.splits import write_splits
from data_pipeline.synths.choice import open_synth, synth_for

FIRST_SHARD = Path("shards", "shard-0.h5")
# Different sounds of a data set, the rows of its one shard.
SOUNDS = 320
# Rows of the shard for which h5py guesses chunks, as it did for the PyTorch code.
OLD_SHARD_ROWS = 10_000
# Rows rendered at once, and renders between checks of the synthesizer.
BATCH, VERIFY_EVERY = 16, 200


def given_or_made(flag: Any, rows: int, folder: str | Path) -> str:
    """Returns data.root if the command line sets it; else makes a data set of ``rows`` or more rows in ``folder``."""
    if "data.root" in flag.override_values:
        return str(flag.value.data.root)
    root, data = Path(folder, "data"), flag.value.data
    rows = max(rows, data.batch_size)
    (root / FIRST_SHARD).parent.mkdir(parents=True)
    _make_shard(root / FIRST_SHARD, data.spec, min(rows, SOUNDS))
    repeat_shard(root, rows)
    save_stats(root / STATS_FILE, compute_stats(ShardReader(root / FIRST_SHARD)))
    return str(root)


def repeat_shard(root: Path, rows: int) -> None:
    """Links the first shard under more names, until train.h5 has ``rows`` rows.

    Shuffling a few hundred rows would take as long for each of them as reading it; shuffling many does not.
    """
    first = root / FIRST_SHARD
    count = -(-rows // len(ShardReader(first)))
    for number in range(1, count):
        first.with_name(f"shard-{number}.h5").symlink_to(first.name)
    write_splits(first.parent, root, {"train": list(range(count))})


def _make_shard(path: Path, spec_name: str, rows: int) -> None:
    """Writes parameters of the spec and spectrograms of the built-in synthesizer.

    They do not belong together, and there is no audio, which training does not read: reading takes the same time.
    """
    spec = load_spec(spec_name)
    with new_hdf5(path) as file:
        for name, shape in row_shapes(spec.width).items():
            create_dataset(file, name, rows, shape)
        file[PARAM_ARRAY][:] = spec.sample(0, range(rows), [0] * rows)
        for row, chunk in enumerate(_rendered_chunks(rows)):
            file[MEL_SPEC].id.write_direct_chunk((row, 0, 0, 0), chunk)
        seal(file, ShardAttributes(spec.name, spec.content_hash, 0, 0, "none", "none"))


def _rendered_chunks(count: int) -> Iterator[bytes]:
    """Yields the spectrograms of ``count`` sounds, compressed as a shard holds them."""
    synth = synth_for(load_spec("subtractive"))  # It needs no package and no plugin.
    renderer = RenderSettings(synth, 0, MIN_LOUDNESS, math.inf, VERIFY_EVERY).renderer(open_synth(synth))
    with progress_bar("sounds rendered", count) as advance:
        for first in range(0, count, BATCH):
            batch = Batch(tuple(range(first, min(first + BATCH, count))))
            yield from (row.mel_spec for row in renderer.render(batch, lambda attempt: None).rows)
            advance(len(batch.indices))


def write_old_shard(path: Path, reader: ShardReader, rows: int) -> None:
    """Writes the first rows of a split as the PyTorch code stores them: float32, in guessed chunks. No audio."""
    shapes = row_shapes(reader.width)
    with new_hdf5(path) as file, h5py.File("guess", "w", driver="core", backing_store=False) as whole:
        for name, dtype in ((AUDIO, np.float16), (MEL_SPEC, np.float32), (PARAM_ARRAY, np.float32)):
            guess = whole.create_dataset(name, (OLD_SHARD_ROWS, *shapes[name]), dtype, chunks=True).chunks
            chunks = (min(guess[0], rows), *guess[1:])
            options = {"chunks": chunks, "compression": hdf5plugin.Blosc2()}
            file.create_dataset(name, (rows, *shapes[name]), dtype, **options)
        for name in (MEL_SPEC, PARAM_ARRAY):
            file[name][:] = reader.read_rows(name, range(rows))


def stored_bytes_a_row(reader: ShardReader) -> float:
    """Returns the mean bytes of a stored spectrogram, in the shards that a split maps."""
    stored = rows = 0
    for path in reader.source_files():
        with h5py.File(path) as file:
            stored += file[MEL_SPEC].id.get_storage_size()
            rows += len(file[MEL_SPEC])
    return stored / rows
