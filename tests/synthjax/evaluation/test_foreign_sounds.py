"""A folder of sounds from elsewhere: what is left out, and names of any bytes."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from synthjax.evaluation.foreign_sounds import ForeignSounds
from synthjax.evaluation.table import write_samples


def save(folder: Path, name: bytes) -> None:
    soundfile.write(folder / "new.wav", np.full(44100, 0.5), 44100, subtype="FLOAT")
    (folder / "new.wav").rename(os.fsdecode(os.fsencode(folder) + b"/" + name))


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, b"a.wav")
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    (tmp_path / "kicks").symlink_to("/gone/kicks")
    sounds = ForeignSounds.find(tmp_path)
    assert sounds.names == ["a.wav"]
    assert sounds.report_faults() == 1
    told = capsys.readouterr().err
    assert f"2 left out of {tmp_path}, 1 measured" in told
    assert f"left out: {tmp_path}/kicks: this link leads to nothing" in told
    assert f"left out: {tmp_path}/bad.wav: " in told


def test_names_of_any_bytes_reach_the_table(tmp_path: Path) -> None:
    save(tmp_path, b"fl\xf6te.wav")
    sounds = ForeignSounds.find(tmp_path)
    assert sounds.names == ["fl\\udcf6te.wav"]
    assert len(sounds.digest) == 64
    write_samples(tmp_path / "per_sample.csv", sounds.names, {"prediction": {"mss": np.ma.array([1.0])}})
    with (tmp_path / "per_sample.csv").open(encoding="utf-8", newline="") as file:
        assert [line["name"] for line in csv.DictReader(file)] == sounds.names
