"""Opens and writes HDF5 files, and finds the files that an HDF5 file points at, by HDF5's own rules.

A file from elsewhere may point at any path of this machine. So it may only point at files (symbolic links resolved)
under the parent of its own folder, or under a folder that the environment variable HDF5_VDS_PREFIX names, unless the
caller allows more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (importing it registers Blosc2 and the other filters)

from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError

VDS_PREFIX = "HDF5_VDS_PREFIX"
EXTERNAL_LINK_PREFIX = "HDF5_EXT_PREFIX"
ORIGIN = "${ORIGIN}"
# Errors that h5py raises for damaged files.
HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)


def open_hdf5(path: Path) -> h5py.File:
    """Opens an HDF5 file for reading. Raises UserError with the reason if that fails."""
    if not path.exists():
        raise UserError(f"{path}: does not exist")
    if not path.is_file():
        raise UserError(f"{path}: is not a file")
    with reporting_damage(path):
        return h5py.File(path, "r")


@contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turns errors of h5py for a damaged file into a UserError."""
    try:
        yield
    except HDF5_ERRORS as error:
        raise UserError(f"{path}: {_reason(str(error))}") from error


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Yields an HDF5 file to write. It appears at ``path`` only if the block succeeds.

    Raises UserError if it cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            with h5py.File(temporary, "w") as file:
                yield file
        except (OSError, RuntimeError) as error:
            # HDF5's message for a full disk has several lines, and is a RuntimeError if closing fails too.
            if code := re.search(r"errno = ([0-9]+)", str(error)):
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
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
            raise UserError(f"{file.filename}: {name} {_reason(str(error))}") from error
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


def _reason(message: str) -> str:
    """h5py's message in words for the user."""
    for symptom, reason in (
        ("truncated file", "is truncated: copied or written only in part"),
        ("file signature not found", "is not an HDF5 file"),
        ("unable to lock file", "is being written by another process"),
        ("Permission denied", "may not be read: permission denied"),
    ):
        if symptom in message:
            return reason
    return f"is damaged: {message}"
