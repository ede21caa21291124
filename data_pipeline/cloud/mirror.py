"""Copies the folder of a run to a cloud while it is trained, so that another machine can continue it.

A thread uploads all changes at intervals: logs as far as they are written, and checkpoints that are complete. In the
cloud a checkpoint is complete if its marker exists, the object STEP.complete beside it. The marker is uploaded last and
removed first. Logs are uploaded before checkpoints, so that a checkpoint's log is always there.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from data_pipeline.cloud.local import LocalFolder
from data_pipeline.cloud.locations import Entry, stream_checksum
from data_pipeline.cloud.parallel import GRACE_SECONDS, Meter, Stopped, run_all
from data_pipeline.cloud.sync import fetch, send
from data_pipeline.cloud.transfer import upload
from data_pipeline.cloud.urls import open_cloud
from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from data_pipeline.console.file_lock import exclusive

CHECKPOINTS = "checkpoints"
# Part of the name of a checkpoint that is being written.
UNFINISHED = ".orbax-checkpoint-tmp"
MARKER_SUFFIX = ".complete"
MARKER = b"All files of this checkpoint are uploaded.\n"
# A folder with this file is a run.
CONFIG = "config.json"


class Mirror:
    """Keeps ``folder`` in the cloud at ``url``: ``restore``, then ``start``, then ``close``.

    Args:
      report: is called with the first failure after a success, in the mirror's thread.
      exclude: ``fnmatch`` patterns of names below the folder that are not uploaded. Hidden files and folders are never
        uploaded.
      every: seconds between uploads.

    The constructor raises UserError for an impossible URL, and for missing credentials or libraries.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        report: Callable[[str], object],
        exclude: Sequence[str] = (),
        every: float = 60.0,
    ) -> None:
        self._folder, self._report, self._exclude, self._every = folder, report, tuple(exclude), every
        self._location = open_cloud(url)
        self._meter = Meter()  # Of the current round.
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._failing = False
        # In the cloud: the version of each log, and the files of each checkpoint.
        self._logs: dict[str, str] = {}
        self._checkpoints: dict[str, list[Entry]] = {}

    def restore(self) -> bool:
        """Downloads the run with all complete checkpoints, unless the folder holds a run already.

        Returns whether it did. After an interruption there is no run, and another call continues. Raises UserError if
        the cloud cannot be read.
        """
        if (self._folder / CONFIG).exists():
            return False
        there = self._location.entries()
        complete = {entry.key.removesuffix(MARKER_SUFFIX) for entry in there if _is_marker(entry.key)}
        run = [e for e in there if not _is_marker(e.key) and _checkpoint(e.key) in complete | {None}]
        if all(entry.key != CONFIG for entry in run):
            return False
        with exclusive(self._folder, self._report):
            for last in (False, True):  # The config last: it makes the folder a run.
                part = [entry for entry in run if (entry.key == CONFIG) == last]
                fetch(self._location, part, LocalFolder(self._folder))
        return True

    def start(self) -> None:
        """Starts the thread that uploads."""
        self._thread.start()

    def close(self, timeout: float = 120.0) -> None:
        """Uploads the last changes for at most ``timeout`` seconds and ends. Reports if some were not uploaded."""
        self._closing.set()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout)
        if self._thread.is_alive() or self._failing:
            self._report(f"{self._location.url}: the last changes could not be uploaded within {timeout:.0f} s")
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
        """Uploads all changes. Errors are reported and the upload is repeated later: training continues."""
        self._meter = Meter()
        if self._given_up.is_set():
            return
        try:
            checkpoints = self._complete_checkpoints()
            self._send_logs()
            for name in sorted(checkpoints, key=lambda name: (len(name), name)):
                self._send_checkpoint(name)
            # Removed last, and never all: the cloud holds a checkpoint at any time.
            for name in self._checkpoints.keys() - checkpoints if checkpoints else ():
                self._remove_checkpoint(name)
        except Stopped:
            return
        except Exception as error:
            if not self._failing:
                reason = " ".join(str(error).split())
                self._report(f"the run is not mirrored, tried again every {self._every:.0f} s: {reason}")
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
        if known:  # The checkpoint was written again.
            self._remove_checkpoint(name)
        self._checkpoints[name] = []  # If the upload is not finished, its files must be removed.
        try:
            send(folder, files, location, lambda title, total: nullcontext(self._meter))
        except UserError:
            if folder.entries() == files:
                raise
        if folder.entries() != files:  # Training is removing the checkpoint.
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
    """The checkpoint of a file, as ``checkpoints/STEP``; None for any other file."""
    parts = key.split("/")
    return "/".join(parts[:2]) if parts[0] == CHECKPOINTS and len(parts) > 2 else None


def _is_marker(key: str) -> bool:
    parts = key.split("/")
    return len(parts) == 2 and parts[0] == CHECKPOINTS and key.endswith(MARKER_SUFFIX)
