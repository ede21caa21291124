"""Checks of data sets: every file opens, is complete and has its sources; every row holds possible values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.sound_files import SILENCE_PEAK
from data_pipeline.audio.spectrogram import DYNAMIC_RANGE_DB
from data_pipeline.console.cli import UserError
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import ParamSpec, bundled_spec_of_width, bundled_specs, load_spec
from data_pipeline.shards.mel_stats import STATS_FILE, load_stats
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, OPTIONAL, PARAM_ARRAY, ROW_SHAPES, ShardReader
from data_pipeline.shards.splits import SPLITS, find_shards
from data_pipeline.shards.virtual_sources import trace

# The step of float16 is 1/16 dB near -80 dB.
MEL_TOLERANCE_DB = 0.05
COLUMN_TOLERANCE = 1e-6
# Rows checked together, in float32: limits memory.
ROWS_AT_ONCE = 16
LINES_PER_KIND = 5


class Faults:
    """The faults found so far. Of each kind of fault in a file's rows only the first few rows are listed."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._counts: Counter[tuple[Path, str]] = Counter()

    def add(self, line: str) -> None:
        """Adds a fault of a whole file."""
        self._lines.append(line)

    def add_rows(self, reader: ShardReader, name: str, rows: NDArray[np.integer], fault: str) -> None:
        """Adds a fault of rows of a dataset."""
        for row in rows:
            self._counts[reader.path, fault] += 1
            if self._counts[reader.path, fault] <= LINES_PER_KIND:
                shard, shard_row = reader.source_of(name, int(row))
                origin = "" if shard == reader.path else f" (row {shard_row} of {shard.name})"
                self._lines.append(f"{reader.path}: row {row}{origin}: {fault}")

    def lines(self) -> list[str]:
        """One line for each fault, then one for each kind with more rows than are listed."""
        more = {key: count - LINES_PER_KIND for key, count in self._counts.items() if count > LINES_PER_KIND}
        return self._lines + [f"{path}: {count} more rows: {fault}" for (path, fault), count in more.items()]


def check_paths(
    paths: Sequence[Path], spec_name: str | None, *, allow_external: bool = False
) -> tuple[int, int, list[str]]:
    """Checks data-set folders, splits and shards.

    Returns the number of rows read, how many of them have no audio, and one line for each fault.

    Raises UserError for a path that does not exist, a folder without data, or an unknown spec.
    """
    spec = load_spec(spec_name) if spec_name else None
    faults = Faults()
    readers: list[ShardReader] = []
    for path in paths:
        if path.is_dir():
            readers += _open_folder(path, faults, allow_external)
        elif path.exists():
            readers += _open(path, faults, allow_external)
        else:
            raise UserError(f"{path}: does not exist")
    rows = sum(map(len, readers))
    with progress_bar("rows checked", rows, parts=len(ROW_SHAPES)) as advance:
        for reader in readers:
            _check_rows(reader, spec, faults, advance)
    without_audio = sum(len(reader) for reader in readers if AUDIO not in reader.names)
    return rows, without_audio, faults.lines()


def _open(path: Path, faults: Faults, allow_external: bool) -> list[ShardReader]:
    try:
        return [ShardReader(path, allow_external=allow_external)]
    except UserError as error:
        try:
            lines = trace(path, tuple(ROW_SHAPES), optional=OPTIONAL, allow_external=allow_external)[1]
        except UserError:
            lines = []
        for line in lines or [str(error)]:
            faults.add(line)
        return []


def _open_folder(folder: Path, faults: Faults, allow_external: bool) -> list[ShardReader]:
    """Readers of a folder's splits and of the shards that no split maps. Checks the data set as a whole."""
    paths = [folder / f"{name}.h5" for name in SPLITS if (folder / f"{name}.h5").exists()]
    splits = [reader for path in paths for reader in _open(path, faults, allow_external)]
    for one, other in combinations(splits, 2):
        for shared in sorted(set(one.source_files()) & set(other.source_files())):
            faults.add(f"{shared}: is in {one.path.name} and in {other.path.name}: each shard serves one split")
    if paths or (folder / STATS_FILE).exists():
        try:
            load_stats(folder / STATS_FILE)
        except UserError as error:
            faults.add(str(error))
    mapped = {source.resolve() for reader in splits for source in reader.source_files()}
    shards = list(find_shards(folder).values()) if not paths or any(folder.glob("shard-*.h5")) else []
    rest = [path for path in shards if path.resolve() not in mapped]
    readers = splits + [reader for path in rest for reader in _open(path, faults, allow_external)]
    if len({reader.width for reader in readers}) > 1:
        widths = ", ".join(f"{reader.path.name} {reader.width}" for reader in readers)
        faults.add(f"{folder}: rows of several specs, by their parameter columns: {widths}")
    priors = {reader.path.name: reader.attrs.get("prior_hash", "none") for reader in readers}
    if len(set(priors.values())) > 1:
        listed = ", ".join(f"{name} {prior}" for name, prior in priors.items())
        faults.add(f"{folder}: rows of several priors, by their prior_hash: {listed}")
    return readers


def _check_rows(reader: ShardReader, spec: ParamSpec | None, faults: Faults, advance: Callable[[int], None]) -> None:
    spec = _spec_of(reader, spec, faults)
    checks: dict[str, Callable[[NDArray[np.float32]], dict[str, NDArray[np.bool_]]]] = {
        AUDIO: _audio_faults,
        MEL_SPEC: _mel_faults,
        PARAM_ARRAY: lambda rows: _param_faults(rows, spec),
    }
    advance(len(reader) * (len(ROW_SHAPES) - len(reader.names)))  # Left-out audio counts as checked.
    for name in reader.names:
        try:
            for first_row, block in reader.blocks(name):
                for start in range(0, len(block), ROWS_AT_ONCE):
                    rows = block[start : start + ROWS_AT_ONCE].astype(np.float32)
                    for fault, bad in checks[name](rows).items():
                        faults.add_rows(reader, name, first_row + start + np.flatnonzero(bad), f"{name} {fault}")
                    advance(len(rows))
        except UserError as error:  # A damaged chunk: go on with the other datasets.
            faults.add(str(error))


def _spec_of(reader: ShardReader, spec: ParamSpec | None, faults: Faults) -> ParamSpec | None:
    """The spec of the columns, None if unknown. A spec that does not fit is a fault."""
    named = str(reader.attrs.get("spec_name", ""))
    if spec is None and named in bundled_specs():
        spec = load_spec(named)
    if spec is None and not named:
        spec = bundled_spec_of_width(reader.width)
    if spec and spec.width != reader.width:
        faults.add(f"{reader.path}: has {reader.width} columns, spec {spec.name} has {spec.width}")
        return None
    if spec and reader.attrs.get("spec_hash", spec.content_hash) != spec.content_hash:
        faults.add(f"{reader.path}: was made with another spec than {spec.name} is now: their hashes differ")
    return spec


def _extremes(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest value of each row; both NaN if the row holds a NaN."""
    flat = rows.reshape(len(rows), -1)
    return flat.min(axis=1), flat.max(axis=1)


def _common_faults(low: NDArray[np.float32], high: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    return {
        "is not finite": ~(np.isfinite(low) & np.isfinite(high)),
        "is all zeros: a lost source or a shard not written to its end": (low == 0) & (high == 0),
    }


def _audio_faults(rows: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    low, high = _extremes(rows)
    peak = np.maximum(-low, high)
    return {**_common_faults(low, high), "is silent": (peak > 0) & (peak < SILENCE_PEAK)}


def _mel_faults(rows: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    low, high = _extremes(rows)
    outside = (low < -DYNAMIC_RANGE_DB - MEL_TOLERANCE_DB) | (high > MEL_TOLERANCE_DB)
    return {**_common_faults(low, high), "leaves -80..0 dB": outside & np.isfinite(low) & np.isfinite(high)}


def _param_faults(rows: NDArray[np.float32], spec: ParamSpec | None) -> dict[str, NDArray[np.bool_]]:
    faults = _common_faults(*_extremes(rows))
    usable = ~np.any(list(faults.values()), axis=0)
    outside = ~((rows >= -COLUMN_TOLERANCE) & (rows <= 1 + COLUMN_TOLERANCE))
    for column in np.flatnonzero((outside & usable[:, None]).any(axis=0)):
        name = spec.column_names[column] if spec else f"column {column}"
        faults[f"leaves [0, 1] in {name}"] = outside[:, column] & usable
    if spec is None:
        return faults
    for parameter in spec.parameters:
        if isinstance(parameter, Categorical):
            group = np.sort(rows[:, spec.slices[parameter.name]], axis=1)
            one_hot = np.zeros(parameter.width)
            one_hot[-1] = 1.0
            valid = np.all(np.abs(group - one_hot) <= COLUMN_TOLERANCE, axis=1)
            faults[f"is not one-hot in {parameter.name}"] = ~valid & usable
    return faults
