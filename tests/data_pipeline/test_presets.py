"""The command data_pipeline.presets: preset files shown and converted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipeline.params.spec import load_spec
from data_pipeline.synths.dexed.syx import read_syx, write_banks
from data_pipeline.synths.dexed.voice import INIT_VOICE, Voice
from data_pipeline.synths.surge.patch import PatchTemplate
from tests.helpers import assert_usage_error, run_cli

SIMPLE = load_spec("surge_simple")
PRESETS = "data_pipeline.presets"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with ``a.vstpreset`` of Surge XT, and ``bank.syx`` of 32 initial voices, the first one renamed."""
    values = SIMPLE.decode(SIMPLE.sample(1, [0], [0])[0])
    (tmp_path / "a.vstpreset").write_bytes(PatchTemplate(SIMPLE).preset(values))
    (tmp_path / "bank.syx").write_bytes(write_banks([Voice("FIRST", INIT_VOICE.values)])[0])
    return tmp_path


def test_values_are_shown_as_on_the_panels(files: Path) -> None:
    result = run_cli(PRESETS, "show", files / "a.vstpreset", files / "bank.syx")
    assert result.returncode == 0, result.stderr
    assert (
        "a.vstpreset: surge_simple, category synthjax, author synthjax, revision 24, spec surge_simple" in result.stdout
    )
    assert "  Oscillator 1: Pitch " in result.stdout
    assert "outside" not in result.stdout
    assert "bank.syx: FIRST, spec dexed" in result.stdout
    assert "  LFO: Speed 35, Delay 0, Pitch mod depth 0, Amp mod depth 0, Key sync on, Wave triangle\n" in result.stdout
    assert result.stdout.count("INIT VOICE") == 31


def test_json_has_every_value(files: Path) -> None:
    result = run_cli(PRESETS, "show", "--json", files / "bank.syx")
    patches = json.loads(result.stdout)
    assert [patch["name"] for patch in patches] == ["FIRST"] + ["INIT VOICE"] * 31
    values = {value["name"]: value["value"] for value in patches[0]["values"]}
    assert values == INIT_VOICE.values


def test_files_are_converted_and_nothing_is_replaced(files: Path) -> None:
    there, back = files / "a.fxp", files / "back.vstpreset"
    for source, target in ((files / "a.vstpreset", there), (there, back)):
        result = run_cli(PRESETS, "convert", source, target)
        assert (result.returncode, result.stderr) == (0, "")
    assert back.read_bytes() == (files / "a.vstpreset").read_bytes()
    assert_usage_error(run_cli(PRESETS, "convert", there, back), "back.vstpreset exists")


def test_oddities_of_a_bank_are_said_when_it_is_written_again(files: Path) -> None:
    content = bytearray((files / "bank.syx").read_bytes())
    content[-2] ^= 1
    (files / "odd.syx").write_bytes(content)
    result = run_cli(PRESETS, "convert", files / "odd.syx", files / "again.syx")
    assert result.returncode == 0
    assert "checksum" in result.stderr
    assert (files / "again.syx").read_bytes() == (files / "bank.syx").read_bytes()
    assert len(read_syx((files / "again.syx").read_bytes()).voices) == 32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage:"),
        (["show"], "usage:"),
        (["convert", "a.vstpreset"], "usage:"),
        (["convert", "a.vstpreset", "a.syx"], "files of different synthesizers"),
        (["convert", "a.vstpreset", "a.wav"], "its name must end in .fxp, .vstpreset, .syx, .vital"),
        (["convert", "none.fxp", "b.fxp"], "cannot read the preset none.fxp"),
    ],
)
def test_wrong_commands_are_one_line(files: Path, arguments: list[str], words: str) -> None:
    assert_usage_error(run_cli(PRESETS, *arguments, cwd=files), words)


def test_a_file_that_cannot_be_read_is_one_line_and_the_others_are_shown(files: Path) -> None:
    (files / "no.fxp").write_bytes(b"CcnK")
    result = run_cli(PRESETS, "show", "no.fxp", "bank.syx", cwd=files)
    assert result.returncode == 1
    assert result.stderr == "error: no.fxp: the .fxp is cut off: it has 4 bytes\n"
    assert "FIRST" in result.stdout


def test_a_patch_is_played(files: Path) -> None:
    out = files / "a.wav"
    result = run_cli(PRESETS, "render", files / "bank.syx", out, "--note=69", "--seconds=0.5", "--patch=2")
    assert result.returncode == 0, result.stderr
    audio, rate = soundfile.read(out)
    assert (audio.shape, rate) == ((66150, 2), 44100)
    spectrum = np.abs(np.fft.rfft(audio[: rate // 2, 0]))
    assert int(spectrum.argmax()) == pytest.approx(440 / 2, abs=1)
    assert not audio[rate:].any()
    result = run_cli(PRESETS, "render", files / "bank.syx", out, "--patch=33")
    assert_usage_error(result, "--patch=33: the last patch", "is number 32")
