"""Data sets to measure the training input with, made in seconds, and what a shard stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from configs import render_subtractive
from data_pipeline.batch_renderer import Batch
from data_pipeline.hdf5_files import new_hdf5
from data_pipeline.param_spec import load_spec
from data_pipeline.progress import progress_bar
from data_pipeline.render_config import render_settings
from data_pipeline.shards import (
    AUDIO,
    MEL_SPEC,
    PARAM_ARRAY,
    ShardAttributes,
    ShardReader,
    create_dataset,
    row_shapes,
    seal,
)
from data_pipeline.splits import write_splits
from data_pipeline.stats import STATS_FILE, compute_stats, save_stats
from data_pipeline.synths.protocol import open_synth

FIRST_SHARD = Path("shards", "shard-0.h5")
# Sounds that are rendered, the rows of one shard.
SOUNDS = 320
# The size of shard whose chunks h5py is to guess.
OLD_SHARD_ROWS = 10_000


def given_or_made(flag: Any, rows: int, folder: str | Path) -> str:
    """The data set that the --config flag's overrides name, or one made in ``folder``, of so many rows or a batch."""
    if "data.root" in flag.override_values:
        return str(flag.value.data.root)
    root, config = Path(folder, "data"), flag.value
    make_data_set(root, config.data.spec, max(rows, config.data.batch_size))
    return str(root)


def make_data_set(root: Path, spec_name: str, rows: int) -> None:
    """Makes train.h5 and stats.npz of at least so many rows."""
    (root / FIRST_SHARD).parent.mkdir(parents=True)
    _make_shard(root / FIRST_SHARD, spec_name, min(rows, SOUNDS))
    repeat_shard(root, rows)
    save_stats(root / STATS_FILE, compute_stats(ShardReader(root / FIRST_SHARD)))


def repeat_shard(root: Path, rows: int) -> None:
    """Gives the one shard so many names that train.h5 has at least ``rows`` rows.

    The shuffle of a few hundred takes longer for each of them than of many, as long as reading it.
    """
    first = root / FIRST_SHARD
    count = -(-rows // len(ShardReader(first)))
    for number in range(1, count):
        first.with_name(f"shard-{number}.h5").symlink_to(first.name)
    write_splits(first.parent, root, {"train": list(range(count))})


def _make_shard(path: Path, spec_name: str, rows: int) -> None:
    """Parameters of the spec, spectrograms of the built-in synthesizer.

    These do not belong together, and the audio, which training does not read, is left out: reading costs the same.
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
    """Spectrograms of so many sounds, compressed as a shard has them."""
    config = render_subtractive.get_config()
    settings = render_settings(config, seed=0)
    renderer = settings.renderer(open_synth(settings.synth))
    with progress_bar("sounds rendered", count) as advance:
        for first in range(0, count, config.batch_rows):
            batch = Batch(tuple(range(first, min(first + config.batch_rows, count))))
            yield from (row.mel_spec for row in renderer.render(batch, lambda attempt: None).rows)
            advance(len(batch.indices))


def write_old_shard(path: Path, reader: ShardReader, rows: int) -> None:
    """The first rows of a split as the PyTorch code would have stored them: float32, in guessed chunks. No audio."""
    shapes = row_shapes(reader.width)
    with new_hdf5(path) as file:
        for name, dtype in ((AUDIO, np.float16), (MEL_SPEC, np.float32), (PARAM_ARRAY, np.float32)):
            chunk_rows, *chunk = guessed_chunks(shapes[name], dtype)
            chunks = (min(chunk_rows, rows), *chunk)
            compression = hdf5plugin.Blosc2()
            file.create_dataset(name, (rows, *shapes[name]), dtype, chunks=chunks, compression=compression)
        for name in (MEL_SPEC, PARAM_ARRAY):
            file[name][:] = reader.read_rows(name, range(rows))


def guessed_chunks(row_shape: tuple[int, ...], dtype: type[np.floating]) -> tuple[int, ...]:
    """What h5py takes for a dataset of such rows in a whole shard."""
    with h5py.File("guessed-chunks", "w", driver="core", backing_store=False) as file:
        return file.create_dataset("rows", (OLD_SHARD_ROWS, *row_shape), dtype, chunks=True).chunks


def stored_bytes_a_row(reader: ShardReader) -> float:
    """Of a spectrogram, in the shards that a split maps."""
    stored = rows = 0
    for path in reader.source_files():
        with h5py.File(path) as file:
            stored += file[MEL_SPEC].id.get_storage_size()
            rows += len(file[MEL_SPEC])
    return stored / rows
