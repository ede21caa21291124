"""Workdirs in clouds: a command works on files of this host, and a mirror copies them to the cloud.

On gs:// Orbax writes checkpoints directly to the cloud, and every process writes its part. On s3:// the mirror copies
checkpoints from the disk of one host, so that such a run has one process.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from data_pipeline.cloud.locations import CloudLocation
from data_pipeline.cloud.mirror import Mirror
from data_pipeline.cloud.staging import cache_folder
from data_pipeline.cloud.urls import is_url, open_cloud
from data_pipeline.console.cli import UserError
from synthjax.cluster import distributed
from synthjax.runs.workdir import Workdir

LOG = "metrics.jsonl"


@contextmanager
def training(path: str) -> Generator[Workdir, None, None]:
    """The workdir for training in ``path``, a folder or URL. A URL is mirrored from a folder here until the run ends.

    Raises:
      UserError: if the cloud cannot be read, or if several processes train in one s3:// folder.
    """
    if not is_url(path):
        yield Workdir(path)
        return
    if _checkpoints(path) is None and jax.process_count() > 1:
        raise UserError("several processes cannot train in one s3:// folder: use gs:// or a shared folder")
    if not distributed.is_main():  # It writes its part of the checkpoints and nothing else.
        with TemporaryDirectory(ignore_cleanup_errors=True) as elsewhere:
            yield Workdir(elsewhere, _checkpoints(path))
        return
    location = open_cloud(path)
    folder = cache_folder(location, "runs")
    _drop_if_behind(folder, location)
    mirror = Mirror(folder, path, _warn)
    mirror.restore()
    mirror.start()
    try:
        yield Workdir(folder, _checkpoints(path))
    finally:
        with _undisturbed():
            mirror.close()


@contextmanager
def reading(path: str | Path) -> Generator[Workdir, None, None]:
    """The workdir of a run, for reading. A URL is copied to this host while the context lasts.

    Raises:
      UserError: if the cloud cannot be read.
    """
    if not is_url(str(path)):
        yield Workdir(path)
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if not Mirror(Path(folder), str(path), _warn).restore():
            raise UserError(f"no run at {path}: give the --workdir of a training run")
        yield Workdir(folder, _checkpoints(str(path)))


@contextmanager
def _undisturbed() -> Generator[None, None, None]:
    """Ignores the signals that ask a run to stop: the last upload ends by itself. Ctrl-C still ends it at once."""
    asking = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in asking}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # JAX's own, which Python cannot put back. The command ends now.
                signal.signal(number, handler)


def _drop_if_behind(folder: Path, location: CloudLocation) -> None:
    """Removes this host's copy if the cloud's is newer. The copy with the longer log is the newer one."""
    here = (folder / LOG).stat().st_size if (folder / LOG).exists() else 0
    there = max((entry.size for entry in location.entries() if entry.key == LOG), default=0)
    if there > here:
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(url: str) -> str | None:
    """The URL to which Orbax writes checkpoints directly; None if they are files of the workdir here."""
    return f"{url.rstrip('/')}/checkpoints" if url.startswith("gs://") else None


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
