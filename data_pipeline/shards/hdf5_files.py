"""Opens and writes HDF5 files, and finds the files that an HDF5 file points at, by HDF5's own rules.

A file from elsewhere may point at any path of this machine. So it may only point at files (symbolic links resolved)
under the parent of its own folder, or under a folder that the environment variable HDF5_VDS_PREFIX names, unless the
caller allows more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (importing it registers Blosc2 and the other filters)

from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import errno_of, why, why_unreadable

VDS_PREFIX = "HDF5_VDS_PREFIX"
EXTERNAL_LINK_PREFIX = "HDF5_EXT_PREFIX"
ORIGIN = "${ORIGIN}"
# Errors that h5py raises for damaged files, and for errors of the system.
HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)
LOCK_FAILED = "unable to lock file"
OPEN_UNLOCKED = "file locking flag values don't match"  # This process has opened the same file without a lock.
HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES)


def open_hdf5(path: Path) -> h5py.File:
    """Opens an HDF5 file for reading. Raises UserError with the reason if that fails."""
    with reporting_damage(path):
        if not path.exists():
            raise UserError(f"{path}: does not exist")
        if not path.is_file():
            raise UserError(f"{path}: is not a file")
        return open_without_need_of_lock(path)


def open_without_need_of_lock(path: Path) -> h5py.File:
    """Opens an HDF5 file for reading, also where the file system has no locks. Raises h5py's errors."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not any(symptom in str(error) for symptom in (LOCK_FAILED, OPEN_UNLOCKED)):
            raise
        if errno_of(error) in HELD_BY_ANOTHER:
            raise
        # The lock would only show that another program is writing the file.
        return h5py.File(path, "r", locking=False)


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turns errors of h5py, for a damaged file or of the system, into a UserError."""
    try:
        yield
    except HDF5_ERRORS as error:
        raise UserError(f"{path}: {reason(error)}") from error


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yields an HDF5 file to write. It appears at ``path`` only if the block succeeds.

    Raises UserError if it cannot be written.
    """
    with atomic_path(path) as temporary, written_hdf5(temporary) as file:
        yield file


@contextmanager
def written_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yields an HDF5 file to write, in place of any at ``path``. Raises OSError if the system cannot write it."""
    try:
        # Nobody else knows of the file yet, so no lock is needed: some file systems have none.
        with h5py.File(path, "w", locking=False) as file:
            yield file
    except (OSError, RuntimeError) as error:
        # HDF5's message for a full disk has several lines, and is a RuntimeError if closing fails too.
        if code := errno_of(error):
            raise OSError(code, os.strerror(code)) from error
        raise


def local_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset stored in the file itself. Raises UserError if there is none, or for a link to elsewhere."""
    node: Any = file
    for part in name.strip("/").split("/"):
        try:
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                raise UserError(f"{file.filename}: has no dataset {name}")
            if not isinstance(link, h5py.HardLink):
                raise UserError(f"{file.filename}: {name} is a link to elsewhere, which is not followed")
            node = node[part]
        except HDF5_ERRORS as error:
            raise UserError(f"{file.filename}: {name} {reason(error)}") from error
    if not isinstance(node, h5py.Dataset):
        raise UserError(f"{file.filename}: {name} is not a dataset")
    return node


def resolve(stored: str, owner: Path, prefix_variable: str, *, allow_external: bool = False) -> Path:
    """The file that HDF5 opens for a name stored in ``owner``: the first candidate that exists. Opens nothing.

    Raises UserError if no candidate exists, or if it lies outside the permitted folders.
    """
    if stored == ".":  # HDF5's name for the file itself.
        return owner
    for candidate in _candidates(stored, owner, prefix_variable):
        if candidate.is_file():
            if not allow_external:
                _check_permitted(candidate, stored, owner)
            return candidate
    hint = " (its backslashes were written on Windows: run splits again)" if "\\" in stored else ""
    raise UserError(
        f"{owner}: its source {stored} is missing{hint}: move it back, run splits again, or set {prefix_variable}"
    )


def _candidates(stored: str, owner: Path, prefix_variable: str) -> Iterator[Path]:
    """The paths that HDF5 tries, in its order (``H5F_prefix_open_file``)."""
    name = stored
    if os.path.isabs(name):
        yield Path(name)
        name = os.path.basename(name)
    yield from (folder / name for folder in _prefix_folders(owner, prefix_variable))
    yield owner.absolute().parent / name
    yield Path(name)
    yield owner.resolve().parent / name


def _prefix_folders(owner: Path, prefix_variable: str) -> list[Path]:
    """The folders of an environment variable: a list, then (virtual sources) a folder that may begin with ORIGIN."""
    prefix = os.environ.get(prefix_variable, "")
    folders = [Path(folder) for folder in prefix.split(os.pathsep) if folder]
    if prefix_variable == VDS_PREFIX and prefix not in ("", "."):
        if prefix.startswith(ORIGIN):
            prefix = str(owner.absolute().parent) + prefix.removeprefix(ORIGIN)
        folders.append(Path(prefix))
    return folders


def _check_permitted(candidate: Path, stored: str, owner: Path) -> None:
    home = owner.parent.resolve()
    # The file system's root is never permitted: it would permit every file.
    top = home if home.parent == Path(home.anchor) else home.parent
    permitted = [top, *(folder.resolve() for folder in _prefix_folders(owner, VDS_PREFIX))]
    target = candidate.resolve()
    if not any(target.is_relative_to(folder) for folder in permitted):
        raise UserError(
            f"{owner}: its source {stored} leads to {target}, outside {top}: refused without --allow_external "
            "(in training: --config.data.allow_external=True)"
        )


def reason(error: BaseException, damage: str = "is damaged") -> str:
    """An error of h5py in words for the user; ``damage`` begins those for a damaged file."""
    message = str(error)
    if "truncated file" in message:
        return "is truncated: copied or written only in part"
    if "file signature not found" in message:
        return "is not an HDF5 file"
    if LOCK_FAILED not in message:
        return why_unreadable(error, damage)
    if errno_of(error) in HELD_BY_ANOTHER:
        return "is being written by another process"
    return f"cannot be locked: {why(error)}; to read without a lock, set HDF5_USE_FILE_LOCKING=FALSE"
