"""Everything that passes between a render worker and its parent.

The parent sends ``WorkerSettings`` once, then ``Batch`` after ``Batch``; the worker answers with the messages below.
There are two kinds of work: the drawn patches of a data set (``row_renderer``) and given patches
(``patch_renderer``). A worker imports this module alone until its settings arrive, which makes its start faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from data_pipeline.synths.protocol import Synth, SynthSettings

Attempt = tuple[int, int]
"""(index of a patch, number of the attempt at it)."""


@dataclass(frozen=True)
class Batch:
    """Indices of patches to render together.

    ``forbidden`` attempts have killed a synthesizer and are left out. ``verify_each`` checks the synthesizer after
    every render, to find the patch that makes it drift.
    """

    indices: tuple[int, ...]
    forbidden: frozenset[Attempt] = frozenset()
    verify_each: bool = False


BatchT = TypeVar("BatchT", bound=Batch)
"""A kind of batch."""
RenderedT = TypeVar("RenderedT")
"""The result of a batch."""
_BatchT_contra = TypeVar("_BatchT_contra", bound=Batch, contravariant=True)
_RenderedT_co = TypeVar("_RenderedT_co", covariant=True)


class BatchRenderer(Protocol[_BatchT_contra, _RenderedT_co]):
    """Renders batches with one synthesizer in this process."""

    def render(self, batch: _BatchT_contra, announce: Callable[[Attempt], None]) -> _RenderedT_co:
        """Renders a whole batch. Calls ``announce`` before every attempt.

        Raises DriftError where the synthesizer does not hold the patch it was given, and NothingAcceptedError where
        every patch is refused.
        """
        ...


class WorkerSettings(Protocol[_BatchT_contra, _RenderedT_co]):
    """The settings of a worker: the synthesizer to open and the renderer that uses it. Picklable."""

    @property
    def synth(self) -> SynthSettings:
        """The synthesizer to open."""
        ...

    def renderer(self, synth: Synth) -> BatchRenderer[_BatchT_contra, _RenderedT_co]:
        """Makes the renderer on the opened synthesizer."""
        ...


class NothingAcceptedError(Exception):
    """Many patches in a row were refused: the synthesizer is broken, or the spec is silent."""


# Reasons of a failed worker.
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
    """The worker is about to make this attempt. If it dies now, this patch is to blame."""

    attempt: Attempt


@dataclass(frozen=True)
class Finished(Generic[RenderedT]):
    """The batch is rendered. ``peak_memory`` of the worker so far, in bytes."""

    batch: RenderedT
    peak_memory: int


@dataclass(frozen=True)
class Failed:
    """The worker gives up its batch and ends. ``reason`` is one of the reasons above."""

    reason: str
    detail: str


Message = Ready | Announced | Finished | Failed
"""A message from a worker to its parent."""
