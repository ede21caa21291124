"""A voice of the DX7: its 145 values by name, and its two byte layouts.

A single voice has 155 bytes, one a value, then ten characters of a name. A bank packs each voice into 128 bytes, where
small values share a byte. Both layouts are those of the DX7 manual ("MIDI data format"), with operator 6 first. Values
are the DX7's own integers: 0 to 99, 0 to 31 and so on, the algorithm from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

SINGLE_BYTES, PACKED_BYTES, NAME_BYTES = 155, 128, 10

# Values of one operator in the order of a single voice, with the largest value of each.
OPERATOR = {
    **{f"eg_rate_{i}": 99 for i in (1, 2, 3, 4)},
    **{f"eg_level_{i}": 99 for i in (1, 2, 3, 4)},
    **{"breakpoint": 99, "left_depth": 99, "right_depth": 99, "left_curve": 3, "right_curve": 3},
    **{"rate_scaling": 7, "amp_mod_sensitivity": 3, "velocity_sensitivity": 7, "output_level": 99},
    **{"frequency_mode": 1, "frequency_coarse": 31, "frequency_fine": 99, "detune": 14},
}
# Values of the whole voice, which follow the operators.
COMMON = {
    **{f"pitch_eg_rate_{i}": 99 for i in (1, 2, 3, 4)},
    **{f"pitch_eg_level_{i}": 99 for i in (1, 2, 3, 4)},
    **{"algorithm": 31, "feedback": 7, "oscillator_key_sync": 1},
    **{"lfo_speed": 99, "lfo_delay": 99, "lfo_pitch_mod_depth": 99, "lfo_amp_mod_depth": 99},
    **{"lfo_key_sync": 1, "lfo_wave": 5, "pitch_mod_sensitivity": 7, "transpose": 48},
}
OPERATORS = (6, 5, 4, 3, 2, 1)
# The largest value of each name, in the order of a single voice.
LARGEST = {f"op_{op}_{name}": most for op in OPERATORS for name, most in OPERATOR.items()} | COMMON

# The packed bytes of an operator and of the common values that hold several values: (name, bits), lowest bits first.
# A byte that is not listed holds one value of seven bits.
_PACKED_OPERATOR = (
    *(((name, 7),) for name in list(OPERATOR)[:11]),
    (("left_curve", 2), ("right_curve", 2)),
    (("rate_scaling", 3), ("detune", 4)),
    (("amp_mod_sensitivity", 2), ("velocity_sensitivity", 3)),
    (("output_level", 7),),
    (("frequency_mode", 1), ("frequency_coarse", 5)),
    (("frequency_fine", 7),),
)
_PACKED_COMMON = (
    *(((name, 7),) for name in list(COMMON)[:8]),
    (("algorithm", 5),),
    (("feedback", 3), ("oscillator_key_sync", 1)),
    *(((name, 7),) for name in list(COMMON)[11:15]),
    (("lfo_key_sync", 1), ("lfo_wave", 3), ("pitch_mod_sensitivity", 3)),
    (("transpose", 7),),
)
# (name, bits) of every byte of a packed voice, before its name.
_PACKED = (
    *(tuple((f"op_{op}_{name}", bits) for name, bits in byte) for op in OPERATORS for byte in _PACKED_OPERATOR),
    *_PACKED_COMMON,
)


@dataclass(frozen=True)
class Voice:
    """A voice: ``values`` has an integer for each name of ``LARGEST``; ``name`` has at most ten ASCII characters."""

    name: str
    values: Mapping[str, int]

    def beyond_range(self) -> dict[str, int]:
        """The values that exceed the largest one of their name, as files of unknown origin hold them."""
        return {name: value for name, value in self.values.items() if value > LARGEST[name]}

    def limited(self) -> Voice:
        """The voice with every value beyond its range set to the largest of its name."""
        return Voice(self.name, {name: min(value, LARGEST[name]) for name, value in self.values.items()})

    @classmethod
    def from_single(cls, content: bytes) -> Voice:
        """Reads the 155 bytes of a single voice. Bit 7 of a byte has no meaning."""
        values = [byte & 0x7F for byte in content[: len(LARGEST)]]
        return cls(_text(content[len(LARGEST) : SINGLE_BYTES]), dict(zip(LARGEST, values, strict=True)))

    @classmethod
    def from_packed(cls, content: bytes) -> Voice:
        """Reads the 128 bytes of a voice in a bank. Bits without a meaning are left out."""
        return cls(_text(content[len(_PACKED) : PACKED_BYTES]), dict(_unpack(content)))

    def single(self) -> bytes:
        """The 155 bytes of a single voice."""
        return bytes(self.values[name] for name in LARGEST) + self._name_bytes()

    def packed(self) -> bytes:
        """The 128 bytes of the voice in a bank. The values must be in range."""
        content = bytearray()
        for byte in _PACKED:
            packed = shift = 0
            for name, bits in byte:
                packed |= self.values[name] << shift
                shift += bits
            content.append(packed)
        return bytes(content) + self._name_bytes()

    def _name_bytes(self) -> bytes:
        return self.name.encode("ascii", "replace")[:NAME_BYTES].ljust(NAME_BYTES)


def _unpack(content: bytes) -> Iterator[tuple[str, int]]:
    for byte, packed in zip(_PACKED, content, strict=False):
        for name, bits in byte:
            yield name, packed & ((1 << bits) - 1)
            packed >>= bits


def _text(content: bytes) -> str:
    """A voice's name. Bytes that are no printable ASCII, as old editors left them, become spaces."""
    return "".join(chr(byte & 0x7F) if 32 <= byte & 0x7F < 127 else " " for byte in content).rstrip()


# The DX7's own initial voice: operator 1 alone, a sine.
INIT_VOICE = Voice(
    "INIT VOICE",
    {name: 0 for name in LARGEST}
    | {f"op_{op}_{name}": 99 for op in OPERATORS for name in OPERATOR if name.startswith(("eg_rate", "eg_level"))}
    | {f"op_{op}_eg_level_4": 0 for op in OPERATORS}
    | {f"op_{op}_breakpoint": 39 for op in OPERATORS}
    | {f"op_{op}_frequency_coarse": 1 for op in OPERATORS}
    | {f"op_{op}_detune": 7 for op in OPERATORS}
    | {"op_1_output_level": 99, "oscillator_key_sync": 1, "lfo_speed": 35, "lfo_key_sync": 1}
    | {"pitch_mod_sensitivity": 3, "transpose": 24}
    | {f"pitch_eg_rate_{i}": 99 for i in (1, 2, 3, 4)}
    | {f"pitch_eg_level_{i}": 50 for i in (1, 2, 3, 4)},
)
