""".fxp and .vstpreset of Surge XT: the same state in either, and a patch as people read it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.surge.patch import PatchTemplate
from data_pipeline.synths.surge.preset_files import convert, fxp, read, read_surge_file, vstpreset

SIMPLE = load_spec("surge_simple")
(ROW,) = SIMPLE.sample(3, [0], [0])
VALUES = SIMPLE.decode(ROW)
PRESET = PatchTemplate(SIMPLE).preset(VALUES)
FXP = convert(PRESET, ".fxp")


def test_public_patches_come_back_byte_for_byte(shared_data: Path) -> None:
    files = sorted((shared_data / "surge_fxp").glob("*.fxp"))
    assert files
    for path in files:
        content = path.read_bytes()
        preset = convert(content, ".vstpreset")
        assert read_surge_file(preset) == content[60:]
        assert convert(preset, ".fxp") == content
        patch = read(content)
        assert patch.name
        assert patch.base == content[60:]
        assert len(patch.values) + len(patch.outside) > 50


def test_a_patch_of_ours_is_shown_whole() -> None:
    for content in (PRESET, FXP):
        patch = read(content)
        assert (patch.spec, patch.outside) == ("surge_simple", [])
        assert patch.values == pytest.approx(
            {parameter.name: VALUES[parameter.name] for parameter in SIMPLE.synth_params}, abs=1e-6
        )


def test_values_outside_the_spec_are_named() -> None:
    state = read_surge_file(PRESET)
    changed = state.replace(b'<character type="0" value="1"', b'<character type="0" value="2"')
    assert changed != state
    patch = read(fxp(changed, ""))
    assert patch.outside == ["character is 2, in the base patch 1"]


def test_a_value_that_is_no_number_is_outside_the_spec() -> None:
    state = read_surge_file(PRESET)
    content = fxp(state.replace(b'<character type="0" value="1"', b'<character type="0" value="x"'), "")
    assert read(content).outside == ["character is x, in the base patch 1"]


def test_the_header_is_that_of_a_vst_2_program() -> None:
    state = read_surge_file(PRESET)
    content = fxp(state, "Näme " * 10)
    assert content[:28] == struct.pack(">4si4si4sii", b"CcnK", 0, b"FPCh", 1, b"cjs3", 1, 1)
    assert content[28:56].decode().startswith("Näme Näme")
    assert struct.unpack_from(">i", content, 56) == (len(state),)
    assert content[60:] == state
    assert vstpreset(state) == PRESET


def changed(place: int, new: bytes) -> bytes:
    return FXP[:place] + new + FXP[place + len(new) :]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (FXP[:59], "cut off"),
        (FXP[:-1], "damaged: its state has"),
        (changed(56, b"\xff\xff\xff\xff"), "damaged"),
        (changed(56, bytes(4)), "damaged"),
        (changed(8, b"FxCk"), "only a list of parameters or a bank"),
        (changed(16, b"VIT4"), r"another plugin's \(VIT4\)"),
        (changed(60, b"XXXX"), "not one of Surge XT's"),
        (b"MThd" + FXP[4:], "not a VST3 preset"),
        (b"", "not a VST3 preset"),
    ],
)
def test_what_is_no_patch_of_surge_is_one_line(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(content)


def test_a_patch_that_expands_entities_is_refused() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><patch revision="24"><meta name="&a;"/></patch>'
    state = struct.pack("<4si24x", b"sub3", len(bomb)) + bomb
    with pytest.raises(UserError, match="DOCTYPE"):
        read(fxp(state, "bomb"))
