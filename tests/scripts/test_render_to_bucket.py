"""Shards are rendered one after the other, and each finished one is copied; a folder plays the bucket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.shards.reader import ShardReader
from tests.helpers import RENDER_SUBTRACTIVE, REPOSITORY, assert_usage_error

SCRIPT = REPOSITORY / "scripts" / "render_to_bucket.sh"
ROWS = 2


def render(folder: Path, shards: str) -> subprocess.CompletedProcess:
    flags = [f"--config={RENDER_SUBTRACTIVE}", f"--samples_per_shard={ROWS}", "--workers=1"]
    return run(folder, folder / "bucket", shards, *flags)


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", SCRIPT, *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, "SCRATCH": str(folder / "scratch")},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_shards_are_rendered_once_and_brought_away(tmp_path: Path) -> None:
    first = render(tmp_path, "3")
    assert first.returncode == 0, first.stderr
    shard = tmp_path / "bucket" / "shard-3.h5"
    assert len(ShardReader(shard)) == ROWS
    before = shard.stat()
    second = render(tmp_path, "2-3")
    assert second.returncode == 0, second.stderr
    assert "shard-3.h5 is there already" in second.stdout
    assert shard.stat() == before
    assert sorted(path.name for path in (tmp_path / "bucket").glob("*.h5")) == ["shard-2.h5", "shard-3.h5"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    assert_usage_error(run(tmp_path, "gs://bucket", "0"), "--help")
    assert_usage_error(render(tmp_path, "3-1"), "'3-1'")
    assert not (tmp_path / "bucket").exists()
