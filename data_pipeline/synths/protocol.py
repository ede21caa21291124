"""The interface of an open synthesizer, and the settings that open it. ``instrument`` describes a closed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import SECONDS, VELOCITY
from data_pipeline.params.spec import ParamSpec

# The names of the note's parameters: the MIDI note number, and (start, end) in seconds.
PITCH = "pitch"
NOTE_TIMES = "note_start_and_end"

Audio = NDArray[np.float32]


class DriftError(Exception):
    """The synthesizer does not hold the patch it was given: every render since the last check is worthless."""


class SoundingError(Exception):
    """The synthesizer sounded before the note, however long it was left alone.

    Either an earlier note still sounded, or the patch sounds without a note. ``audio`` (2, T) holds the render.
    """

    def __init__(self, audio: Audio) -> None:
        super().__init__("the synthesizer sounds before the note")
        self.audio = audio


class Synth(Protocol):
    """One synthesizer in this process. Its ``name`` and ``version`` are stored in the shards that it renders."""

    name: str
    version: str

    def render(
        self,
        values: Mapping[str, Any],
        *,
        base: bytes | None = None,
        velocity: int = VELOCITY,
        seconds: float = SECONDS,
    ) -> Audio:
        """Renders raw values to audio (2, T) of ``seconds`` at 44.1 kHz, full scale 1.0.

        Args:
          values: of every parameter of the spec. With ``base``, parameters of the synthesizer may be missing: they keep
            the values of the base patch.
          base: a whole patch, as ``FilePatch.base``; None is the base patch of the settings.
          velocity: MIDI velocity of the note.

        The audio must not contain anything of an earlier render. Raises SoundingError where it may.
        """
        ...

    def verify(self) -> None:
        """Compares the patch that the synthesizer holds with the last rendered one. Raises DriftError."""
        ...

    def preset(self) -> bytes | None:
        """The patch that the synthesizer holds, as a ``.vstpreset`` for any host; None if it is no plugin."""
        ...


@dataclass(frozen=True)
class SynthSettings:
    """Which synthesizer to open, and how.

    ``synth`` is its name, as ``choice.instrument`` takes it. ``spec`` has the parameters of its patches. ``plugin`` is
    the path of a VST3 plugin, ``preset`` that of a base patch; a synthesizer that needs neither ignores them.
    ``plugin_name`` chooses one of several plugins in the file ``plugin``.
    """

    synth: str
    spec: ParamSpec
    plugin: str = ""
    preset: str = ""
    allow_other_version: bool = False
    plugin_name: str = ""
