"""Copies the files that one location has and another lacks. Nothing is removed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipeline.cloud.local import LocalFolder
from data_pipeline.cloud.locations import CloudLocation, Entry, Location, has_checksum
from data_pipeline.cloud.parallel import Meter, Meters, run_all, shown_meter
from data_pipeline.cloud.transfer import download, part_path, upload
from data_pipeline.console.atomic import make_folder
from data_pipeline.console.cli import UserError
from data_pipeline.console.file_lock import exclusive
from data_pipeline.console.progress import data_size


@dataclass(frozen=True)
class Report:
    """Figures of a sync."""

    transferred: int
    files: int
    size: int
    seconds: float

    def __str__(self) -> str:
        rate = data_size(self.size / max(self.seconds, 1e-9))
        done = f"{self.transferred} of {self.files} files transferred, the others were there"
        return f"{done}: {data_size(self.size)} in {self.seconds:.1f} s, {rate}/s"


def sync(
    source: LocalFolder | CloudLocation, target: LocalFolder | CloudLocation, say: Callable[[str], object]
) -> Report:
    """Copies every file of ``source`` that is missing or different in ``target``.

    After an error or an interruption, finished files stay and the same call continues. Raises UserError for two clouds,
    an empty source, and errors of the locations.
    """
    started = time.monotonic()
    entries = source.entries()
    if not entries:
        raise UserError(f"there are no files under {source.url}: check the name")
    if isinstance(target, LocalFolder):
        with exclusive(target.folder, say):
            moved = fetch(source, entries, target)
    elif isinstance(source, LocalFolder):
        moved = send(source, entries, target)
    else:
        raise UserError(f"{source.url} and {target.url} are both in clouds: sync to a local folder, and from there")
    size = sum(entry.size for entry in moved)
    return Report(len(moved), len(entries), size, time.monotonic() - started)


def fetch(source: Location, entries: Sequence[Entry], target: LocalFolder) -> list[Entry]:
    """Downloads the entries of ``source`` that a folder lacks, and returns these. The caller has locked the folder.

    Raises UserError, with nothing written, for a name that leads out of the folder, and for too little disk space.
    """
    paths = {entry.key: target.path(entry.key) for entry in entries}
    sizes = {key: path.stat().st_size for key, path in paths.items() if path.is_file()}

    def same(entry: Entry, read: Callable[[int], object]) -> bool:
        checksum = source.checksum(entry)
        return checksum is None or has_checksum(paths[entry.key], checksum, read)

    missing = _differing(entries, sizes, same, shown_meter)
    if not missing:
        return []
    check_space(source, missing, target)
    with shown_meter(f"from {source.url}", _missing_bytes(source, missing, target)) as meter:
        run_all([partial(download, source, entry, paths[entry.key], meter) for entry in missing], meter)
    return missing


def send(
    source: LocalFolder, entries: Sequence[Entry], target: CloudLocation, meters: Meters = shown_meter
) -> list[Entry]:
    """Uploads the entries of a folder that ``target`` lacks, and returns these."""
    paths = {entry.key: source.path(entry.key) for entry in entries}
    there = {entry.key: entry for entry in target.entries()}

    def same(entry: Entry, read: Callable[[int], object]) -> bool:
        checksum = target.checksum(there[entry.key])
        return checksum is not None and has_checksum(paths[entry.key], checksum, read)

    missing = _differing(entries, {key: entry.size for key, entry in there.items()}, same, meters)
    if not missing:
        return []
    with meters(f"to {target.url}", sum(entry.size for entry in missing)) as meter:
        run_all([partial(_upload, entry, paths[entry.key], target, meter) for entry in missing], meter)
    return missing


def check_space(source: Location, entries: Sequence[Entry], target: LocalFolder) -> None:
    """Raises UserError if the disk has no room for these entries."""
    make_folder(target.folder)
    needed, free = _missing_bytes(source, entries, target), shutil.disk_usage(target.folder).free
    if needed > free:
        raise UserError(
            f"{source.url} needs {data_size(needed)}, but {data_size(free)} are free under {target.folder}: "
            "make room, or name a folder on another disk"
        )


def _missing_bytes(source: Location, entries: Sequence[Entry], target: LocalFolder) -> int:
    parts = [part_path(source, entry, target.path(entry.key)) for entry in entries]
    return sum(entry.size for entry in entries) - sum(part.stat().st_size for part in parts if part.exists())


def _differing(
    entries: Sequence[Entry],
    sizes: dict[str, int],
    same: Callable[[Entry, Callable[[int], object]], bool],
    meters: Meters,
) -> list[Entry]:
    """The entries that are missing or different on the other side, whose files have these sizes."""
    suspects = [entry for entry in entries if sizes.get(entry.key) == entry.size]
    if not suspects:
        return list(entries)
    with meters("comparing", sum(entry.size for entry in suspects)) as meter:
        answers = run_all([partial(same, entry, meter.moved) for entry in suspects], meter)
    equal = {entry.key for entry, answer in zip(suspects, answers, strict=True) if answer}
    return [entry for entry in entries if entry.key not in equal]


def _upload(entry: Entry, path: Path, target: CloudLocation, meter: Meter) -> None:
    upload(path, target, entry.key, meter)
    if not path.exists() or str(path.stat().st_mtime_ns) != entry.version:
        raise UserError(f"{path} changed while it was uploaded: run it again when it is finished")
