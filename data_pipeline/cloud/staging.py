"""Copies data sets from a cloud to the local disk before they are read.

Rows are read in random order, which is a thousand times faster from a local disk. So ``stage`` copies the data set once
per host: all files under the URL of its root, which must hold the splits, the statistics and all shards.
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

from data_pipeline.cloud.local import LocalFolder
from data_pipeline.cloud.locations import Entry, Location
from data_pipeline.cloud.sync import check_space, fetch
from data_pipeline.cloud.urls import is_url, open_cloud
from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.console.file_lock import exclusive
from data_pipeline.console.progress import data_size
from data_pipeline.shards.splits import SPLITS
from data_pipeline.shards.virtual_sources import virtual_sources

CACHE = "SYNTHJAX_CACHE"
DEFAULT_CACHE = "~/.cache/synthjax"
MANIFEST = ".manifest.json"
SPLIT_FILES = tuple(f"{name}.h5" for name in SPLITS)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def stage(url: str, folder: Path | None = None, say: Callable[[str], object] = _say) -> Path:
    """Copies the data set at a URL to a folder of this host (default: ``cache_folder``) and returns the folder.

    A local path is returned unchanged. Processes of a host take turns; verified files are not copied again.

    Raises UserError before the shards are copied if the URL holds no data set or not all of its shards, or if the disk
    has no room; and errors of the storage.
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
            # Files of an interrupted run need no more room.
            check_space(location, [entry for entry in missing if not _has_size(target, entry)], target)
            say(f"{location.url}: copying up to {data_size(sum(entry.size for entry in missing))} to {target.folder}")
            _fetch_splits_first(location, entries, missing, target)
            manifest.write(entries)
    return target.folder


@cache
def local_root(root: str) -> Path:
    """``stage``, called once per process and root."""
    return stage(root)


def cache_folder(location: Location, kind: str) -> Path:
    """The local folder for files of a URL: below $SYNTHJAX_CACHE or ~/.cache/synthjax, named after the URL."""
    name = location.url.rpartition("/")[2]
    return cache_root(location.url) / kind / f"{name}-{hashlib.sha256(location.url.encode()).hexdigest()[:8]}"


def cache_root(url: str) -> Path:
    """$SYNTHJAX_CACHE or ~/.cache/synthjax. Raises UserError if there is no such folder for files of ``url``."""
    base = os.path.expanduser(os.environ.get(CACHE) or DEFAULT_CACHE)
    if base.startswith("~"):
        raise UserError(f"files of {url} need a folder here: set {CACHE} (this user has no home folder)")
    return Path(base)


def _has_size(target: LocalFolder, entry: Entry) -> bool:
    path = target.path(entry.key)
    return path.is_file() and path.stat().st_size == entry.size


def _fetch_splits_first(
    location: Location, entries: Sequence[Entry], missing: Sequence[Entry], target: LocalFolder
) -> None:
    """Splits first: they are small, and name the shards that must be there."""
    fetch(location, [entry for entry in missing if entry.key in SPLIT_FILES], target)
    keys = {entry.key for entry in entries}
    for name in SPLIT_FILES:
        if name in keys:
            _check_sources(location, target.path(name), keys)
    fetch(location, [entry for entry in missing if entry.key not in SPLIT_FILES], target)


def _check_sources(location: Location, split: Path, keys: Collection[str]) -> None:
    """Raises UserError if a split names a shard that is not under the location."""
    for stored in dict.fromkeys(source.file for source in virtual_sources(split)):
        # HDF5 looks for a file with an absolute path also beside the split.
        key = posixpath.normpath(posixpath.basename(stored) if stored.startswith("/") else stored)
        if key != "." and key not in keys:
            raise UserError(
                f"{location.url}/{split.name} names the shard {stored}, which is not under {location.url}: make the "
                "splits in the shards' folder or one above it (python -m data_pipeline.splits DATA/shards DATA), and "
                "upload that folder"
            )


class _Manifest:
    """The verified files of a staged data set, each with its size, version and local modification time."""

    def __init__(self, target: LocalFolder) -> None:
        self._target = target
        self._path = target.folder / MANIFEST
        try:
            self._files: Any = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # Missing or damaged: all files are verified again.
            self._files = {}

    def vouches(self, entry: Entry) -> bool:
        """Whether the local file is this version of the entry."""
        return entry.key in self._files and self._files[entry.key] == self._record(entry)

    def _record(self, entry: Entry) -> list[Any] | None:
        try:
            status = self._target.path(entry.key).stat()
        except OSError:
            return None
        return [entry.size, entry.version, status.st_size, status.st_mtime_ns]

    def write(self, entries: Sequence[Entry]) -> None:
        """Writes that all entries are here."""
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps({entry.key: self._record(entry) for entry in entries}), encoding="utf-8")
