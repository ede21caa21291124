"""Preset files of every synthesizer: their patches, and conversion between the formats of one synthesizer."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.synths.choice import instrument_of_file
from data_pipeline.synths.instrument import FilePatch
from data_pipeline.synths.vst3_preset import read_preset_file


def read(path: Path) -> tuple[list[FilePatch], list[str]]:
    """The patches of a preset file, and a line for each unusual thing in it. Raises UserError."""
    instrument = instrument_of_file(path)
    content = read_preset_file(path)
    try:
        return instrument.read(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def convert(source: Path, target: Path) -> list[str]:
    """Writes the patches of ``source`` to ``target``, in the format of its ending.

    Returns remarks on the source. Raises UserError.
    """
    instrument = instrument_of_file(source)
    if instrument_of_file(target) is not instrument:
        raise UserError(f"{source} and {target} are files of different synthesizers: no patch goes from one to another")
    if target.exists():
        raise UserError(f"{target} exists: remove it or name another file")
    _, remarks = read(source)
    content = instrument.convert(read_preset_file(source), target.suffix.lower())
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return remarks
