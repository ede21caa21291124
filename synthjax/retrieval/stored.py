"""Rows of shards as patches of an index: their spectrograms are there already, so nothing is rendered.

Rows that a seed gives back are kept as their accepted attempts. Those of other shards, such as the PyTorch code's, are
kept as they are.

Shapes: n rows of a shard, W row width, E pooled numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from data_pipeline.console.cli import UserError
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.row_renderer import MAX_REFUSED_IN_A_ROW
from data_pipeline.shards.reader import MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.shards.splits import find_shards, open_shard
from synthjax.retrieval.embedding import delay, pooled
from synthjax.retrieval.index import Source

# After so many attempts most rows are found, unless the seed did not draw them.
FEW = 10
UNKNOWN = ("a synthesizer", "of unknown version")

Stored = tuple[Source, UInt8[np.ndarray, "n E"]]
"""The patches of a shard, and their pooled spectrograms."""


def read_shards(folder: Path, spec: ParamSpec) -> tuple[tuple[str, str], list[Stored]]:
    """Name and version of the synthesizer of a folder's shards, and the patches of each shard.

    Raises UserError as ``find_shards`` and ``open_shard`` do, and for shards of another spec or several synthesizers.
    """
    readers = [open_shard(path) for path in find_shards(folder).values()]
    for reader in readers:
        if reader.width != spec.width or reader.attrs.get("spec_hash", spec.content_hash) != spec.content_hash:
            raise UserError(f"{reader.path} has rows of another spec than {spec.name}: name its --config")
    synths = {_synth(reader) for reader in readers}
    if len(synths) > 1:
        names = " and ".join(" ".join(synth) for synth in sorted(synths))
        raise UserError(f"--shards={folder} has shards of {names}: an index has sounds of one")
    with progress_bar("reading shards", sum(map(len, readers))) as advance:
        found = []
        for reader in readers:
            found.append(_patches(reader, spec))
            advance(len(reader))
    return synths.pop(), found


def _synth(reader: ShardReader) -> tuple[str, str]:
    known = reader.attrs
    return (known["synth_name"], known["synth_version"]) if "synth_name" in known else UNKNOWN


def _patches(reader: ShardReader, spec: ParamSpec) -> Stored:
    rows = reader.read_rows(PARAM_ARRAY, range(len(reader)))
    starts = rows[:, spec.slices[spec.note_times.name]]
    sounds, delays = [], []
    for mel, columns in zip(_spectrograms(reader), starts, strict=True):
        sounds.append(pooled(mel))
        delays.append(delay(mel, spec.note_times.decode(columns)[0]))
    attempts = attempts_of(reader, rows, spec)
    if attempts is None:
        source = Source({"shard": str(reader.path)}, np.array(delays, np.uint8), rows=rows.astype(np.float32))
        return source, np.stack(sounds)
    about = {
        "seed": int(reader.attrs["seed"]),
        "first": int(reader.attrs["first_sample_index"]),
        "prior_hash": None,
        "held": 0.0,
        "refused": {"for any reason": int(attempts.sum())},
    }
    return Source(about, np.array(delays, np.uint8), attempts), np.stack(sounds)


def _spectrograms(reader: ShardReader) -> Iterator[Float[np.ndarray, "C M F"]]:
    for _, block in reader.blocks(MEL_SPEC):
        yield from block


def attempts_of(reader: ShardReader, rows: Float[np.ndarray, "n W"], spec: ParamSpec) -> Int[np.ndarray, " n"] | None:
    """The attempts (n,) uint16 by which the shard's seed draws its rows again; None if it does not."""
    known = reader.attrs
    if "seed" not in known or "first_sample_index" not in known or "prior_hash" in known:
        return None
    numbers = int(known["first_sample_index"]) + np.arange(len(rows))
    attempts, missing = np.zeros(len(rows), np.uint16), np.arange(len(rows))
    for attempt in range(MAX_REFUSED_IN_A_ROW):
        attempts[missing] = attempt
        drawn = spec.sample(int(known["seed"]), list(numbers[missing]), [attempt] * len(missing))
        missing = missing[(drawn != rows[missing]).any(axis=1)]
        if not len(missing):
            return attempts
        if attempt == FEW and len(missing) > len(rows) / 2:
            return None
    return None
