"""Folders of preset files as priors: only the patches' values count, and what is left out is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.mixture import Mixture
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.dexed.syx import write_banks, write_single
from data_pipeline.synths.dexed.voice import INIT_VOICE, LARGEST, Voice
from data_pipeline.synths.known_patches import mixture_of_folder
from data_pipeline.synths.protocol import SynthSettings

SPEC = load_spec("dexed")
DEXED = SynthSettings("dexed", SPEC)


def voices(count: int, seed: int = 4) -> list[Voice]:
    decoded = [SPEC.decode(row) for row in SPEC.sample(seed, range(count), [0] * count)]
    return [Voice(f"VOICE {n}", {name: int(values[name]) for name in LARGEST}) for n, values in enumerate(decoded)]


def folder_of(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def mixture_of(folder: Path) -> Mixture:
    return mixture_of_folder(folder, DEXED)[0]


def bank(*members: Voice) -> bytes:
    """A bank with the DX7's initial voice in its other places."""
    return write_banks(members)[0]


def test_names_order_and_number_of_files_do_not_count(tmp_path: Path) -> None:
    first, *others = voices(9)
    whole = mixture_of(folder_of(tmp_path / "one", {"a.syx": bank(first, *others)}))
    renamed = Voice("OTHER NAME", first.values)
    files = {f"z{9 - number}/{number}.SYX": write_single(voice) for number, voice in enumerate(others)}
    files |= {"b.syx": bank(renamed), "c.syx": bank(*reversed(others))}
    same = mixture_of(folder_of(tmp_path / "many", files))
    assert whole.count == 10
    assert same == whole
    assert same.content_hash == whole.content_hash
    assert mixture_of(folder_of(tmp_path / "fewer", {"a.syx": bank(*others)})).content_hash != whole.content_hash


def test_every_patch_is_that_of_its_file(tmp_path: Path) -> None:
    mixture = mixture_of(folder_of(tmp_path, {"a.syx": write_single(INIT_VOICE)}))
    note = {"pitch": 60, "note_start_and_end": (0.0, 3.0)}
    assert mixture.patches == SPEC.encode({**INIT_VOICE.values, **note})[:-3].astype("<f4").tobytes()


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    good, *beyond = voices(6)
    # ``write_single`` would limit the values, as other programs do not.
    beyond = [Voice(voice.name, {**voice.values, "op_3_frequency_fine": 127}) for voice in beyond]
    packed = b"".join(voice.packed() for voice in [good, *beyond] + [good] * 26)
    files = {"b.syx": packed, "a.syx": b"no bank", "readme.txt": b"", "sub/.DS_Store": b""}
    mixture, lines = mixture_of_folder(folder_of(tmp_path, files), DEXED)
    assert mixture.count == 1
    voices_named = [f"VOICE {n} in b.syx: op_3_frequency_fine is 127, beyond its range" for n in (1, 2, 3)]
    assert lines == [
        f"prior {tmp_path}: different patches: 1, in 1 file",
        f"prior {tmp_path}: left out patches outside spec dexed: 5 ({'; '.join(voices_named)}; ...)",
        f"prior {tmp_path}: left out files that cannot be read: 1 "
        "(a.syx: no DX7 voices in 7 bytes: a bank has 4,104 or 4,096, a voice 163)",
        f"prior {tmp_path}: left out files of other kinds than .syx: 2",
    ]


def test_folders_without_a_patch_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--prior=\S+ has no patch of spec dexed$"):
        mixture_of(tmp_path)
    with pytest.raises(
        UserError, match=r"no patch of spec dexed; left out files that cannot be read: 1 .a.syx: no DX7"
    ):
        mixture_of(folder_of(tmp_path, {"a.syx": b"no bank"}))
    for path in (tmp_path / "nothing", tmp_path / "a.syx"):
        with pytest.raises(UserError, match=r"a folder: name one with preset files \(.syx\)"):
            mixture_of(path)


def test_a_synthesizer_without_preset_files_has_no_such_prior(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="subtractive has no preset files"):
        mixture_of_folder(tmp_path, SynthSettings("subtractive", load_spec("subtractive")))
