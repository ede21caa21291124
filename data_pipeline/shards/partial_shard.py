"""A shard that is not complete yet: ``shard-N.h5.partial``, to which batches of rows are committed.

HDF5 may leave an unreadable file when a process dies. So rows go to a log first. When all rows are committed,
``finish`` writes the shard and removes the log. The log's first record is the shard's identity in JSON. Each other
record is a batch: a line of JSON that lists its rows, then their bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from data_pipeline.console.append_log import RecordLog
from data_pipeline.console.atomic import remove_leftover
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why
from data_pipeline.shards.hdf5_files import new_hdf5
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
from data_pipeline.shards.row_compression import EncodedRow, RenderedBatch

Identity = Mapping[str, Any]
"""Attributes, number of rows and width of a shard: all that decides its content, except the synthesizer."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Offset of a committed row in the log, and the sizes of its parts in bytes."""

    offset: int
    params: int
    audio: int
    mel_spec: int


class PartialShard:
    """The rows of the shard ``path`` that are committed so far. Locked: only one process fills a shard.

    Raises UserError if another process fills it, or the log has another identity.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self.refused: Counter[str] = Counter()
        self._identity = identity
        self._synth: tuple[str, str] | None = None
        self._places: dict[int, _Place] = {}
        self._appending = False  # Stays True if a signal interrupts ``commit``: rows may be on the disk.
        self._log = RecordLog(log_path(path))
        try:
            self._recover()
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def indices(self) -> range:
        """Numbers of the shard's samples in the data set; from 0 if unknown."""
        first = self._identity["first_sample_index"] or 0
        return range(first, first + self._identity["rows"])

    @property
    def missing(self) -> list[int]:
        """Indices that have not been committed, in order."""
        return [index for index in self.indices if index not in self._places]

    @property
    def complete(self) -> bool:
        """Whether every row has been committed."""
        return len(self._places) == len(self.indices)

    def require_synth(self, name: str, version: str) -> None:
        """Accepts rows of this synthesizer only. Raises UserError if rows of another one are committed."""
        synth = (name, version)
        if self._synth not in (None, synth):
            raise UserError(
                f"{self._log.path} has rows of {' '.join(self._synth or ())}, this is {name} {version}: "
                "go on with the same synthesizer, or choose another --output"
            )
        self._synth = synth

    def commit(self, batch: RenderedBatch, synth_name: str, synth_version: str) -> None:
        """Appends a batch of rows, which are on the disk when this returns.

        Raises UserError for another synthesizer than before, and for a full disk. Rows committed before are safe.
        """
        for row in batch.rows:
            self._check_row(row)
        self.require_synth(synth_name, synth_version)
        entries = [[row.index, len(row.params), len(row.audio), len(row.mel_spec)] for row in batch.rows]
        line = {"synth": self._synth, "refused": dict(batch.refused), "rows": entries}
        body = b"".join(part for row in batch.rows for part in (row.params, row.audio, row.mel_spec))
        try:
            if self._log.empty:
                self._log.append(json.dumps(self._identity).encode())
            text = json.dumps(line).encode() + b"\n"
            self._appending = True
            offset = self._log.append(text + body)
        except OSError as error:
            self._appending = False
            raise UserError(
                f"cannot write {self._log.path}: {why(error)}; {len(self._places)} of its {len(self.indices)} "
                "rows are safe, and the same command goes on from there"
            ) from error
        self._note_batch(line, offset + len(text))

    def finish(self) -> None:
        """Writes the shard, whole or not at all, and removes the log. Raises UserError if it cannot be written."""
        if not self.complete or self._synth is None:
            raise ValueError(f"{len(self.missing)} rows of {self.path} are missing")
        content = {**self._identity, "synth_name": self._synth[0], "synth_version": self._synth[1]}
        attributes = ShardAttributes(**{field.name: content[field.name] for field in fields(ShardAttributes)})
        for stale in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            remove_leftover(stale)  # Left by a run that was killed. The lock keeps others out.
        with new_hdf5(self.path) as file:
            self._write_rows(file)
            seal(file, attributes)
        self._log.remove()

    def close(self) -> None:
        """Closes the log, and removes it if no row is committed."""
        if not self._places and not self._appending:
            self._log.remove()
        self._log.close()

    def _write_rows(self, file: h5py.File) -> None:
        width = self._identity["width"]
        datasets = {
            name: create_dataset(file, name, len(self.indices), shape)
            for name, shape in row_shapes(width).items()
            if name != AUDIO or self._identity["store_audio"]
        }
        params = np.empty((len(self.indices), width), np.float32)
        for row, index in enumerate(self.indices):
            place = self._places[index]
            content = memoryview(self._log.read(place.offset, place.params + place.audio + place.mel_spec))
            params[row] = np.frombuffer(content[: place.params], "<f4")
            audio_end = place.params + place.audio
            if AUDIO in datasets:
                datasets[AUDIO].id.write_direct_chunk((row, 0, 0), content[place.params : audio_end])
            datasets[MEL_SPEC].id.write_direct_chunk((row, 0, 0, 0), content[audio_end:])
        datasets[PARAM_ARRAY][:] = params

    def _recover(self) -> None:
        for offset, payload in self._log.recover():
            text, _, _ = payload.partition(b"\n")
            content = json.loads(text)
            if self._log.empty:
                self._check_identity(content)
            else:
                self.require_synth(*content["synth"])
                self._note_batch(content, offset + len(text) + 1)

    def _note_batch(self, line: Mapping[str, Any], offset: int) -> None:
        for index, *sizes in line["rows"]:
            self._places[index] = _Place(offset, *sizes)
            offset += sum(sizes)
        self.refused.update(line["refused"])

    def _check_row(self, row: EncodedRow) -> None:
        if row.index not in self.indices or len(row.params) != 4 * self._identity["width"]:
            raise ValueError(f"row {row.index} of {len(row.params)} parameter bytes does not belong in {self.path}")
        if bool(row.audio) != self._identity["store_audio"]:
            raise ValueError(f"row {row.index} has {len(row.audio)} bytes of audio, which do not fit {self.path}")

    def _check_identity(self, found: Identity) -> None:
        found = {"store_audio": True, **found}  # Logs from before --store_audio do not say it.
        if name := _first_difference(self._identity, found):
            raise UserError(
                f"{self._log.path} was begun with {name} {found.get(name)}, not {self._identity.get(name)}: "
                "go on with the same settings, or remove it"
            )


def log_path(shard: Path) -> Path:
    """The path of a shard's log, beside the shard."""
    return shard.with_name(shard.name + ".partial")


def shard_identity(attributes: ShardAttributes, rows: int, width: int, *, store_audio: bool = True) -> Identity:
    """The identity of a shard of rows of W = ``width`` columns, without the synthesizer's name and version."""
    known = {name: value for name, value in asdict(attributes).items() if not name.startswith("synth_")}
    return {**known, "rows": rows, "width": width, "store_audio": store_audio}


def check_finished(path: Path, identity: Identity) -> tuple[str, str]:
    """Returns name and version of the synthesizer of a finished shard.

    Raises UserError if the shard has another identity.
    """
    reader = ShardReader(path)
    found = {name: reader.attrs.get(name) for name in identity}
    found |= {"rows": len(reader), "width": reader.width, "store_audio": AUDIO in reader.names}
    if name := _first_difference(identity, found):
        raise UserError(
            f"{path} is there already, with {name} {found[name]} instead of {identity[name]}: "
            "choose another --output, or remove it"
        )
    return str(reader.attrs.get("synth_name")), str(reader.attrs.get("synth_version"))


def remove_log(path: Path) -> None:
    """Removes the log of a finished shard, left by a run that was killed; not a log that is in use."""
    if log_path(path).exists():
        with suppress(UserError):
            RecordLog(log_path(path)).remove()


def _first_difference(one: Identity, other: Identity) -> str | None:
    """The first name with unequal values. ``rows`` comes first: other numbers may differ only because of it."""
    names = sorted(one.keys() | other.keys(), key=lambda name: (name != "rows", name))
    return next((name for name in names if one.get(name) != other.get(name)), None)
