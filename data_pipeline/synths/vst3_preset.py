"""The VST3 preset container, ``.vstpreset``: named chunks of bytes. The chunk ``Comp`` holds the plugin's own state.

The format is that of the VST 3 documentation ("Preset Format"), all integers little-endian:

    offset   size
         0      4   "VST3"
         4      4   version, 1
         8     32   the plugin's class id, hexadecimal ASCII
        40      8   offset of the chunk list
         .      .   chunks
         .      4   "List", where the offset says
                4   number of entries
               20   each entry: id (4), offset (8), size (8)
"""

from __future__ import annotations

import struct
from pathlib import Path

from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why

# Sampled wavetables make presets large, but no honest preset comes near this.
MAX_PRESET_BYTES = 64 << 20
MAX_CHUNKS = 128

_HEADER = struct.Struct("<4si32sq")
_LIST = struct.Struct("<4si")
_ENTRY = struct.Struct("<4sqq")
_STATE = b"Comp"


def build_container(class_id: bytes, state: bytes) -> bytes:
    """Makes the smallest valid preset that holds a state of the plugin with this class id (32 ASCII digits)."""
    header = _HEADER.pack(b"VST3", 1, class_id, _HEADER.size + len(state))
    return b"".join((header, state, _LIST.pack(b"List", 1), _ENTRY.pack(_STATE, _HEADER.size, len(state))))


def class_id(preset: bytes) -> str:
    """The class id of the plugin that a preset belongs to, 32 hexadecimal digits. ``read_state`` checks the preset."""
    return preset[8:40].decode("ascii", "replace").upper()


def read_state(preset: bytes) -> bytes:
    """Reads the plugin's own state from a preset, which may have other chunks. Raises UserError if it is malformed."""
    if len(preset) < _HEADER.size or len(preset) > MAX_PRESET_BYTES:
        raise UserError(f"not a VST3 preset: {len(preset)} bytes")
    magic, _, _, list_offset = _HEADER.unpack_from(preset)
    if magic != b"VST3":
        raise UserError("not a VST3 preset: it does not start with VST3")
    if not _HEADER.size <= list_offset <= len(preset) - _LIST.size:
        raise UserError("VST3 preset is damaged: its chunk list lies outside the file")
    list_magic, count = _LIST.unpack_from(preset, list_offset)
    first_entry = list_offset + _LIST.size
    if list_magic != b"List" or not 0 < count <= MAX_CHUNKS or first_entry + count * _ENTRY.size > len(preset):
        raise UserError("VST3 preset is damaged: its chunk list is malformed")
    for index in range(count):
        chunk, offset, size = _ENTRY.unpack_from(preset, first_entry + index * _ENTRY.size)
        if chunk == _STATE:
            if not (offset >= _HEADER.size and 0 <= size <= len(preset) - offset):
                raise UserError("VST3 preset is damaged: the plugin's state lies outside the file")
            return preset[offset : offset + size]
    raise UserError("VST3 preset has no chunk with the plugin's state (Comp)")


def read_preset_file(path: Path) -> bytes:
    """Reads the bytes of a preset file. Raises UserError if it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            preset = file.read(MAX_PRESET_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the preset {path}: {why(error)}") from error
    if len(preset) > MAX_PRESET_BYTES:
        raise UserError(f"preset {path} is larger than {MAX_PRESET_BYTES >> 20} MiB")
    return preset
