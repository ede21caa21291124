"""Data sets in a cloud brought to the local disk before they are read.

HDF5 reads rows at random, which a local disk does a thousand times faster than a cloud. So ``stage`` copies the data
set once per host: everything under the URL of its root, which has to be the splits, statistics and all shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import sys
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from data_pipeline.atomic import atomic_path
from data_pipeline.cli import UserError
from data_pipeline.file_lock import exclusive
from data_pipeline.locations import Entry, Location
from data_pipeline.meter import data_size
from data_pipeline.splits import SPLITS
from data_pipeline.storage_local import LocalFolder
from data_pipeline.storage_urls import is_url, open_cloud
from data_pipeline.sync import check_space, fetch
from data_pipeline.virtual_sources import virtual_sources

CACHE = "SYNTHJAX_CACHE"
DEFAULT_CACHE = "~/.cache/synthjax"
MANIFEST = ".manifest.json"
SPLIT_FILES = tuple(f"{name}.h5" for name in SPLITS)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def stage(url: str, folder: Path | None = None, say: Callable[[str], object] = _say) -> Path:
    """Brings the data set at a URL to a folder of this host, by default below ``cache_folder``, and returns the folder.

    A local path is returned as it is. Processes of a host take turns, and who comes later finds everything there;
    what is there, whole and verified, is not copied again.

    Raises UserError where the URL holds no data set or not all of its shards, or the disk has no room, before anything
    big is copied; and whatever storage raises.
    """
    if not is_url(url):
        return Path(url)
    location = open_cloud(url)
    entries = location.entries()
    if not any(entry.key in SPLIT_FILES for entry in entries):
        raise UserError(f"{location.url} has no {', '.join(SPLIT_FILES)}: name the folder of a data set's splits")
    target = LocalFolder(folder or cache_folder(location, "datasets"))
    with exclusive(target.folder, say):
        manifest = _Manifest(target)
        missing = [entry for entry in entries if not manifest.vouches(entry)]
        if missing:
            # What an interrupted run left is verified, and takes no more room.
            check_space(location, [entry for entry in missing if not _has_size(target, entry)], target)
            say(f"{location.url}: copying up to {data_size(sum(entry.size for entry in missing))} to {target.folder}")
            _fetch_splits_first(location, entries, missing, target)
            manifest.write(entries)
    return target.folder


@cache
def local_root(root: str) -> Path:
    """``stage`` for the readers of one process: the clouds are asked once."""
    return stage(root)


def cache_folder(location: Location, kind: str) -> Path:
    """Where what lies in a cloud is kept here: below $SYNTHJAX_CACHE or ~/.cache/synthjax, named after its URL."""
    base = Path(os.environ.get(CACHE) or DEFAULT_CACHE).expanduser()
    name = location.url.rpartition("/")[2]
    return base / kind / f"{name}-{hashlib.sha256(location.url.encode()).hexdigest()[:8]}"


def _has_size(target: LocalFolder, entry: Entry) -> bool:
    path = target.path(entry.key)
    return path.is_file() and path.stat().st_size == entry.size


def _fetch_splits_first(
    location: Location, entries: Sequence[Entry], missing: Sequence[Entry], target: LocalFolder
) -> None:
    """Splits are small, and tell whether it is worth while to copy the rest."""
    fetch(location, [entry for entry in missing if entry.key in SPLIT_FILES], target)
    keys = {entry.key for entry in entries}
    for name in SPLIT_FILES:
        if name in keys:
            _check_sources(location, target.path(name), keys)
    fetch(location, [entry for entry in missing if entry.key not in SPLIT_FILES], target)


def _check_sources(location: Location, split: Path, keys: Collection[str]) -> None:
    """Raises UserError where a split names a shard that is not under the location."""
    for stored in dict.fromkeys(source.file for source in virtual_sources(split)):
        # HDF5 looks for what lies at an absolute path beside the split as well.
        key = posixpath.normpath(posixpath.basename(stored) if stored.startswith("/") else stored)
        if key != "." and key not in keys:
            raise UserError(
                f"{location.url}/{split.name} names the shard {stored}, which is not under {location.url}: make the "
                "splits in the shards' folder or one above it (python -m data_pipeline.splits DATA/shards DATA), and "
                "upload that folder"
            )


class _Manifest:
    """What was verified when a data set was staged: each file with its size, version, and time of writing here."""

    def __init__(self, target: LocalFolder) -> None:
        self._target = target
        self._path = target.folder / MANIFEST
        try:
            self._files: Any = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # None yet, or damaged: everything is verified anew.
            self._files = {}

    def vouches(self, entry: Entry) -> bool:
        """Whether the file here is this version of the entry."""
        return entry.key in self._files and self._files[entry.key] == self._record(entry)

    def _record(self, entry: Entry) -> list[Any] | None:
        try:
            status = self._target.path(entry.key).stat()
        except OSError:
            return None
        return [entry.size, entry.version, status.st_size, status.st_mtime_ns]

    def write(self, entries: Sequence[Entry]) -> None:
        """Notes that all of these are here."""
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps({entry.key: self._record(entry) for entry in entries}), encoding="utf-8")
