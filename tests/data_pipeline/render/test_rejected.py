"""``rejected.jsonl``: every data set reads back its own lines and skips all others."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.groups import Panel
from data_pipeline.params.kinds import Continuous, Discrete
from data_pipeline.params.mixture import Mixture, patch_bytes
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.rejected import REJECTED_FILE, RejectedPatches
from data_pipeline.render.row_renderer import RenderSettings
from data_pipeline.render.worker_pool import Rejection
from data_pipeline.synths.protocol import SynthSettings

SPEC = ParamSpec("small", (Continuous("level", 0.0, 1.0),), (Discrete("pitch", 48, 72),))
OTHER = replace(SPEC, synth_params=(Continuous("level", 0.0, 2.0),))
SETTINGS = RenderSettings(SynthSettings("none", SPEC), 7, -55.0, 1.0, 10)
REJECTIONS = (Rejection(12, 0, "crash", 'signal 11: said "no" \n\u2028 twice'), Rejection(3, 2, "hang", ""))
ATTEMPTS = {(12, 0), (3, 2)}


@pytest.fixture
def rejected(tmp_path: Path) -> RejectedPatches:
    rejected = RejectedPatches(tmp_path, SETTINGS)
    for rejection in REJECTIONS:
        rejected.append(rejection)
    return rejected


def test_no_file_means_none(tmp_path: Path) -> None:
    assert RejectedPatches(tmp_path, SETTINGS).read() == frozenset()
    assert not list(tmp_path.iterdir())


def test_what_is_appended_is_read_back(tmp_path: Path, rejected: RejectedPatches) -> None:
    assert rejected.read() == ATTEMPTS
    assert RejectedPatches(tmp_path, SETTINGS).read() == ATTEMPTS


def test_other_data_sets_in_the_folder_keep_their_own(tmp_path: Path, rejected: RejectedPatches) -> None:
    mixture = Mixture.of(SPEC, Panel(), [patch_bytes(SPEC, {"level": 0.5})])
    changes: list[dict[str, Any]] = [{"seed": 8}, {"synth": SynthSettings("none", OTHER)}, {"mixture": mixture}]
    others = [RejectedPatches(tmp_path, replace(SETTINGS, **change)) for change in changes]
    assert [other.read() for other in others] == [frozenset()] * 3
    for number, other in enumerate(others):
        other.append(Rejection(number, 1, "crash", ""))
    assert [other.read() for other in others] == [{(number, 1)} for number in range(3)]
    assert rejected.read() == ATTEMPTS


def test_entry_names_the_patch_and_the_reason(tmp_path: Path, rejected: RejectedPatches) -> None:
    first, second = (json.loads(line) for line in (tmp_path / REJECTED_FILE).read_text().split("\n")[:-1])
    row = first.pop("row")
    assert first == {
        "spec": "small",
        "spec_hash": SPEC.content_hash,
        "seed": 7,
        "index": 12,
        "attempt": 0,
        "reason": "crash",
        "detail": REJECTIONS[0].detail,
    }
    np.testing.assert_array_equal(np.float32(row), SPEC.sample(7, [12], [0])[0])
    np.testing.assert_array_equal(np.float32(second["row"]), SPEC.sample(7, [3], [2])[0])


def test_line_torn_at_any_byte_is_passed_over(tmp_path: Path, rejected: RejectedPatches) -> None:
    path = tmp_path / REJECTED_FILE
    content = path.read_bytes()
    first_line = content.index(b"\n") + 1
    for length in range(first_line, len(content) - 1):
        path.write_bytes(content[:length])
        assert rejected.read() == {(12, 0)}, length


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"7", b"{}", b'{"spec_hash": 1}', b"\xff\xfe\x00", b"not json", b'"text"']
)
def test_line_that_is_no_entry_is_passed_over(tmp_path: Path, rejected: RejectedPatches, line: bytes) -> None:
    path = tmp_path / REJECTED_FILE
    path.write_bytes(line + b"\n" + path.read_bytes() + line + b"\n")
    assert rejected.read() == ATTEMPTS


def test_entry_is_one_write_at_the_end_of_the_file(
    tmp_path: Path, rejected: RejectedPatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that append at once never mix their lines, and an entry survives a crash of the machine."""
    writes: list[bytes] = []
    synced: list[int] = []
    write, fsync = os.write, os.fsync

    def noting(descriptor: int, data: bytes) -> int:
        writes.append(bytes(data))
        os.lseek(descriptor, 0, os.SEEK_SET)  # Another run's descriptor has not moved.
        return write(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", noting)
        patched.setattr(os, "fsync", lambda descriptor: synced.append(fsync(descriptor) or len(writes)))
        rejected.append(Rejection(9, 9, "crash", ""))
    assert (len(writes), synced) == (1, [1])
    assert writes[0].endswith(b"}\n")
    assert rejected.read() == ATTEMPTS | {(9, 9)}


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / REJECTED_FILE).mkdir()
    with pytest.raises(UserError, match=f"cannot write .*{REJECTED_FILE}: Is a directory"):
        RejectedPatches(tmp_path, SETTINGS).append(REJECTIONS[0])
