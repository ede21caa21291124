"""The preset container: its own presets and those of other writers are read, damaged ones are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.synths import vst3_preset
from data_pipeline.synths.vst3_preset import build_container, read_preset_file, read_state
from tests.data_pipeline.fake_vst3 import CLASS_ID, container

STATE = b"the plugin's own state"


def edited(offset: int, field: str, value: int) -> bytes:
    preset = bytearray(build_container(CLASS_ID, STATE))
    struct.pack_into(field, preset, offset, value)
    return bytes(preset)


LIST = 48 + len(STATE)
ENTRY = LIST + 8


def test_a_container_has_the_documented_layout() -> None:
    preset = build_container(CLASS_ID, STATE)
    assert preset[:8] == b"VST3\x01\0\0\0"
    assert preset[8:40] == CLASS_ID
    assert preset[40:48] == (48 + len(STATE)).to_bytes(8, "little")
    assert preset[48:LIST] == STATE
    assert preset[LIST:] == b"List\x01\0\0\0Comp" + (48).to_bytes(8, "little") + len(STATE).to_bytes(8, "little")


@pytest.mark.parametrize("state", [b"", STATE, b"\0" * 1000])
def test_read_state_inverts_build_container(state: bytes) -> None:
    assert read_state(build_container(CLASS_ID, state)) == state


@pytest.mark.parametrize("order", [("Comp", "Cont", "Info"), ("Info", "Cont", "Comp")])
def test_other_chunks_may_stand_before_and_after(order: tuple[str, ...]) -> None:
    chunks = {"Comp": STATE, "Cont": b"", "Info": b"<MetaInfo/>"}
    assert read_state(container({name: chunks[name] for name in order})) == STATE


@pytest.mark.parametrize(
    "preset",
    [
        b"",
        b"VST3",
        b"CcnK" + bytes(100),
        build_container(CLASS_ID, STATE)[:-1],
        edited(0, "<i", 0),
        edited(40, "<q", -1),
        edited(40, "<q", 0),
        edited(40, "<q", 1 << 62),
        edited(40, "<q", LIST + 1),
        edited(LIST + 4, "<i", 0),
        edited(LIST + 4, "<i", -1),
        edited(LIST + 4, "<i", 2),
        edited(LIST + 4, "<i", 1 << 30),
        edited(ENTRY, "<i", 0),
        edited(ENTRY + 4, "<q", 0),
        edited(ENTRY + 4, "<q", -48),
        edited(ENTRY + 4, "<q", 1 << 62),
        edited(ENTRY + 12, "<q", -1),
        edited(ENTRY + 12, "<q", 1 << 62),
        container({"Info": b"no state"}),
        container({f"x{index:03}": b"" for index in range(200)} | {"Comp": STATE}),
    ],
)
def test_a_damaged_container_is_refused(preset: bytes) -> None:
    with pytest.raises(UserError):
        read_state(preset)


def test_files_are_read_up_to_a_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.vstpreset"
    path.write_bytes(build_container(CLASS_ID, STATE))
    assert read_state(read_preset_file(path)) == STATE
    monkeypatch.setattr(vst3_preset, "MAX_PRESET_BYTES", 60)
    with pytest.raises(UserError, match="larger than"):
        read_preset_file(path)
    with pytest.raises(UserError, match="not a VST3 preset"):
        read_state(path.read_bytes())


def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.vstpreset", tmp_path):
        with pytest.raises(UserError, match="cannot read the preset"):
            read_preset_file(path)
