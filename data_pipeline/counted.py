"""Numbers of things, in messages."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Such as ``1 shard`` and ``2 shards``, for nouns whose plural takes an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
