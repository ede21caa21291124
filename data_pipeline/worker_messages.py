"""What a render worker tells its parent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from data_pipeline.batch_renderer import Attempt, RenderedT

# Why a worker fails.
DRIFT = "drift"
ERROR = "error"
NOTHING_ACCEPTED = "nothing accepted"
UNUSABLE = "unusable"


@dataclass(frozen=True)
class Ready:
    """The synthesizer is open."""

    synth_name: str
    synth_version: str


@dataclass(frozen=True)
class Announced:
    """The worker is about to render this attempt: if it is not heard of again, this is why."""

    attempt: Attempt


@dataclass(frozen=True)
class Finished(Generic[RenderedT]):
    """The batch is rendered; ``peak_memory`` of this process so far, in bytes."""

    batch: RenderedT
    peak_memory: int


@dataclass(frozen=True)
class Failed:
    """The worker gives up, and with it its batch. ``reason`` is one of those above."""

    reason: str
    detail: str


Message = Ready | Announced | Finished | Failed
