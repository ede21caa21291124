"""DX7 voices in ``.syx`` files, which are MIDI System Exclusive messages.

Dexed, the DX7 and its clones read and write them.

    bank     F0 43 0n 09 20 00   32 voices of 128 bytes   checksum F7     4,104 bytes
    voice    F0 43 0n 00 01 1B   1 voice of 155 bytes     checksum F7       163 bytes

n is the MIDI channel. The checksum makes the sum of the voices' bytes and itself a multiple of 128. Many files hold a
bank without the message around it: 4,096 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_pipeline.console.cli import UserError, counted
from data_pipeline.synths.dexed.voice import INIT_VOICE, PACKED_BYTES, SINGLE_BYTES, Voice

BANK_VOICES = 32
BANK_BYTES = BANK_VOICES * PACKED_BYTES

_START, _END, _YAMAHA = 0xF0, 0xF7, 0x43
# The kind of a message (format, size of its content in seven bits a byte), and the bytes of its content.
_BANK, _SINGLE = bytes([0x09, 0x20, 0x00]), bytes([0x00, 0x01, 0x1B])
_CONTENT_BYTES = {_BANK: BANK_BYTES, _SINGLE: SINGLE_BYTES}


@dataclass
class SyxFile:
    """Voices of a file in its order, values as they stand in it, and one line for each thing that is unusual."""

    voices: list[Voice] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read_syx(content: bytes) -> SyxFile:
    """Reads the voices of a file's content. Raises UserError where there are none."""
    found = SyxFile()
    if len(content) == BANK_BYTES and content[:1] != bytes([_START]):
        found.remarks.append("the file is a bank without the message around it")
        found.voices += _bank_voices(content)
    else:
        _read_messages(content, found)
    if not found.voices:
        raise UserError(f"no DX7 voices in {counted(len(content), 'byte')}: a bank has 4,104 or 4,096, a voice 163")
    found.remarks += [
        f"voice {number} ({voice.name}): {name} is {value}, beyond its range"
        for number, voice in enumerate(found.voices, start=1)
        for name, value in voice.beyond_range().items()
    ]
    return found


def _read_messages(content: bytes, found: SyxFile) -> None:
    skipped = between = position = 0
    while (start := content.find(_START, position)) >= 0:
        between += start - position
        header, size = content[start + 1 : start + 6], _CONTENT_BYTES.get(content[start + 3 : start + 6], 0)
        is_voices = size and header[0] == _YAMAHA and header[1] < 0x10
        end = start + 6 + size + 1 if is_voices else content.find(_END, start)
        # The last byte of a file may have been lost: nothing depends on it.
        if is_voices and end <= len(content) and content[end : end + 1] in (b"", bytes([_END])):
            _read_voices(content[start + 6 : end], size, found)
        else:
            skipped += 1
        position = min(end + 1, len(content)) if end > start else len(content)
    between += len(content) - position
    if skipped:
        found.remarks.append(f"{counted(skipped, 'message')} skipped: no DX7 voices, or cut short")
    if between:
        found.remarks.append(f"{counted(between, 'byte')} outside messages skipped")


def _read_voices(content: bytes, size: int, found: SyxFile) -> None:
    voices, sum_found = content[:size], content[size]
    if sum_found != checksum(voices):
        found.remarks.append(f"the checksum of a message is {sum_found}, not {checksum(voices)}; its voices were read")
    found.voices += _bank_voices(voices) if size == BANK_BYTES else [Voice.from_single(voices)]


def _bank_voices(content: bytes) -> list[Voice]:
    return [Voice.from_packed(content[start : start + PACKED_BYTES]) for start in range(0, BANK_BYTES, PACKED_BYTES)]


def write_single(voice: Voice) -> bytes:
    """The message (163 bytes) that sends one voice to a synthesizer's edit buffer."""
    return _message(_SINGLE, voice.limited().single())


def write_banks(voices: Sequence[Voice]) -> list[bytes]:
    """The messages (4,104 bytes each) with these voices, 32 a bank. The DX7's initial voice fills the last one."""
    banks = []
    for start in range(0, len(voices), BANK_VOICES):
        bank = [*voices[start : start + BANK_VOICES]]
        bank += [INIT_VOICE] * (BANK_VOICES - len(bank))
        banks.append(_message(_BANK, b"".join(voice.limited().packed() for voice in bank)))
    return banks


def checksum(content: bytes) -> int:
    """The last byte of a message: it makes the sum of all bytes a multiple of 128."""
    return -sum(content) & 0x7F


def _message(form: bytes, content: bytes) -> bytes:
    return bytes([_START, _YAMAHA, 0x00]) + form + content + bytes([checksum(content), _END])
