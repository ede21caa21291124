"""DX7 voices in .syx files: every known bank comes back byte for byte, and odd files are read or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.synths.dexed.syx import BANK_BYTES, checksum, read_syx, write_banks, write_single
from data_pipeline.synths.dexed.voice import INIT_VOICE, LARGEST, Voice


def drawn(seed: int) -> Voice:
    generator = np.random.default_rng(seed)
    return Voice(f"DRAWN {seed}", {name: int(generator.integers(0, most + 1)) for name, most in LARGEST.items()})


VOICES = [drawn(seed) for seed in range(32)]
(BANK,) = write_banks(VOICES)


def with_value(name: str, value: int) -> Voice:
    return Voice("ODD", {**INIT_VOICE.values, name: value})


def test_every_bank_of_people_comes_back_byte_for_byte(shared_data: Path) -> None:
    files = sorted((shared_data / "dx7_presets").glob("*.syx"))
    assert files
    for path in files:
        found = read_syx(path.read_bytes())
        assert (len(found.voices), found.remarks) == (32, [])
        assert write_banks(found.voices) == [path.read_bytes()]
        assert [read_syx(write_single(voice)).voices for voice in found.voices] == [[voice] for voice in found.voices]


def test_a_voice_has_the_values_and_bytes_of_the_dx7() -> None:
    assert len(LARGEST) == 145
    assert (len(INIT_VOICE.single()), len(INIT_VOICE.packed())) == (155, 128)
    # The initial voice as the DX7's manual lists it: operator 6 silent, operator 1 at 99, all rates 99.
    single = INIT_VOICE.single()
    assert single[:21] == bytes([99, 99, 99, 99, 99, 99, 99, 0, 39, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7])
    assert single[105:126] == bytes([99, 99, 99, 99, 99, 99, 99, 0, 39, 0, 0, 0, 0, 0, 0, 0, 99, 0, 1, 0, 7])
    assert single[126:145] == bytes([99, 99, 99, 99, 50, 50, 50, 50, 0, 0, 1, 35, 0, 0, 0, 1, 0, 3, 24])
    assert single[145:] == b"INIT VOICE"


@pytest.mark.parametrize("voice", VOICES[:4])
def test_both_layouts_hold_a_voice(voice: Voice) -> None:
    assert Voice.from_packed(voice.packed()) == Voice.from_single(voice.single()) == voice


def test_messages_have_the_sizes_and_sums_of_the_format() -> None:
    single = write_single(VOICES[0])
    assert (len(BANK), len(single)) == (4104, 163)
    assert (BANK[:6], single[:6]) == (bytes.fromhex("F04300092000"), bytes.fromhex("F0430000011B"))
    for message in (BANK, single):
        assert message[-1] == 0xF7
        assert sum(message[6:-1]) % 128 == 0
    assert BANK[1:-1].isascii()


@pytest.mark.parametrize(("count", "banks"), [(0, 0), (1, 1), (32, 1), (33, 2)])
def test_the_last_bank_is_filled_with_the_initial_voice(count: int, banks: int) -> None:
    written = write_banks((VOICES * 2)[:count])
    found = read_syx(b"".join(written)).voices if written else []
    assert len(written) == banks
    assert found[:count] == (VOICES * 2)[:count]
    assert all(voice == INIT_VOICE for voice in found[count:])


OTHER_MAKER = bytes.fromhex("F0 41 10 42 12 40 00 7F 00 41 F7")
OTHER_YAMAHA = bytes.fromhex("F0 43 10 4C 00 00 7E 00 F7")


@pytest.mark.parametrize(
    ("content", "voices", "remarks"),
    [
        (BANK[6:-2], VOICES, ["without the message"]),
        (BANK[:-1], VOICES, []),
        (BANK.replace(b"\xf0\x43\x00", b"\xf0\x43\x05"), VOICES, []),
        (BANK + write_single(VOICES[3]) + BANK, [*VOICES, VOICES[3], *VOICES], []),
        (OTHER_MAKER + BANK + OTHER_YAMAHA, VOICES, ["2 messages skipped"]),
        (b"junk" + BANK + b"\0\0", VOICES, ["6 bytes outside messages"]),
        (BANK[:-2] + bytes([BANK[-2] ^ 1, 0xF7]), VOICES, ["checksum"]),
        (BANK + BANK[:3000], VOICES, ["1 message skipped: no DX7 voices, or cut short"]),
    ],
)
def test_odd_files_are_read_and_what_is_odd_is_said(content: bytes, voices: list[Voice], remarks: list[str]) -> None:
    found = read_syx(content)
    assert found.voices == voices
    assert len(found.remarks) == len(remarks)
    for said, words in zip(found.remarks, remarks, strict=True):
        assert words in said


@pytest.mark.parametrize(("name", "value"), [("op_2_frequency_fine", 127), ("transpose", 100), ("lfo_wave", 7)])
def test_a_value_beyond_its_range_is_named_and_written_as_the_end_of_its_range(name: str, value: int) -> None:
    odd = with_value(name, value)
    content = bytearray(write_single(INIT_VOICE))
    content[6:-2] = odd.single()
    content[-2] = checksum(odd.single())
    found = read_syx(bytes(content))
    assert found.voices[0].values[name] == value
    assert found.remarks == [f"voice 1 (ODD): {name} is {value}, beyond its range"]
    assert read_syx(write_single(found.voices[0])).voices[0].values[name] == LARGEST[name]
    assert read_syx(write_banks(found.voices)[0]).voices[0].values[name] == LARGEST[name]


def test_high_bits_and_names_that_are_no_text_are_read() -> None:
    packed = bytes(byte | 0x80 for byte in VOICES[1].packed()[:118]) + b"A\x01B\x7fC\xc4   \0"
    voice = Voice.from_packed(packed)
    assert voice.values == VOICES[1].values
    assert voice.name == "A B CD"


@pytest.mark.parametrize(
    "content",
    [b"", b"\xf0", b"\xf7", BANK[:100], BANK[: BANK_BYTES - 1], OTHER_MAKER, b"VST3" * 50, b"\xf0\x43\x00\x09\x20\x00"],
)
def test_files_without_voices_are_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="no DX7 voices"):
        read_syx(content)


def test_any_damage_is_read_or_refused() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(BANK + write_single(VOICES[0]))
        for place in generator.integers(0, len(content), generator.integers(1, 20)):
            content[place] = generator.integers(0, 256)
        try:
            found = read_syx(bytes(content[: generator.integers(0, len(content) + 1)]))
        except UserError:
            continue
        for bank in write_banks(found.voices):
            assert read_syx(bank).remarks == []
