"""A run's folder kept in a cloud while it is trained, so that another machine can go on with it.

A thread uploads what changed, again and again: logs as far as they are written, and checkpoints once they are
complete. A checkpoint counts there when its marker, the object STEP.complete beside it, is there: it is uploaded last
and removed first. Logs go before the checkpoints that were complete when they were read, so that no checkpoint is
there without the log of its steps.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from data_pipeline import cli
from data_pipeline.checksums import stream_checksum
from data_pipeline.cli import UserError
from data_pipeline.file_lock import exclusive
from data_pipeline.locations import Entry
from data_pipeline.meter import Meter, Stopped
from data_pipeline.parallel import GRACE_SECONDS, run_all
from data_pipeline.storage_local import LocalFolder
from data_pipeline.storage_urls import open_cloud
from data_pipeline.sync import fetch, send
from data_pipeline.transfer import upload

CHECKPOINTS = "checkpoints"
# In the name of a checkpoint that is being written.
UNFINISHED = ".orbax-checkpoint-tmp"
MARKER_SUFFIX = ".complete"
MARKER = b"All files of this checkpoint are uploaded.\n"
# A folder with this file is a run.
CONFIG = "config.json"


class Mirror:
    """Keeps ``folder`` in the cloud at ``url``: ``restore``, then ``start``, then ``close``.

    Args:
      tell: hears of failures, once until an upload succeeds again. Runs in the mirror's thread.
      exclude: patterns of names below the folder that are not uploaded, as ``fnmatch`` takes them. Hidden files and
        folders, at any depth, never are.
      every: seconds between uploads.

    The constructor raises UserError for a URL that cannot be, and where credentials or libraries are missing.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        tell: Callable[[str], object],
        exclude: Sequence[str] = (),
        every: float = 60.0,
    ) -> None:
        self._folder, self._tell, self._exclude, self._every = folder, tell, tuple(exclude), every
        self._location = open_cloud(url)
        self._meter = Meter()  # Of the round under way.
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._failing = False
        # What is in the cloud: the version of each log, and the files of each checkpoint.
        self._logs: dict[str, str] = {}
        self._checkpoints: dict[str, list[Entry]] = {}

    def restore(self) -> bool:
        """Brings the run here, with every complete checkpoint, unless the folder holds a run already.

        Returns whether it did. Interrupted, it leaves no run, and goes on when called again. Raises UserError where
        the cloud cannot be read.
        """
        if (self._folder / CONFIG).exists():
            return False
        there = self._location.entries()
        complete = {entry.key.removesuffix(MARKER_SUFFIX) for entry in there if _is_marker(entry.key)}
        run = [e for e in there if not _is_marker(e.key) and _checkpoint(e.key) in complete | {None}]
        if all(entry.key != CONFIG for entry in run):
            return False
        with exclusive(self._folder, self._tell):
            for last in (False, True):  # The config makes it a run.
                part = [entry for entry in run if (entry.key == CONFIG) == last]
                fetch(self._location, part, LocalFolder(self._folder))
        return True

    def start(self) -> None:
        """Begins to upload."""
        self._thread.start()

    def close(self, timeout: float = 120.0) -> None:
        """Uploads what is left, for at most so many seconds, and ends; tells where that was not all."""
        self._closing.set()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout)
        if self._thread.is_alive() or self._failing:
            self._tell(f"{self._location.url}: the last changes could not be uploaded within {timeout:.0f} s")
        self._given_up.set()
        self._meter.stop()
        self._thread.join(2 * GRACE_SECONDS)
        if self._thread.is_alive():
            cli.exit_without_threads()

    def _run(self) -> None:
        while not self._closing.wait(self._every):
            self._round()
        self._round()

    def _round(self) -> None:
        """One upload of what changed. Whatever goes wrong is told and tried again: training goes on."""
        self._meter = Meter()
        if self._given_up.is_set():
            return
        try:
            checkpoints = self._complete_checkpoints()
            self._send_logs()
            for name in sorted(checkpoints, key=lambda name: (len(name), name)):
                self._send_checkpoint(name)
            # Only now, and not the last ones, so that there is a checkpoint in the cloud at any time.
            for name in self._checkpoints.keys() - checkpoints if checkpoints else ():
                self._remove_checkpoint(name)
        except Stopped:
            return
        except Exception as error:
            if not self._failing:
                reason = " ".join(str(error).split())
                self._tell(f"the run is not mirrored, tried again every {self._every:.0f} s: {reason}")
            self._failing = True
        else:
            self._failing = False

    def _complete_checkpoints(self) -> set[str]:
        folder = self._folder / CHECKPOINTS
        names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        return {f"{CHECKPOINTS}/{name}" for name in names if UNFINISHED not in name and not name.startswith(".")}

    def _send_logs(self) -> None:
        here = LocalFolder(self._folder)
        changed = [e for e in here.entries() if self._is_log(e.key) and self._logs.get(e.key) != e.version]
        run_all([partial(self._send_log, here.path(entry.key), entry) for entry in changed], self._meter)

    def _send_log(self, path: Path, entry: Entry) -> None:
        try:
            upload(path, self._location, entry.key, self._meter)
        except UserError:
            if path.exists():
                raise
        self._logs[entry.key] = entry.version

    def _is_log(self, key: str) -> bool:
        if any(part.startswith(".") for part in key.split("/")) or any(fnmatch(key, p) for p in self._exclude):
            return False
        return _checkpoint(key) is None

    def _send_checkpoint(self, name: str) -> None:
        folder, location = LocalFolder(self._folder / name), self._location.below(name)
        files = folder.entries()
        known = self._checkpoints.get(name)
        if known == files:
            return
        if known:  # It was written anew.
            self._remove_checkpoint(name)
        self._checkpoints[name] = []  # Begun: if it goes before it is whole, its remains are to be removed.
        try:
            send(folder, files, location, lambda title, total: nullcontext(self._meter))
        except UserError:
            if folder.entries() == files:
                raise
        if folder.entries() != files:  # It is being removed: what was left of it is no checkpoint.
            self._remove_checkpoint(name)
            return
        checksum = stream_checksum(io.BytesIO(MARKER), len(MARKER), self._location.algorithm, self._meter.moved)
        self._location.upload(io.BytesIO(MARKER), name + MARKER_SUFFIX, len(MARKER), checksum)
        self._checkpoints[name] = files

    def _remove_checkpoint(self, name: str) -> None:
        self._location.delete(name + MARKER_SUFFIX)
        location = self._location.below(name)
        run_all([partial(location.delete, entry.key) for entry in location.entries()], self._meter)
        self._checkpoints.pop(name, None)


def _checkpoint(key: str) -> str | None:
    """The checkpoint that a file belongs to, as ``checkpoints/STEP``; None for any other file."""
    parts = key.split("/")
    return "/".join(parts[:2]) if parts[0] == CHECKPOINTS and len(parts) > 2 else None


def _is_marker(key: str) -> bool:
    parts = key.split("/")
    return len(parts) == 2 and parts[0] == CHECKPOINTS and key.endswith(MARKER_SUFFIX)
