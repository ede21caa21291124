"""Runs in clouds: their files lie on this host while they are used, and are mirrored there.

On gs:// the processes of a run write checkpoints straight to the cloud, each its part. s3:// has a copy of those on the
disk of one host, so that a run there has one.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from data_pipeline.cli import UserError
from data_pipeline.locations import CloudLocation
from data_pipeline.mirror import Mirror
from data_pipeline.staging import cache_folder
from data_pipeline.storage_urls import is_url, open_cloud
from synthjax import distributed
from synthjax.workdir import Workdir

LOG = "metrics.jsonl"


@contextmanager
def training(path: str) -> Generator[Workdir, None, None]:
    """The workdir of a run that trains, on this host; of a URL it is mirrored until the run ends.

    Raises:
      UserError: if the cloud cannot be read, or not take a run of several processes.
    """
    if not is_url(path):
        yield Workdir(path)
        return
    if _checkpoints(path) is None and jax.process_count() > 1:
        raise UserError("several processes cannot train in one s3:// folder: use gs://, or a folder that all see")
    if not distributed.is_main():  # Writes nothing but its part of the checkpoints.
        with TemporaryDirectory() as elsewhere:
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
        mirror.close()


@contextmanager
def reading(path: str | Path) -> Generator[Workdir, None, None]:
    """The workdir of a run to read from, on this host while the context lasts.

    Raises:
      UserError: if the cloud cannot be read.
    """
    if not is_url(str(path)):
        yield Workdir(path)
        return
    with TemporaryDirectory() as folder:
        if not Mirror(Path(folder), str(path), _warn).restore():
            raise UserError(f"no run at {path}: give the --workdir of a training run")
        yield Workdir(folder, _checkpoints(str(path)))


def _drop_if_behind(folder: Path, location: CloudLocation) -> None:
    """Removes what is here of a run that has got further in the cloud: the one with the longer log is the later one."""
    here = (folder / LOG).stat().st_size if (folder / LOG).exists() else 0
    there = max((entry.size for entry in location.entries() if entry.key == LOG), default=0)
    if there > here:
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(url: str) -> str | None:
    """Where Orbax writes them by itself; None for beside the other files."""
    return f"{url.rstrip('/')}/checkpoints" if url.startswith("gs://") else None


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
