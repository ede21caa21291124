"""A local folder as a location."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.cloud.errors import replaced
from data_pipeline.cloud.locations import BLOCK, Entry, Sink, check_key, file_checksum
from data_pipeline.console.cli import UserError
from data_pipeline.console.file_lock import LOCK_FILE
from data_pipeline.console.os_errors import why

PART_SUFFIX = ".part"


class LocalFolder:
    """The files below a folder; links are followed. The constructor touches nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def url(self) -> str:
        return str(self.folder)

    def below(self, name: str) -> LocalFolder:
        return LocalFolder(self.folder / name)

    def path(self, key: str) -> Path:
        """The path of a file. Raises UserError for a key that leads out of the folder."""
        check_key(key, self.url)
        return self.folder / key

    def entries(self) -> list[Entry]:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file: name the folder that it lies in")
        try:
            return sorted(self._entries(), key=lambda entry: entry.key)
        except OSError as error:
            raise UserError(f"cannot read {error.filename or self.folder}: {why(error)}") from error

    def _entries(self) -> Iterator[Entry]:
        seen: set[str] = set()
        for parent, folders, names in os.walk(self.folder, onerror=_raise, followlinks=True):
            # A link to a folder above would be followed without end.
            if os.path.realpath(parent) in seen:
                folders.clear()
                continue
            seen.add(os.path.realpath(parent))
            for path in (Path(parent) / name for name in names if not _is_ours(name)):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    if path.is_symlink():  # A broken link: leaving it out would lose a file.
                        raise
                    continue  # Removed since the folder was listed.
                if stat.S_ISREG(status.st_mode):
                    yield Entry(path.relative_to(self.folder).as_posix(), status.st_size, str(status.st_mtime_ns))

    def checksum(self, entry: Entry) -> str | None:
        return file_checksum(self.path(entry.key), "sha256", lambda count: None)

    def download(self, entry: Entry, sink: Sink, offset: int) -> None:
        path = self.path(entry.key)
        try:
            if str(path.stat().st_mtime_ns) != entry.version:
                raise replaced(str(path))
            file = path.open("rb")
        except OSError as error:
            raise UserError(f"cannot read {path}: {why(error)}") from error
        with file:
            file.seek(offset)
            while block := file.read(BLOCK):
                sink.write(block)


def _is_ours(name: str) -> bool:
    """Whether a file belongs to a transfer that runs or was interrupted."""
    return name == LOCK_FILE or (name.startswith(".") and name.endswith(PART_SUFFIX))


def _raise(error: OSError) -> None:
    # os.walk would skip an unreadable folder without an error. A missing folder has no files.
    if not isinstance(error, FileNotFoundError):
        raise error
