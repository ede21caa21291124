"""What a render worker needs, whatever it renders: settings that make a renderer, then batch after batch.

There are two kinds: the drawn patches of a data set (``row_renderer``) and given ones (``patch_renderer``). This
module is all that a worker imports before it knows which; a worker of given patches starts a second sooner for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from data_pipeline.synths.protocol import Synth, SynthSettings

Attempt = tuple[int, int]
"""(index of a patch, number of the attempt at it): whom to blame for what happens to a worker."""


@dataclass(frozen=True)
class Batch:
    """Indices to render together. ``forbidden`` attempts have killed a synthesizer and are left out.

    ``verify_each`` asks for a check of the synthesizer after every render, to find out which makes it drift.
    """

    indices: tuple[int, ...]
    forbidden: frozenset[Attempt] = frozenset()
    verify_each: bool = False


class NothingAcceptedError(Exception):
    """So many patches in a row were refused that the synthesizer must be broken, or the spec silent."""


# A kind of batch, and what is made of it.
BatchT = TypeVar("BatchT", bound=Batch)
RenderedT = TypeVar("RenderedT")
_BatchT_contra = TypeVar("_BatchT_contra", bound=Batch, contravariant=True)
_RenderedT_co = TypeVar("_RenderedT_co", covariant=True)


class BatchRenderer(Protocol[_BatchT_contra, _RenderedT_co]):
    """Renders batches with one synthesizer of this process."""

    def render(self, batch: _BatchT_contra, announce: Callable[[Attempt], None]) -> _RenderedT_co:
        """Renders a whole batch; ``announce`` hears of every attempt before it is made.

        Raises DriftError where the synthesizer does not hold what it was given, NothingAcceptedError where it
        refuses everything.
        """
        ...


class RendererSettings(Protocol[_BatchT_contra, _RenderedT_co]):
    """What a worker is sent first: it opens ``synth`` and asks for the renderer that is to use it. Picklable."""

    @property
    def synth(self) -> SynthSettings:
        """The synthesizer to open."""
        ...

    def renderer(self, synth: Synth) -> BatchRenderer[_BatchT_contra, _RenderedT_co]:
        """The renderer of these settings, on the opened synthesizer."""
        ...
