"""Rows and tables of an earlier evaluation: missing or damaged ones are made anew, a failing disk is an error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from synthjax.evaluation.predictions import PREDICTIONS_FILE, read_predictions, write_predictions
from synthjax.evaluation.table import read_table

SPEC = load_spec("subtractive")
ABOUT = {"split": "test"}


def failing(code: int) -> Callable[..., None]:
    def call(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).uniform(size=(3, SPEC.width)).astype(np.float32)
    write_predictions(tmp_path, ABOUT, rows, SPEC)
    found = read_predictions(tmp_path, ABOUT, SPEC)
    assert found is not None
    np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("content", [None, b"no HDF5"])
def test_missing_and_damaged_rows_are_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / PREDICTIONS_FILE).write_bytes(content)
        (tmp_path / "metrics.json").write_bytes(content)
    assert read_predictions(tmp_path, ABOUT, SPEC) is None
    assert read_table(tmp_path / "metrics.json") is None


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_failing_system_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Else hours of sampling would be repeated, and figures of before be lost."""
    monkeypatch.setattr(h5py, "File", failing(code))
    with pytest.raises(UserError, match=rf"predictions\.h5: cannot be read: {os.strerror(code)}: "):
        read_predictions(tmp_path, ABOUT, SPEC)
    monkeypatch.setattr(Path, "read_text", failing(code))
    with pytest.raises(UserError, match=rf"metrics\.json cannot be read: {os.strerror(code)}: "):
        read_table(tmp_path / "metrics.json")
