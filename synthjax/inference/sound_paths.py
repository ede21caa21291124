"""The sound files that a command is given, and the names of its results."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

from data_pipeline.console.cli import UserError

# The formats that libsndfile knows by their headers; "raw" has none.
EXTENSIONS = {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"} | {".aif", ".oga", ".opus"}
# File systems allow names of 255 bytes. The rest is left for the extension and the suffix of a temporary file.
MAX_NAME_BYTES = 200


def find_sounds(paths: Iterable[str | Path]) -> list[Path]:
    """The given files, and every sound file under the given folders in the order of their paths; each once.

    Hidden files are left out. Raises UserError for a folder without sounds.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_sound(file.relative_to(path)) and file.is_file())
            if not inside:
                raise UserError(f"{path}: no sound file in this folder")
            found |= dict.fromkeys(inside)
        else:
            found[path] = None
    return list(found)


def _is_sound(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in path.parts)


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
