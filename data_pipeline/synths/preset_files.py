"""Preset files that people own: their patches for people to read, and conversion between formats of a synthesizer."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.synths.dexed import preset_files as dexed
from data_pipeline.synths.shown_patch import ShownPatch
from data_pipeline.synths.surge import preset_files as surge
from data_pipeline.synths.vst3_preset import read_preset_file


class PresetFormat(Protocol):
    """A module that reads and writes a synthesizer's preset files, given and returned as bytes."""

    def show(self, content: bytes) -> tuple[list[ShownPatch], list[str]]:
        """The patches of a file, and a line for each unusual thing in it. Raises UserError if it is malformed."""
        ...

    def convert(self, content: bytes, ending: str) -> bytes:
        """The same patches as a file of another ending. Raises UserError if the file is malformed."""
        ...


# The list of preset files: the end of a file's name -> the module that reads and writes it.
FORMATS: dict[str, PresetFormat] = {".syx": dexed, ".fxp": surge, ".vstpreset": surge}


def show(path: Path) -> tuple[list[ShownPatch], list[str]]:
    """The patches of a preset file and remarks, as ``PresetFormat.show``. Raises UserError."""
    module = _format_of(path)
    content = read_preset_file(path)
    try:
        return module.show(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def convert(source: Path, target: Path) -> list[str]:
    """Writes the patches of ``source`` to ``target``, in the format of its ending.

    Returns remarks on the source. Raises UserError.
    """
    module = _format_of(source)
    if _format_of(target) is not module:
        raise UserError(f"{source} and {target} are files of different synthesizers: no patch goes from one to another")
    if target.exists():
        raise UserError(f"{target} exists: remove it or name another file")
    _, remarks = show(source)
    content = module.convert(read_preset_file(source), target.suffix.lower())
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return remarks


def _format_of(path: Path) -> PresetFormat:
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} is no preset file that is known here: its name must end in {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]
