"""Numbers of things, in messages."""

from __future__ import annotations

from data_pipeline.counted import counted


def test_one_is_no_plural() -> None:
    assert [counted(count, "shard") for count in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
