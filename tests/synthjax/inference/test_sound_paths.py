"""Which sounds a command takes, and what their results are called."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.console.cli import UserError
from synthjax.inference.sound_paths import MAX_NAME_BYTES, find_sounds, require_apart, result_names


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_gives_its_sounds_in_order(tmp_path: Path) -> None:
    sounds = [tmp_path / name for name in ("a.WAV", "b/c.flac", "b/d.e.ogg", "z.aiff")]
    touch(*sounds, tmp_path / "notes.txt", tmp_path / "b" / ".hidden.wav", tmp_path / ".trash" / "x.wav")
    (tmp_path / "folder.wav").mkdir()
    assert find_sounds([tmp_path]) == sounds


def test_files_are_taken_as_given_and_once(tmp_path: Path) -> None:
    touch(tmp_path / "b.wav", tmp_path / "a.xyz")
    given_paths = [tmp_path / "b.wav", tmp_path / "a.xyz", tmp_path / "missing.wav"]
    assert find_sounds([*given_paths, tmp_path]) == given_paths


def test_hidden_folders_above_the_one_given_do_not_count(tmp_path: Path) -> None:
    touch(tmp_path / ".cache" / "a.wav")
    assert find_sounds([tmp_path / ".cache"]) == [tmp_path / ".cache" / "a.wav"]


def test_a_folder_without_sounds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sound file in this folder"):
        find_sounds([tmp_path])


def found_and_left_out(folder: Path) -> tuple[list[Path], list[str]]:
    left_out: list[str] = []
    return find_sounds([folder], left_out.append), left_out


def test_links_to_folders_and_broken_links_are_named(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "sounds", tmp_path / "elsewhere"
    touch(folder / "a.wav", elsewhere / "b.wav", elsewhere / "c.txt")
    (folder / "link.wav").symlink_to(elsewhere / "b.wav")
    (folder / "text.wav.txt").symlink_to(elsewhere / "c.txt")
    for name, target in (("kicks", elsewhere), ("loop", folder), ("gone.wav", "/gone.wav"), ("gone", "/gone")):
        (folder / name).symlink_to(target)
    (folder / ".hidden").symlink_to(elsewhere)
    sounds, left_out = found_and_left_out(folder)
    assert sounds == [folder / "a.wav", folder / "link.wav"]
    assert left_out == [
        f"{folder}/gone.wav: this link leads to nothing that can be read",
        f"{folder}/gone: this link leads to nothing that can be read",
        f"{folder}/kicks: links to folders are not followed: put the folder itself there",
        f"{folder}/loop: links to folders are not followed: put the folder itself there",
    ]


def test_sounds_that_are_no_files_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    assert found_and_left_out(tmp_path)[1] == [f"{tmp_path}/pipe.wav: is no file that can be read"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """As root no folder is closed, so that listing it fails here."""
    touch(tmp_path / "a.wav", tmp_path / "closed" / "b.wav")
    scandir = os.scandir

    def failing(path: str) -> object:
        if path.endswith("closed"):
            raise OSError(code, os.strerror(code), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    sounds, left_out = found_and_left_out(tmp_path)
    assert sounds == [tmp_path / "a.wav"]
    assert left_out[0].startswith(f"{tmp_path}/closed: this folder cannot be read: {os.strerror(code)}")


def test_a_folder_of_links_says_why_it_has_no_sounds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).symlink_to("/gone")
    with pytest.raises(UserError, match=r"no sound file in this folder \(left out: .*a: this link .*, and 1 more\)"):
        find_sounds([tmp_path])


def test_nobody_leaves_out_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "a.wav")
    (tmp_path / "gone").symlink_to("/gone")
    find_sounds([tmp_path])
    assert capsys.readouterr().err.startswith(f"left out: {tmp_path}/gone: ")


def test_names_keep_spaces_dots_and_umlauts() -> None:
    paths = [Path("a b.wav"), Path("v1.2.take.wav"), Path("Flöte.flac"), Path("<script>.wav")]
    assert result_names(paths) == ["a b", "v1.2.take", "Flöte", "<script>"]


def test_equal_names_from_different_folders_are_numbered() -> None:
    paths = [Path("one/kick.wav"), Path("two/kick.flac"), Path("Kick.wav"), Path("kick (2).wav")]
    assert result_names(paths) == ["kick", "kick (2)", "Kick (3)", "kick (2) (2)"]


def test_long_names_are_cut_and_stay_apart() -> None:
    stem = "ü" * 130
    names = result_names([Path(f"{stem}1.wav"), Path(f"{stem}2.wav")])
    assert len(set(names)) == 2
    assert all(len(os.fsencode(name)) <= MAX_NAME_BYTES for name in names)
    assert all(name.startswith("ü" * 90) for name in names)


@settings(derandomize=True)
@given(st.lists(st.sampled_from(["a", "A", "a (2)", "A (2)", "a (3)", "b"]), max_size=8))
def test_no_two_names_meet_on_a_file_system_that_ignores_case(stems: list[str]) -> None:
    names = result_names([Path(f"{number}/{stem}.wav") for number, stem in enumerate(stems)])
    assert len({name.casefold() for name in names}) == len(stems)


@pytest.mark.parametrize("given", ["a.wav", "link.wav", "sub/../a.wav"])
def test_results_that_would_replace_a_sound_are_refused(tmp_path: Path, given: str) -> None:
    touch(tmp_path / "a.wav", tmp_path / "sub" / "b.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "a.wav")
    sounds = [tmp_path / "sub" / "b.wav", tmp_path / given]
    with pytest.raises(UserError, match=r"the results would replace .*\.wav: choose another --output"):
        require_apart(sounds, tmp_path)
    require_apart(sounds, tmp_path / "out")


def test_other_sounds_beside_the_results_are_no_hindrance(tmp_path: Path) -> None:
    """Nor results of an earlier run, nor a sound of another format or one that does not exist."""
    touch(tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.flac", tmp_path / "sub" / "b.wav")
    require_apart([tmp_path / "sub" / "b.wav", tmp_path / "c.flac", tmp_path / "none.wav"], tmp_path)
