"""The sound files that a command is given, and the names of its results."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import soundfile

from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why

# The formats that libsndfile knows by their headers; "raw" has none.
EXTENSIONS = {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"} | {".aif", ".oga", ".opus"}
# File systems allow names of 255 bytes. The rest is left for the extension and the suffix of a temporary file.
MAX_NAME_BYTES = 200


def _say(line: str) -> None:
    print(f"left out: {line}", file=sys.stderr, flush=True)


def find_sounds(paths: Iterable[str | Path], leave_out: Callable[[str], object] = _say) -> list[Path]:
    """The given files, and every sound file under the given folders in the order of their paths; each once.

    ``leave_out`` is called with a line for everything in the folders that may be or hold a sound and cannot be taken: a
    link to a folder, a broken link, an unreadable folder. Hidden files do not count. Raises UserError for a folder
    without sounds.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside, left_out = _walk(path)
            if not inside:
                raise UserError(f"{path}: no sound file in this folder{_named(left_out)}")
            found |= dict.fromkeys(inside)
            for line in left_out:
                leave_out(line)
        else:
            found[path] = None
    return list(found)


def _walk(folder: Path) -> tuple[list[Path], list[str]]:
    """The sounds under a folder and a line for everything that is left out, both sorted."""
    sounds: list[Path] = []
    left_out: list[str] = []

    def unreadable(error: OSError) -> None:
        left_out.append(f"{error.filename}: this folder cannot be read: {why(error)}")

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in folders):
            if path.is_symlink():
                left_out.append(f"{path}: links to folders are not followed: put the folder itself there")
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            is_sound = path.suffix.lower() in EXTENSIONS
            if is_sound and os.path.isfile(path):
                sounds.append(path)
            elif path.is_symlink() and not os.path.exists(path):  # It may have led to a folder of sounds.
                left_out.append(f"{path}: this link leads to nothing that can be read")
            elif is_sound:
                left_out.append(f"{path}: is no file that can be read")
    return sorted(sounds), sorted(left_out)


def _named(left_out: Sequence[str]) -> str:
    more = f", and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    return f" (left out: {left_out[0]}{more})" if left_out else ""


def result_names(sounds: Sequence[Path]) -> list[str]:
    """A name without extension for the results of each sound: the sound's own, shortened or numbered if necessary.

    No two names are equal on a file system that ignores case. A name depends only on the sounds before it.
    """
    taken: set[str] = set()
    names = []
    for sound in sounds:
        stem = _shortened(sound.stem)
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem} ({number})"
        taken.add(name.casefold())
        names.append(name)
    return names


def require_apart(sounds: Sequence[Path], output: Path) -> None:
    """Raises UserError if a rendered result, NAME.wav in ``output``, would replace one of ``sounds``."""
    given = {_identity(sound) for sound in sounds if sound.exists()}
    for name in result_names(sounds):
        path = output / f"{name}.wav"
        if path.exists() and _identity(path) in given:
            raise UserError(f"the results would replace {path}: choose another --output")


def _identity(path: Path) -> tuple[int, int]:
    """The file's identity, equal for all its names: some file systems ignore case."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _shortened(stem: str) -> str:
    data = os.fsencode(stem)
    if len(data) <= MAX_NAME_BYTES:
        return stem
    # The digest keeps names apart that differ only at their ends.
    mark = hashlib.sha256(data).hexdigest()[:8]
    return data[: MAX_NAME_BYTES - 9].decode(errors="ignore") + "~" + mark
